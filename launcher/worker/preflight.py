"""Checks at the start of every attempt, in bounded time: hosts, GPUs, and an all-reduce over all workers."""

from __future__ import annotations

import logging
import os
import socket

import torch

from launcher.checks.accelerator import gpu_finding
from launcher.checks.arithmetic import examine_gpu
from launcher.checks.attempt_check import Member, Timeouts, all_reduce_errors, check_workers, group_store
from launcher.checks.finding import Check, Finding, graded, require, run_checks
from launcher.checks.network import own_address
from launcher.checks.suite import preflight
from launcher.config.schema import RunConfig
from launcher.errors import DeviceFault
from launcher.formatting import count
from launcher.worker.assignment import Assignment

log = logging.getLogger(__name__)

HOST_S = 30.0  # assumption: a storage that needs longer for a small file is too slow for checkpoints
DEVICE_S = 60.0  # assumption: enough for a CUDA context on a busy host; the test takes a fraction of a second
DEVICE_BYTES = 2**30  # the part of a GPU's memory that is tested: written and read three times, in milliseconds


def check_attempt(config: RunConfig, assignment: Assignment, device: torch.device) -> None:
    """Check the host (on its first worker), this worker's GPU, and an all-reduce over all workers.

    Raises ClusterUnavailable for a host that cannot train, DeviceFault for a GPU, HostFault for a host that makes the
    all-reduce fail, CollectiveFault if no single host does.
    """
    host = socket.gethostname()
    if assignment.local_rank == 0:
        check_host(config)
    if device.type == "cuda":
        check_device(device, assignment, host)
    if assignment.world_size == 1:
        return
    timeouts, rank, world_size = Timeouts(), assignment.rank, assignment.world_size
    me = Member(
        rank=rank,
        local_rank=assignment.local_rank,
        host=host,
        address=own_address(os.environ.get("MASTER_ADDR", "")),
        node_id=assignment.node_id,
        gpus=min(torch.cuda.device_count(), assignment.local_world_size) if device.type == "cuda" else 0,
    )
    check_workers(
        group_store(assignment.attempt.number),
        me,
        world_size,
        lambda: all_reduce_errors(rank, world_size, device, timeouts.reduce_s),
        timeouts,
    )


def check_host(config: RunConfig) -> None:
    """Run the checks of `launcher doctor --quick` on this host. Raises ClusterUnavailable if one fails.

    Checks of the images are omitted, as the run itself names a broken image, and those that do not apply inside of a
    Ray worker, which sees one GPU and its part of the CPUs, and needs no token.
    """
    findings = preflight(config, HOST_S, quick=True, omitted=("data", "GPUs", "CPUs", "Ray token"))
    for finding in findings:
        if finding.status == "warn":
            log.warning("%s: %s; %s", finding.name, finding.found, finding.advice)
    require(findings)


def check_device(device: torch.device, assignment: Assignment, host: str, seconds: float = DEVICE_S) -> None:
    """Count the visible GPUs, and test the computation and memory of this worker's. Raises DeviceFault."""
    required = 1 if assignment.node_id is not None else assignment.local_world_size  # Ray shows a worker one GPU

    def compute() -> Finding:
        return gpu_finding(device.index, examine_gpu(device.index, most_bytes=DEVICE_BYTES))

    checks = [Check("GPUs", lambda: enough(torch.cuda.device_count(), required), seconds)]
    checks += [Check(f"GPU {device.index}", compute, seconds)]
    for finding in run_checks(checks, seconds):
        if finding.status == "fail":
            problem = f"{finding.name}: {finding.found}. {finding.advice}"
            raise DeviceFault(host, assignment.rank, problem, assignment.node_id)


def enough(visible: int, required: int) -> Finding:
    """The GPUs that a worker sees: its own one, or at least as many as there are workers on its host."""
    advice = "nvidia-smi -L lists the GPUs; dmesg shows why one is missing"
    return graded(
        "GPUs",
        f"{count(visible, 'GPU')} visible, {required} required",
        advice,
        fail=visible != 1 and visible < required,
    )
