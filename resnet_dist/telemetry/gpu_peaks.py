"""The peak FLOP/s of GPUs by name. No torch: used to plan a run, too."""

from __future__ import annotations

# Dense peak of the tensor cores in FLOP/s, from NVIDIA's data sheets. The first name that the device's name contains is
# used.
# precision: bfloat16 and float16 | tf32 | float32 (without tensor cores)
_GPUS = {
    "H200": (989e12, 494e12, 67e12),
    "GH200": (989e12, 494e12, 67e12),
    "H100 PCIe": (756e12, 378e12, 51e12),
    "H100": (989e12, 494e12, 67e12),
    "A100": (312e12, 156e12, 19.5e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L4": (121e12, 60e12, 30.3e12),
    "V100": (125e12, 15.7e12, 15.7e12),  # float16 only; no TF32
    "T4": (65e12, 8.1e12, 8.1e12),  # float16 only; no TF32
}
_COLUMN = {"bfloat16": 0, "float16": 0, "tf32": 1, "float32": 2}


def gpu_peak(name: str, precision: str) -> tuple[float, str] | None:
    """The peak FLOP/s of the GPU `name`, and its source; None if it is not in the table.

    >>> gpu_peak("NVIDIA H100 80GB HBM3", "bfloat16")
    (989000000000000.0, "the H100's dense bfloat16 peak")
    """
    for known, peaks in _GPUS.items():
        if known in name and precision in _COLUMN:
            return peaks[_COLUMN[precision]], f"the {known}'s dense {precision} peak"
    return None
