"""Limits of the operating system: CPUs, open files, locked memory, /dev/shm."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from launcher.checks.finding import Finding, failed, graded, passed, skipped
from launcher.checks.host_requirements import HostRequirements
from launcher.formatting import in_bytes

# Ray's documentation recommends this limit for its nodes: each worker and each connection is a file.
_FILES_RAY = 65_536
_FILES_WITHOUT_RAY = 1_024  # assumption: decoding threads, logs, a few connections; the usual default of a login shell
_FILES_LEAST = 256  # assumption: not enough for a process with torch, TensorBoard and 16 reading threads

# NCCL's documentation on shared memory: containers need `--shm-size=1g --ulimit memlock=-1`.
_SHM_NCCL = 2**30
_SHM_RAY = 200_000_000  # the object store of a Ray that the launcher starts
_SHM_LEAST = 64 * 2**20  # Docker's default, too small for both


def cpus(required: int) -> Finding:
    """The CPUs that this process may use, compared with those that its workers require."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "lower resources.cpus_per_worker, or request more from the scheduler: workers compete for CPUs"
    return graded("CPUs", f"{have} allowed, {required} required", advice, warn=have < required)


def open_files(*, several_ray_nodes: bool) -> Finding:
    """The soft limit of open files, which child processes inherit."""
    required = _FILES_RAY if several_ray_nodes else _FILES_WITHOUT_RAY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return passed("open files", "no limit")
    possible = required if hard == resource.RLIM_INFINITY else min(required, hard)
    steps = [f"run `ulimit -n {possible}` before the start"] if possible > soft else []
    if possible < required:
        steps.append(f"more than {hard:,} requires an administrator (limits.conf, or the container's ulimits)")
    found = f"{soft:,} allowed, {required:,} recommended"
    return graded("open files", found, "; ".join(steps), fail=soft < _FILES_LEAST, warn=soft < required)


def locked_memory(num_gpus: int, devices: Path = Path("/sys/class/infiniband")) -> Finding:
    """The limit of locked memory: RDMA locks the memory that it registers, and NCCL fails or falls back without it."""
    if num_gpus == 0 or not devices.is_dir() or not any(devices.iterdir()):
        return skipped("locked memory", "no RDMA device is used here")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return passed("locked memory", "no limit")
    advice = "ulimit -l unlimited (limits.conf, slurmd's unit, or the container's --ulimit memlock=-1)"
    return failed("locked memory", f"{in_bytes(soft)} allowed; RDMA locks its buffers", advice)


def shared_memory(required: HostRequirements, folder: Path = Path("/dev/shm")) -> Finding:
    """Free space in /dev/shm, which processes of one host use to exchange data."""
    if not folder.is_dir():
        return skipped("/dev/shm", f"this system has no {folder}")
    if required.workers == 0:
        return skipped("/dev/shm", "no worker runs on this host")
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    wanted = _SHM_NCCL if required.gpus else _SHM_RAY if required.ray else 0
    found = f"{in_bytes(free)} of {in_bytes(size)} free, {in_bytes(wanted)} required"
    advice = "docker --shm-size=8g, or an emptyDir of medium Memory in Kubernetes; delete files of earlier processes"
    return graded("/dev/shm", found, advice, fail=free < min(wanted, _SHM_LEAST), warn=free < wanted)
