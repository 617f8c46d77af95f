"""The public surface: names that users rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launcher
from launcher import cli
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import RULES
from resnet_dist import errors


def test_python_surface() -> None:
    assert launcher.__all__ == ["Run", "fit", "load_run"]


def test_exit_codes() -> None:
    assert sorted(int(code) for code in ExitCode) == [0, 1, 64, 65, 69, 70, 75, 76, 78, 79, 130]


def test_every_error_class_has_its_own_rule() -> None:
    def tree(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    ruled = {rule.error for rule in RULES}
    missing = [kind for kind in tree(errors.TrainingError) if kind not in ruled and kind is not errors.MissingPackage]
    assert missing == []


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "demo",
        "plan",
        "prepare",
        "config",
        "doctor",
        "render",
        "submit",
        "status",
        "logs",
        "watch",
        "cancel",
        "list",
        "report",
        "compare",
        "export",
        "evaluate",
        "predict",
    ],
)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: launcher" in capsys.readouterr().out


def test_a_wrong_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 64
    assert "choose from" in capsys.readouterr().err


def test_plan_of_the_eight_node_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[2] / "configs" / "rn50_8node.yaml"
    assert cli.main(["plan", str(config)]) == 0
    plan = capsys.readouterr().out
    # 44 epochs × 1,281,167 images / 8,192 a step, rounded up; 8,192 / 64 workers; 8,192 / 64 a span
    for fact in ("6,882 = 44 epochs", "64 on 8 nodes", "128 images per worker", "128 spans of 64 images", "17"):
        assert fact in plan
    assert "each on one worker: nothing is exchanged" in plan


def test_schema_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert {"model", "data", "batch", "schedule", "workers"} <= json.loads(capsys.readouterr().out)["properties"].keys()


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_fit_and_load_run(tmp_path: Path, no_cluster: None, write_images: Callable[[Path], Path]) -> None:
    config: dict[str, Any] = {
        "schema": 1,
        "name": "notebook",
        "storage": str(tmp_path / "runs"),
        "place": "local",
        "duration": "3 steps",
        "model": {"name": "resnet20", "num_classes": 2},
        "data": {"root": str(write_images(tmp_path / "images")), "resolution": 8},
        "batch": {"size": 8},
        "schedule": {"peak_lr": 0.1},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    run = launcher.fit(config, batch={"size": 6})
    assert run.finished
    assert run.config.batch.size == 6
    again = launcher.load_run(tmp_path / "runs" / "notebook")
    table = again.metrics
    assert list(table[table.kind == "train"].step) == [1, 2, 3]
    assert list(again.train.step) == [1, 2, 3]
    assert list(again.evaluations.step) == [2, 3]  # after the first epoch, and at the end
    assert "started" in list(again.events.event)
    assert again.summary is not None
    assert again.summary["num_samples"] == 8
    assert again.best is not None
    assert again.best.top1 == max(again.evaluations.top1)
    assert list(again.checkpoints) == [2, 3]
    assert again.classes == ("cat", "dog")
    assert not again.model(step=3).training
