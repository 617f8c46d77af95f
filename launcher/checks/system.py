"""What the operating system allows: CPUs, open files, locked memory, /dev/shm."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from launcher.checks.finding import Check, Finding, failed, in_bytes, passed, skipped, warned
from launcher.checks.needs import Needs

# What Ray's documentation asks for on its nodes: every worker, and every connection between them, is a file.
_FILES_RAY = 65_536
_FILES_ALONE = 1_024  # assumption: decoding threads, logs and a few connections; the usual default of a login shell
_FILES_LEAST = 256  # assumption: below it a process with torch, TensorBoard and 16 reading threads does not get far

# NCCL's documentation, on shared memory: containers need `--shm-size=1g --ulimit memlock=-1`.
_SHM_NCCL = 2**30
_SHM_RAY = 200_000_000  # the object store of a Ray that the launcher starts itself
_SHM_LEAST = 64 * 2**20  # a container's default, too small for both


def checks(needs: Needs) -> list[Check]:
    """Each needs milliseconds."""
    return [
        Check("CPUs", lambda: cpus(needs), 5),
        Check("open files", lambda: open_files(needs), 5),
        Check("locked memory", lambda: locked_memory(needs), 5),
        Check("/dev/shm", lambda: shared_memory(needs), 5),
    ]


def cpus(needs: Needs) -> Finding:
    """CPUs that this process may use against those that the workers here are promised."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if have >= needs.cpus:
        return passed("CPUs", f"{have} allowed, {needs.cpus} asked")
    advice = "lower resources.cpus_per_worker, or ask the scheduler for more: workers will wait for each other"
    return warned("CPUs", f"{have} allowed, {needs.cpus} asked", advice)


def open_files(needs: Needs) -> Finding:
    """The soft limit of open files, which child processes inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = float("inf") if soft == resource.RLIM_INFINITY else soft
    wanted = _FILES_RAY if needs.ray and needs.nodes > 1 else _FILES_ALONE
    found = f"{soft:,} allowed, {wanted:,} wanted" if limit != float("inf") else "no limit"
    raised = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
    steps = [f"ulimit -n {raised} before the start"] if raised > limit else []
    if raised < wanted:
        steps.append(f"more than {hard:,} needs the administrator (limits.conf, or the container's ulimits)")
    advice = "; ".join(steps)
    if limit < _FILES_LEAST:
        return failed("open files", found, advice)
    return warned("open files", found, advice) if limit < wanted else passed("open files", found)


def locked_memory(needs: Needs, devices: Path = Path("/sys/class/infiniband")) -> Finding:
    """RDMA registers memory, which counts as locked; a small limit makes NCCL fail or fall back."""
    if needs.gpus == 0 or not devices.is_dir() or not any(devices.iterdir()):
        return skipped("locked memory", "no RDMA device is used here")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return passed("locked memory", "no limit")
    advice = "ulimit -l unlimited (limits.conf, slurmd's unit, or the container's --ulimit memlock=-1)"
    return failed("locked memory", f"{in_bytes(soft)} allowed, and RDMA locks what it sends", advice)


def shared_memory(needs: Needs, folder: Path = Path("/dev/shm")) -> Finding:
    """Free space in /dev/shm, through which processes of one host exchange."""
    if not folder.is_dir():
        return skipped("/dev/shm", f"there is no {folder} on this system")
    if needs.workers == 0:
        return skipped("/dev/shm", "no worker runs on this host")
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    wanted = _SHM_NCCL if needs.gpus else _SHM_RAY if needs.ray else 0
    found = f"{in_bytes(free)} of {in_bytes(size)} free, {in_bytes(wanted)} wanted"
    advice = "docker --shm-size=8g, or an emptyDir of medium Memory in Kubernetes; delete what earlier processes left"
    if free < min(wanted, _SHM_LEAST):
        return failed("/dev/shm", found, advice)
    return warned("/dev/shm", found, advice) if free < wanted else passed("/dev/shm", found)
