"""The driver against the CUDA that torch was built for, the GPUs that are seen, and whether devices compute right."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from launcher.checks import arithmetic
from launcher.checks.children import Child, run_children
from launcher.checks.finding import Check, Finding, failed, in_bytes, number, passed, skipped, warned
from launcher.checks.needs import Needs

_CHILD_S = 90  # assumption: torch's import and a CUDA context take seconds, the patterns of 180 GB a second or two
_CPU_TEST_BYTES = 2**26  # a sample: whole memories are tested by tools that run for hours


def checks(needs: Needs) -> list[Check]:
    """Arithmetic and memory are slow: each GPU's are tested in a process of its own, all at once."""
    return [
        Check("driver", lambda: driver(needs), 20),
        Check("GPUs", lambda: gpus(needs), 20),
        Check("matmul", lambda: cpu_matmul(), 20, slow=True),
        Check("memory", lambda: cpu_memory(), 20, slow=True),
        Check("GPU arithmetic", lambda: gpu_arithmetic(needs), _CHILD_S + 5, slow=True),
    ]


def driver(needs: Needs) -> Finding:
    """CUDA's rules: a driver runs what was built for its CUDA or an older one; of the same major version also newer."""
    wanted, offered = torch.version.cuda, driver_cuda()
    if needs.gpus == 0 and offered is None:
        return skipped("driver", "no GPU is asked for, and there is no driver")
    if wanted is None:
        said = f"torch {torch.__version__} was built without CUDA"
        if needs.gpus == 0:
            return passed("driver", f"{said}, and no GPU is asked for")
        return failed("driver", said, "install a torch that was built for CUDA (pytorch.org/get-started)")
    if offered is None:
        said = f"no NVIDIA driver was found (libcuda.so.1); torch wants one for CUDA {wanted}"
        return failed("driver", said, "install the driver; in a container use the NVIDIA runtime (--gpus all, --nv)")
    major, minor = (int(part) for part in wanted.split(".")[:2])
    said = f"the driver offers CUDA {offered[0]}.{offered[1]}, torch was built for {wanted}"
    if offered >= (major, minor):
        return passed("driver", said)
    if offered[0] == major:
        return warned("driver", said, f"kernels compiled at run time may not load: update to CUDA {wanted}'s")
    advice = f"update the driver to CUDA {wanted}'s, or install a torch for CUDA {offered[0]}.{offered[1]} or older"
    return failed("driver", said, advice) if needs.gpus else warned("driver", said, advice)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, or None without a driver. No GPU is touched."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def gpus(needs: Needs, seen: int | None = None) -> Finding:
    """GPUs that a process here can use, against those that its workers are promised."""
    have = torch.cuda.device_count() if seen is None else seen
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    said = f"{number(have, 'GPU')} seen, {needs.gpus} asked"
    if have >= needs.gpus:
        return passed("GPUs", said)
    if visible is not None:
        said += f" (CUDA_VISIBLE_DEVICES={visible!r})"
    advice = "ask the scheduler for as many a node, or lower workers; nvidia-smi -L lists what the driver has"
    return failed("GPUs", said, advice)


def cpu_matmul() -> Finding:
    """A product in float32 and one in float64 on this CPU."""
    wrong = sum(arithmetic.product_errors(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float64))
    if wrong == 0:
        return passed("matmul", "CPU: products are right in float32 and float64")
    said = f"CPU: {number(wrong, 'element')} of products wrong"
    return failed("matmul", said, "take this host out: its CPU, its memory or its torch computes wrong numbers")


def cpu_memory() -> Finding:
    """Patterns in a sample of this host's memory."""
    errors = arithmetic.pattern_errors(torch.empty(_CPU_TEST_BYTES // 8, dtype=torch.int64))
    if errors == 0:
        return passed("memory", f"{in_bytes(_CPU_TEST_BYTES)} hold what is written to them (a sample)")
    return failed("memory", f"{number(errors, 'word')} changed in memory", "take this host out: test its memory")


def gpu_arithmetic(needs: Needs) -> list[Finding]:
    """Products and memory of every GPU that is seen."""
    count = torch.cuda.device_count()
    if count == 0:
        return [skipped("GPU arithmetic", "no GPU is seen")]
    children = [Child("launcher.checks.arithmetic", {"index": index}) for index in range(count)]
    return [gpu_finding(index, answer) for index, answer in enumerate(run_children(children, _CHILD_S))]


def gpu_finding(index: int, answer: dict[str, Any] | str) -> Finding:
    """What `arithmetic.examine_gpu` found, or why it found nothing."""
    name = f"GPU {index}"
    advice = f"take GPU {index} out (scheduler, CUDA_VISIBLE_DEVICES); nvidia-smi -q -i {index} shows its errors"
    if isinstance(answer, str):
        return failed(name, answer, advice)
    card, wrong, changed, size = (answer[key] for key in ("name", "wrong_products", "changed_words", "num_bytes"))
    if wrong:
        return failed(name, f"{card}: {number(wrong, 'element')} of products wrong", advice)
    if changed:
        return failed(name, f"{card}: {number(changed, 'word')} of {in_bytes(size)} changed", advice)
    return passed(name, f"{card}: products right, {in_bytes(size)} hold what is written to them")
