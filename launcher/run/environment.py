"""The environment of an attempt: versions, host, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from launcher.run.record_types import utc_now

_PACKAGES = (
    "resnet-launcher",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "ray",
    "deepspeed",
    "nvidia-dali-cuda130",
)
_VARIABLES = ("NCCL_", "GLOO_", "OMP_")  # they change the speed or the numerics of a run
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL")
_CPU_FILE, _GPU_FILES = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")
_GIT_TIMEOUT_S = 10  # assumption: enough for a repository on a slow shared file system; else it is not recorded


def environment() -> dict[str, Any]:
    """Versions, host, commit, and the variables of NCCL, gloo and OpenMP. Contains no secrets.

    Versions come from the metadata of installed packages: nothing is imported.
    """
    return {
        "time": utc_now(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "system": platform.platform(),
        "host": socket.gethostname(),
        **devices(),
        "num_cpus": os.cpu_count(),
        "num_cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "git": _git(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if _is_recorded(name)},
    }


def devices() -> dict[str, Any]:
    """The names of the CPU and of NVIDIA's GPUs, from files of the kernel: in a millisecond, without using them."""
    gpus = [_named(file, "Model") for file in sorted(_GPU_FILES.glob("*/information"))]
    return {"cpu": _named(_CPU_FILE, "model name"), "gpus": [name for name in gpus if name]}


def _named(file: Path, key: str) -> str:
    """The value after the first "key:" in a file; empty without one."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _is_recorded(variable: str) -> bool:
    return variable.startswith(_VARIABLES) and not any(word in variable.upper() for word in _SECRET_WORDS)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, str | bool | None] | None:
    """The commit of the repository of the current folder, and whether tracked files differ from it."""
    commit = _git_output("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git_output("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else changes != ""}


def _git_output(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
