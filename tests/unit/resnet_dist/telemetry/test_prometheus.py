"""The text file for Prometheus, read by Prometheus's own parser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from resnet_dist.telemetry.prometheus import PrometheusFile

STARTED = {"kind": "event", "step": 0, "event": "started", "detail": {"total_steps": 40}}
TRAIN = {"kind": "train", "step": 10, "epoch": 1.25, "loss": 0.5, "learning_rate": 1e-7, "images_per_s": 640.0}
EVALUATED = {"kind": "eval", "step": 10, "top1": 0.75, "top5": None, "loss": 1.5, "num_samples": 100}


def finished(step: int) -> dict[str, Any]:
    return {"kind": "event", "step": step, "event": "finished", "detail": {}}


def read(file: Path) -> dict[str, dict[str, float]]:
    """{name of a family: {labels: value}}; raises ValueError for text that is not in the format."""
    return {
        family.name: {",".join(f"{k}={v}" for k, v in sorted(one.labels.items())): one.value for one in family.samples}
        for family in text_string_to_metric_families(file.read_text(encoding="utf-8"))
    }


def state(file: Path) -> str:
    [name] = [labels.partition("state=")[2] for labels, value in read(file)["resnet_state"].items() if value == 1.0]
    return name


def test_the_file_has_the_newest_numbers_with_units_in_their_names(tmp_path: Path) -> None:
    file = tmp_path / "new" / "run.prom"
    sink = PrometheusFile(file, "rn50", attempt=3)
    for record in (STARTED, {**TRAIN, "step": 5}, TRAIN, EVALUATED):
        sink.write(record)
    found = read(file)
    moment = found.pop("resnet_last_update_timestamp_seconds")["run=rn50"]
    assert abs(moment - time.time()) < 60
    found.pop("resnet_state")
    assert {name: values["run=rn50"] for name, values in found.items()} == {
        "resnet_planned_steps": 40.0,
        "resnet_step": 10.0,
        "resnet_epoch": 1.25,
        "resnet_loss": 0.5,
        "resnet_learning_rate": 1e-7,
        "resnet_images_per_second": 640.0,
        "resnet_evaluation_step": 10.0,
        "resnet_evaluation_top1_ratio": 0.75,
        "resnet_evaluation_loss": 1.5,
        "resnet_attempts": 3.0,  # the parser takes _total off the name of a counter
    }
    assert [path.name for path in file.parent.iterdir()] == ["run.prom"]


def test_every_family_has_a_type_and_a_help_text(tmp_path: Path) -> None:
    sink = PrometheusFile(tmp_path / "run.prom", "rn50", 1)
    sink.write(STARTED)
    sink.write({**TRAIN, "memory_bytes": 5, "gpu_memory_bytes": 6})
    families = list(text_string_to_metric_families((tmp_path / "run.prom").read_text()))
    assert {family.type for family in families} == {"gauge", "counter"}
    assert all(family.documentation.endswith(".") for family in families)


def test_a_number_that_is_not_finite_is_nan_and_not_the_one_before(tmp_path: Path) -> None:
    sink = PrometheusFile(tmp_path / "run.prom", "rn50", 1)
    for record in (EVALUATED, {**EVALUATED, "top1": None, "loss": float("inf")}):
        sink.write(record)
    found = read(tmp_path / "run.prom")
    assert str(found["resnet_evaluation_top1_ratio"]["run=rn50"]) == "nan"
    assert found["resnet_evaluation_loss"]["run=rn50"] == float("inf")


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\nb", "ä"])
def test_a_label_is_escaped(name: str, tmp_path: Path) -> None:
    PrometheusFile(tmp_path / "run.prom", name, 1).write(STARTED)
    assert read(tmp_path / "run.prom")["resnet_step"] == {f"run={name}": 0.0}


def test_the_state_tells_how_a_run_ended(tmp_path: Path) -> None:
    file = tmp_path / "run.prom"
    for last, expected in ((finished(40), "finished"), ({**finished(7), "event": "stopped"}, "stopped"), (TRAIN, "")):
        sink = PrometheusFile(file, "rn50", 1)
        for record in (STARTED, {**TRAIN, "time_left_s": 1.5}):
            sink.write(record)
        assert state(file) == "training"
        assert read(file)["resnet_time_left_seconds"] == {"run=rn50": 1.5}
        sink.write(last)
        sink.close()
        assert state(file) == (expected or "failed")
        assert "resnet_time_left_seconds" not in read(file)


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        PrometheusFile(tmp_path / "file" / "run.prom", "rn50", 1).write(STARTED)
