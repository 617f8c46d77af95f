"""The peak FLOP/s of GPUs by exact name. No torch: used to plan a run, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU and its dense peaks in TFLOP/s.

    model    as `launcher plan --gpu` takes it
    devices  names as torch.cuda.get_device_name returns them, without "NVIDIA", "Tesla" and "GeForce"
    half     {precision: peak} of the tensor cores with 16-bit inputs and float32 sums
    tf32     of the tensor cores; of older GPUs, which have no TF32, that of float32
    float32  without tensor cores
    """

    model: str
    devices: tuple[str, ...]
    half: Mapping[str, float]
    tf32: float
    float32: float


def _both(peak: float) -> Mapping[str, float]:
    return {"bfloat16": peak, "float16": peak}


# From NVIDIA's data sheets of each product; of RTX cards from the white papers of their architecture (GA102, Ada,
# Blackwell), of B200 and GB200 from that of GB200 NVL72 and HGX B200. Where these give a peak with sparsity, it is
# halved. Cards whose data sheet we did not find (A10G, cards for China, MIG parts) are left out.
GPUS = (
    Gpu("B200", ("B200",), _both(2250), 1100, 75),
    Gpu("GB200", ("GB200",), _both(2500), 1250, 80),
    Gpu("H200", ("H200",), _both(989), 494, 67),
    Gpu("H200 NVL", ("H200 NVL",), _both(835), 417, 60),
    Gpu("GH200", ("GH200 480GB", "GH200 120GB", "GH200 144G HBM3e"), _both(989), 494, 67),
    Gpu("H100", ("H100 80GB HBM3",), _both(989), 494, 67),  # SXM
    Gpu("H100 NVL", ("H100 NVL",), _both(835), 417, 60),
    Gpu("H100 PCIe", ("H100 PCIe",), _both(756), 378, 51),
    Gpu(
        "A100",
        ("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100-PCIE-80GB", "A100 80GB PCIe"),
        _both(312),
        156,
        19.5,
    ),
    Gpu("A40", ("A40",), _both(149.7), 74.8, 37.4),
    Gpu("A30", ("A30",), _both(165), 82, 10.3),
    Gpu("A10", ("A10",), _both(125), 62.5, 31.2),
    Gpu("L40S", ("L40S",), _both(362), 183, 91.6),
    Gpu("L40", ("L40",), _both(181), 90.5, 90.5),
    Gpu("L4", ("L4",), _both(121), 60, 30.3),
    Gpu("V100", ("V100-SXM2-16GB", "V100-SXM2-32GB"), {"float16": 125}, 15.7, 15.7),
    Gpu("V100 PCIe", ("V100-PCIE-16GB", "V100-PCIE-32GB"), {"float16": 112}, 14, 14),
    Gpu("V100S", ("V100S-PCIE-32GB",), {"float16": 130}, 16.4, 16.4),
    Gpu("T4", ("T4",), {"float16": 65}, 8.1, 8.1),
    Gpu("RTX 5090", ("RTX 5090",), _both(209.5), 104.8, 104.8),
    Gpu("RTX 4090", ("RTX 4090",), _both(165.2), 82.6, 82.6),
    Gpu("RTX 3090", ("RTX 3090",), _both(71), 35.6, 35.6),
    Gpu("RTX 6000 Ada", ("RTX 6000 Ada Generation",), _both(364.2), 182.1, 91.1),
    Gpu("RTX A6000", ("RTX A6000",), _both(154.8), 77.4, 38.7),
)
_PREFIXES = ("NVIDIA ", "Tesla ", "GeForce ")
_BY_NAME = {name.casefold(): gpu for gpu in GPUS for name in (gpu.model, *gpu.devices)}


def known_gpu(name: str) -> Gpu | None:
    """The GPU `name`: as torch.cuda.get_device_name returns it, or a model such as H100. None if it is unknown.

    Nothing is derived from similar names.
    """
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return _BY_NAME.get(name.casefold())


def gpu_peak(name: str, precision: str) -> tuple[float, str] | None:
    """The peak FLOP/s of the GPU `name`, and its source; None if the GPU or the precision is not in the table.

    >>> gpu_peak("NVIDIA H100 80GB HBM3", "bfloat16")
    (989000000000000.0, "the H100's dense bfloat16 peak")
    >>> gpu_peak("NVIDIA A10G", "bfloat16")
    """
    gpu = known_gpu(name)
    if gpu is None:
        return None
    peak = {**gpu.half, "tf32": gpu.tf32, "float32": gpu.float32}.get(precision)
    return None if peak is None else (peak * 1e12, f"the {gpu.model}'s dense {precision} peak")
