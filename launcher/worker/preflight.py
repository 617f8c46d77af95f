"""What every attempt begins with, in bounded time: a look at its hosts, its GPUs, and an all-reduce of its workers."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import torch

from launcher.checks.accelerator import gpu_finding
from launcher.checks.arithmetic import examine_gpu
from launcher.checks.finding import Check, Finding, failed, number, passed, require, run_checks
from launcher.checks.network import own_address
from launcher.checks.suite import preflight
from launcher.checks.together import Limits, Member, check_together, group_store, reduce_in_group
from launcher.config.schema import RunConfig
from launcher.errors import DeviceFault

if TYPE_CHECKING:
    from launcher.worker.assignment import Assignment

log = logging.getLogger(__name__)

HOST_S = 30.0  # assumption: a storage that takes longer to be written and read will not do for checkpoints
DEVICE_S = 60.0  # assumption: a CUDA context on a busy host takes some of it, the test a fraction of a second
DEVICE_BYTES = 2**30  # of a GPU's memory, a sample: written and read three times, in milliseconds


def check_attempt(config: RunConfig, assignment: Assignment, device: torch.device) -> None:
    """Check this worker's host, if it is the first one there, its GPU, and all workers together.

    Raises ClusterUnavailable where the host is not fit, DeviceFault for a GPU, HostFault for the host because of which
    an all-reduce fails, CollectiveFault where no single one is to blame.
    """
    host = socket.gethostname()
    if assignment.local_rank == 0:
        check_host(config)
    if device.type == "cuda":
        check_device(device, assignment, host)
    if assignment.world_size == 1:
        return
    limits, rank, world_size = Limits(), assignment.rank, assignment.world_size
    me = Member(
        rank=rank,
        local_rank=assignment.local_rank,
        host=host,
        address=own_address(os.environ.get("MASTER_ADDR", "")),
        node_id=assignment.node_id,
        gpus=min(torch.cuda.device_count(), assignment.local_world_size) if device.type == "cuda" else 0,
    )
    check_together(
        group_store(assignment.attempt),
        me,
        world_size,
        lambda: reduce_in_group(rank, world_size, device, limits.reduce_s),
        limits,
    )


def check_host(config: RunConfig) -> None:
    """What `launcher doctor --quick` would say of this host; ClusterUnavailable where a check fails.

    Left out is what it says of the images, of which the run itself names the broken one, and of what a worker cannot
    see: inside Ray it has one GPU and one share of the CPUs, and it has come past the token.
    """
    left_out = ("data", "sample", "GPUs", "CPUs", "Ray token")
    findings = [f for f in preflight(config, HOST_S, quick=True) if f.name not in left_out]
    for finding in findings:
        if finding.status == "warn":
            log.warning("%s: %s; %s", finding.name, finding.found, finding.advice)
    require(findings)


def check_device(device: torch.device, assignment: Assignment, host: str, seconds: float = DEVICE_S) -> None:
    """Count this host's GPUs, and let this worker's compute and remember; DeviceFault where one fails, or hangs."""
    asked = 1 if assignment.node_id is not None else assignment.local_world_size  # Ray shows a worker its own alone

    def compute() -> Finding:
        return gpu_finding(device.index, examine_gpu(device.index, most_bytes=DEVICE_BYTES))

    checks = [Check("GPUs", lambda: enough(torch.cuda.device_count(), asked), seconds)]
    checks += [Check(f"GPU {device.index}", compute, seconds)]
    for finding in run_checks(checks, seconds):
        if finding.status == "fail":
            problem = f"{finding.name}: {finding.found}. {finding.advice}"
            raise DeviceFault(host, assignment.rank, problem, assignment.node_id)


def enough(seen: int, asked: int) -> Finding:
    """GPUs that a worker sees: one of its own, or at least as many as there are workers on its host."""
    said = f"{number(seen, 'GPU')} seen, {asked} asked"
    if seen == 1 or seen >= asked:
        return passed("GPUs", said)
    return failed("GPUs", said, "nvidia-smi -L lists what the driver has; dmesg says why one has gone")
