"""The driver's and torch's CUDA versions, the visible GPUs, and whether devices compute correctly."""

from __future__ import annotations

import ctypes
import os

import torch

from launcher.checks import arithmetic
from launcher.checks.children import Answer, Child, run_children
from launcher.checks.finding import Finding, failed, graded, skipped
from launcher.formatting import count, in_bytes

CHILD_S = 90  # assumption: torch's import and a CUDA context take seconds, the patterns of 180 GB a second or two
_CPU_TEST_BYTES = 2**26  # a sample: tests of a whole memory take hours


def driver(num_gpus: int) -> Finding:
    """CUDA's rules: a driver runs code for its CUDA version or older; of the same major version also newer."""
    wanted, offered = torch.version.cuda, driver_cuda()
    if num_gpus == 0 and offered is None:
        return skipped("driver", "the run uses no GPU, and there is no driver")
    if wanted is None:
        found = f"torch {torch.__version__} was built without CUDA" + ("" if num_gpus else "; the run uses no GPU")
        advice = "install a torch that was built for CUDA (pytorch.org/get-started)"
        return graded("driver", found, advice, fail=num_gpus > 0)
    if offered is None:
        found = f"no NVIDIA driver was found (libcuda.so.1); torch needs one for CUDA {wanted}"
        return failed("driver", found, "install the driver; in a container use the NVIDIA runtime (--gpus all, --nv)")
    major, minor = (int(part) for part in wanted.split(".")[:2])
    found = f"the driver supports CUDA {offered[0]}.{offered[1]}, torch was built for {wanted}"
    if offered[0] == major:
        advice = f"kernels compiled at run time may not load: update the driver to CUDA {wanted}"
        return graded("driver", found, advice, warn=offered < (major, minor))
    advice = f"update the driver to CUDA {wanted}, or install a torch for CUDA {offered[0]}.{offered[1]} or older"
    too_old = offered[0] < major
    return graded("driver", found, advice, fail=too_old and num_gpus > 0, warn=too_old)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports; None without a driver. Does not use a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def gpus(required: int, visible: int | None = None) -> Finding:
    """The GPUs that a process can use here, compared with those that the run requires of this host."""
    have = torch.cuda.device_count() if visible is None else visible
    found, variable = f"{count(have, 'GPU')} visible, {required} required", os.environ.get("CUDA_VISIBLE_DEVICES")
    if have < required and variable is not None:
        found += f" (CUDA_VISIBLE_DEVICES={variable!r})"
    advice = "request this number per node from the scheduler, or lower workers; nvidia-smi -L lists the GPUs"
    return graded("GPUs", found, advice, fail=have < required)


def cpu_matmul() -> Finding:
    """A product in float32 and one in float64 on this CPU."""
    wrong = sum(arithmetic.product_errors(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float64))
    found = f"CPU: {count(wrong, 'wrong element')} in products of float32 and float64"
    advice = "remove this host from the job: its CPU, memory or torch computes wrong numbers"
    return graded("matmul", found, advice, fail=wrong > 0)


def cpu_memory() -> Finding:
    """Patterns in a sample of this host's memory."""
    errors = arithmetic.pattern_errors(torch.empty(_CPU_TEST_BYTES // 8, dtype=torch.int64))
    found = f"{count(errors, 'changed word')} in {in_bytes(_CPU_TEST_BYTES)}, a sample"
    return graded("memory", found, "remove this host from the job and test its memory", fail=errors > 0)


def gpu_arithmetic() -> list[Finding]:
    """Products and memory of every visible GPU."""
    number = torch.cuda.device_count()
    if number == 0:
        return [skipped("GPU arithmetic", "no GPU is visible")]
    children = [Child("launcher.checks.arithmetic", {"index": index}) for index in range(number)]
    return [gpu_finding(index, answer) for index, answer in enumerate(run_children(children, CHILD_S))]


def gpu_finding(index: int, answer: Answer | str) -> Finding:
    """The result of `arithmetic.examine_gpu`, or the reason why there is none, as a finding."""
    name = f"GPU {index}"
    advice = (
        f"exclude GPU {index} (scheduler, CUDA_VISIBLE_DEVICES); nvidia-smi -q -i {index} shows its hardware errors"
    )
    if isinstance(answer, str):
        return failed(name, answer, advice)
    wrong, changed = answer["wrong_products"], answer["changed_words"]
    found = f"{answer['name']}: {count(wrong, 'wrong element')} in products, {count(changed, 'changed word')}"
    found += f" in {in_bytes(answer['num_bytes'])} of memory"
    return graded(name, found, advice, fail=bool(wrong or changed))
