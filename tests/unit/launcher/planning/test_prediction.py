"""Which evidence a forecast uses, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from launcher.config.schema import CheckpointConfig, Resources, RunConfig, Workers
from launcher.planning import calibration as calibrations
from launcher.planning.calibration import Calibration
from launcher.planning.forecast import Forecast, Interval
from launcher.planning.history import device_here
from launcher.planning.prediction import predict
from launcher.planning.scaling_model import Assumptions
from launcher.planning.work import configuration
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, ModelRecipe, StopAtRecipe

TIMES = {"start_s": 5.0, "training_s": 40.0, "evaluation_s": 4.0, "saving_s": 1.0}


def longer(config: RunConfig, epochs: int = 20) -> RunConfig:
    return replace(config, duration=Duration(Fraction(epochs), "epochs"))


def known(forecast: Forecast | None) -> Forecast:
    assert forecast is not None
    whole = forecast.start_s + forecast.training_s + forecast.evaluation_s + forecast.saving_s + forecast.failures_s
    assert whole == forecast.wall_s
    return forecast


def test_runs_of_the_same_configuration_give_the_time_of_a_longer_one(config: RunConfig, trained: Any) -> None:
    for name, training_s in {"first": 40.0, "second": 42.0}.items():
        trained(config, name, **{**TIMES, "training_s": training_s})
    found = known(predict(longer(config)))
    assert found.evidence == "own run"
    assert "first" in found.source
    assert found.training_s.median == pytest.approx(410, rel=0.01)
    assert found.evaluation_s.median == pytest.approx(40)
    assert found.saving_s.median == pytest.approx(10)
    assert found.start_s.median == pytest.approx(5)
    assert found.images_per_s.contains(2000 / 410)
    assert found.wall_s.relative_width < 0.6
    assert (found.gpus, found.gpu_hours.high) == (0, 0)


def test_a_run_that_is_resumed_is_its_own_evidence(config: RunConfig, trained: Any) -> None:
    trained(longer(config), "planned", **TIMES).finished_file.unlink()
    run = trained(config, "other", **TIMES)
    metrics = run.path.parent / "planned" / "metrics.jsonl"
    metrics.write_text('{"kind": "train", "step": 10, "step_time_s": 3.0, "epoch": 1.0}\n')
    run.finished_file.unlink()
    found = known(predict(longer(config)))
    assert found.training_s.median == pytest.approx(3.0 * 200)
    assert "planned" in found.source


def test_runs_of_other_configurations_are_fitted(config: RunConfig, trained: Any) -> None:
    """With times that are proportional to the operations: 1 s for 10 GFLOPs."""
    for number, name in enumerate(("resnet8", "resnet14", "resnet20", "resnet32")):
        model = ModelRecipe(name=name, num_classes=2)
        flops = training_flops(model, 32) or 0.0
        trained(replace(config, model=model), f"run-{number}", **{**TIMES, "training_s": 200 * flops / 1e10})
    wanted = replace(config, model=ModelRecipe(name="resnet44", num_classes=2))
    found = known(predict(wanted))
    expected = 200 * (training_flops(wanted.model, 32) or 0.0) / 1e10
    assert (found.evidence, found.training_s.contains(expected)) == ("own run", True)
    assert found.training_s.median == pytest.approx(expected, rel=0.05)
    assert "other configurations" in found.source
    held_out = predict(wanted, earlier=[])
    assert held_out is None


def test_a_step_far_beyond_the_measured_ones_widens_the_interval(config: RunConfig, trained: Any) -> None:
    for number, name in enumerate(("resnet8", "resnet14", "resnet20")):
        model = ModelRecipe(name=name, num_classes=2)
        trained(replace(config, model=model), f"run-{number}", **{**TIMES, "training_s": 10.0 * (number + 1)})
    near = known(predict(replace(config, model=ModelRecipe(name="resnet14", num_classes=2), batch=BatchRecipe(size=9))))
    far = known(predict(replace(config, model=ModelRecipe(name="resnet20", num_classes=2, width=16.0))))
    assert far.training_s.relative_width > 1.2 * near.training_s.relative_width


def test_runs_with_another_program_or_device_are_no_evidence(config: RunConfig, trained: Any) -> None:
    trained(config, "bfloat16", **TIMES)
    assert predict(replace(config, precision="bfloat16")) is None
    trained(replace(config, name="elsewhere"), "elsewhere", device={"cpu": "b", "num_cpus_allowed": 64}, **TIMES)
    found = known(predict(config))
    assert "elsewhere" not in found.source
    assert not any("not on this machine" in note for note in found.notes)


def test_runs_that_were_all_elsewhere_are_used_with_a_note(config: RunConfig, trained: Any) -> None:
    trained(config, "cluster", device={"cpu": "b", "num_cpus_allowed": 64}, **TIMES)
    found = known(predict(config))
    assert any("were on b, 64 cores, not on this machine" in note for note in found.notes)


def measured(config: RunConfig, **changes: Any) -> Calibration:
    whole = Calibration(
        configuration=configuration(config),
        time="2026-01-01T00:00:00+00:00",
        device=device_here(config),
        seconds=60.0,
        workers=1,
        worker_images=10,
        step_s=[1.0, 1.1, 0.9],
        start_s=6.0,
        evaluation_s=0.02,
        root=config.data.root,
        source=config.data.source,
        num_samples=100,
        num_val=30,
    )
    return replace(whole, **changes)


def test_a_calibration_comes_before_other_configurations_and_is_found_again(config: RunConfig, trained: Any) -> None:
    for size in (5, 20):
        trained(replace(config, batch=BatchRecipe(size=size)), f"size-{size}", **TIMES)
    calibrations.save(config, measured(config))
    found = known(predict(config))
    assert found.evidence == "calibration"
    assert found.training_s.median == pytest.approx(20, rel=0.05)
    assert found.evaluation_s.median == pytest.approx(0.02 * 60)
    assert known(predict(config, calibrated=False)).evidence == "own run"
    trained(config, "same", **TIMES)
    whole = known(predict(config))
    assert whole.training_s.median == pytest.approx(40)  # a whole run is better evidence
    assert any("the training alone would take 20 s" in note for note in whole.notes)


def test_a_calibration_with_fewer_images_and_workers_is_scaled_and_less_certain(
    config: RunConfig, trained: Any
) -> None:
    exact = known(predict(config, calibration=measured(config)))
    config = replace(config, workers=Workers(2, 2), batch=BatchRecipe(size=40))
    scaled = known(predict(config, calibration=measured(config, notes=["Measured with 1 worker."])))
    assert scaled.training_s.median / exact.training_s.median == pytest.approx(5 / 20 * 2, rel=0.05)  # 5 steps of 20
    assert scaled.training_s.relative_width > 1.2 * exact.training_s.relative_width
    assert "Measured with 1 worker." in scaled.notes


def on_gpus(config: RunConfig) -> RunConfig:
    return replace(
        config,
        resources=Resources(gpus_per_worker=1),
        workers=Workers(8, 8),
        precision="bfloat16",
        model=ModelRecipe(name="resnet50"),
        data=DataRecipe(root="/data", num_samples=1_281_167),
        batch=BatchRecipe(size=2048),
        duration=Duration(Fraction(90), "epochs"),
    )


def test_published_figures_are_used_for_gpus(config: RunConfig) -> None:
    found = known(predict(on_gpus(config), gpu="NVIDIA A100-SXM4-80GB"))
    assert found.evidence == "published"
    assert found.gpus == 8
    assert found.training_s.contains(90 * 1_281_167 / 16_621)
    assert found.gpu_hours.median == pytest.approx(8 * found.wall_s.median / 3600)


def test_a_given_speed_replaces_all_evidence(config: RunConfig, trained: Any) -> None:
    trained(config, "same", **TIMES)
    found = known(predict(config, assumed=Assumptions(images_per_s=5.0)))
    assert (found.evidence, found.training_s.median) == ("assumption", pytest.approx(40))


def test_failures_add_to_a_long_run_on_many_nodes(config: RunConfig) -> None:
    config = replace(on_gpus(config), checkpoint=CheckpointConfig(every=Duration(Fraction(10), "epochs")))
    rare, often = (known(predict(config, gpu="H100", assumed=Assumptions(mtbf_hours=hours))) for hours in (1e9, 1.0))
    assert rare.failures_s == Interval.exactly(0)
    assert often.failures_s.median > 60
    assert often.wall_s.median > rare.wall_s.median


def test_notes_say_what_is_assumed(config: RunConfig) -> None:
    config = replace(config, stop_at=StopAtRecipe(top1=0.9), workers=Workers(1, 2))
    notes = " ".join(known(predict(config, assumed=Assumptions(images_per_s=5.0))).notes)
    for words in (
        "workers may change",
        "val images is assumed: 25",
        "ends earlier if it reaches its target",
        "start is assumed",
        "1/3 to 1",
    ):
        assert words in notes


def test_without_the_number_of_images_there_is_no_forecast(config: RunConfig, trained: Any) -> None:
    unknown = replace(config, data=replace(config.data, num_samples=None))
    assert predict(unknown, assumed=Assumptions(images_per_s=5.0)) is None
    assert predict(unknown, assumed=Assumptions(images_per_s=5.0), num_samples=100) is not None
    trained(config, "with-the-same-images", **TIMES)
    assert known(predict(unknown)).training_s.median == pytest.approx(40)
