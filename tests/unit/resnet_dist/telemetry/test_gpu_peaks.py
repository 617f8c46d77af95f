"""GPUs are known by their exact names: those with similar names have other peaks."""

from __future__ import annotations

import pytest

from resnet_dist.telemetry.gpu_peaks import GPUS, gpu_peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-PCIE-40GB", 312),  # drivers before 470 leave out NVIDIA
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A30", 165),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX A6000", 154.8),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_data_sheet(name: str, tflops: float) -> None:
    peak = gpu_peak(name, "bfloat16")
    assert peak is not None
    assert peak[0] == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",  # no A10
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",  # a seventh of one
        "NVIDIA A1000",
        "NVIDIA H100 80GB HBM2e",  # no SXM
        "NVIDIA H1000",
        "NVIDIA H800",
        "NVIDIA H20",  # no H200
        "NVIDIA L20",
        "NVIDIA T400",  # no T4
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA B200 MIG 1g.23gb",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_gpu_with_a_similar_name_is_not_known(name: str) -> None:
    assert gpu_peak(name, "bfloat16") is None


def test_cards_of_one_chip_with_other_clocks_differ() -> None:
    names = ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-16GB", "Tesla V100S-PCIE-32GB")
    peaks = [gpu_peak(name, "float16") for name in names]
    assert [peak and peak[0] for peak in peaks] == [125e12, 112e12, 130e12]


def test_gpus_without_bfloat16_have_no_peak_for_it() -> None:
    assert gpu_peak("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert gpu_peak("Tesla T4", "bfloat16") is None


def test_an_unknown_precision_has_no_peak() -> None:
    assert gpu_peak("NVIDIA H100 PCIe", "float64") is None


def test_no_name_stands_for_two_gpus() -> None:
    names = [name for gpu in GPUS for name in {gpu.model, *gpu.devices}]
    assert len(names) == len(set(names))
