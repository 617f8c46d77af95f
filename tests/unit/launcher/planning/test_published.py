"""Published speeds: their sources, MLPerf's end points, and what is scaled from them."""

from __future__ import annotations

import pytest

from launcher.planning.published import figures, gpu_speed, loss_per_doubling, mlperf_check

FLOPS = 24.3e9  # of ResNet-50 at 224 pixels
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def test_every_figure_has_a_source() -> None:
    sources = figures()["sources"]
    assert {row["source"] for row in figures()["throughput"]} <= sources.keys()
    assert "mlperf" in sources


def test_the_forecasts_of_mlperfs_end_points_contain_four_fifths_of_them() -> None:
    """4 to 3,584 GPUs, each submission forecast from the others."""
    check = mlperf_check()
    inside = [name for name, seconds, interval in check if interval.contains(seconds)]
    assert len(check) >= 25
    assert len(inside) / len(check) >= 0.8
    (eight,) = [interval for name, _, interval in check if name == "NVIDIA/eos_ngc24.04_mxnet"]
    assert eight.contains(13.31 * 60)
    assert eight.relative_width < 0.5
    assert "NVIDIA/coreweave_hgxh100_n448_ngc23.04_mxnet" in inside  # 3,584 GPUs, 11 s


def test_torch_is_slower_than_the_fastest_of_mlperf() -> None:
    """13.3 minutes on 8 H100 were measured with MXNet and fused kernels: a forecast for torch must be longer."""
    speed = gpu_speed(H100, "bfloat16", 8, 400, FLOPS)
    assert speed is not None
    steps = 35 * 1_281_167 / 3200
    assert speed.step_s.low * steps > 13.5 * 60
    assert 30 * 60 < speed.step_s.median * steps < 40 * 60


def test_the_published_speed_of_a_card_is_met() -> None:
    speed = gpu_speed(A100, "float16", 8, 256, FLOPS)
    assert speed is not None
    assert speed.step_s.inverse(8 * 256).contains(16_621)
    assert "DeepLearningExamples" in speed.source


@pytest.mark.parametrize(
    ("gpu", "words"), [("NVIDIA H200", "MLPerf"), ("NVIDIA L4", "scaled by the L4's"), ("", "not known")]
)
def test_a_gpu_without_a_figure_is_scaled_and_has_a_wider_interval(gpu: str, words: str) -> None:
    known, scaled = gpu_speed(H100, "float16", 1, 256, FLOPS), gpu_speed(gpu, "float16", 1, 256, FLOPS)
    assert known is not None
    assert scaled is not None
    assert scaled.step_s.relative_width > known.step_s.relative_width
    assert any(words in note for note in scaled.notes)


def test_what_is_in_no_table_has_no_forecast() -> None:
    assert gpu_speed("Some other GPU", "float16", 1, 256, FLOPS) is None
    assert gpu_speed(H100, "float64", 1, 256, FLOPS) is None


def test_more_gpus_and_fewer_images_cost_efficiency() -> None:
    one, eight = gpu_speed(H100, "float16", 1, 256, FLOPS), gpu_speed(H100, "float16", 8, 256, FLOPS)
    few = gpu_speed(H100, "float16", 8, 8, FLOPS)
    assert one is not None
    assert eight is not None
    assert few is not None
    assert eight.step_s.median > one.step_s.median
    assert few.step_s.median > 0.004  # a step's fixed cost
    loss, deviation = loss_per_doubling()
    assert 0.0 < loss < 0.05
    assert deviation > 0
