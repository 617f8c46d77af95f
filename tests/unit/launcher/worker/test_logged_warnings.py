"""What a start leaves out, replaces or initialises again reaches the screen and metrics.jsonl, once per start."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launcher import cli
from launcher.run.directory import RunDirectory
from launcher.worker.logged_warnings import LoggedWarnings
from resnet_dist.data.index import progress as index_progress
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.telemetry.metrics_file import read_metrics


def test_warnings_of_resnet_dist_are_taken_once_from_any_thread_until_closed() -> None:
    logger = logging.getLogger("resnet_dist.some.module")
    collected = LoggedWarnings()
    logger.info("no warning")
    logging.getLogger("of.a.user").warning("not ours")
    thread = threading.Thread(target=logger.warning, args=("%d of %d", 2, 3))
    thread.start()
    thread.join()
    logger.error("worse")
    assert collected.take() == ["2 of 3", "worse"]
    assert collected.take() == []
    collected.close()
    logger.warning("too late")
    assert collected.take() == []


@pytest.fixture
def command(tmp_path: Path, write_images: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two steps with a stray file, weights of a larger head, and a model with more classes than the data."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    images = write_images(tmp_path / "images")
    (images / "train" / "cat" / "notes.txt").touch()
    weights = build_model(ModelRecipe(name="resnet20", num_classes=10), seed=0).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    content = {
        "schema": 1,
        "name": "run",
        "storage": str(tmp_path / "runs"),
        "place": "local",
        "duration": "2 steps",
        "model": {"name": "resnet20", "num_classes": 3, "weights": str(tmp_path / "weights.pt")},
        "data": {"root": str(images), "resolution": 8},
        "batch": {"size": 9},
        "schedule": {"peak_lr": 0.1},
        "faults": {"max_failures": 0},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(content))  # which is YAML too
    return ["train", str(file)]


def test_a_start_says_what_it_leaves_out_and_a_resumed_one_does_not_load_the_weights(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_progress, "EVERY_S", 0.0)

    def told() -> list[str]:
        assert cli.main(command) == 0
        output = capsys.readouterr().out
        assert "top-5" not in output  # 3 classes
        return [line for line in output.splitlines() if "WARNING" in line]

    left_out, fewer, repeats, head = told()
    assert left_out.endswith("train: left out files without the suffix of an image: 1, for example cat/notes.txt")
    assert "has 2 classes and the model predicts 3" in fewer
    assert repeats == "WARNING: batch.size 9 is more than the 8 training images: a step repeats some"
    assert head.endswith(
        "2 of the model's 116 tensors, for example fc.weight, [10, 64] in the file and [3, 64] in the model"
    )

    command += ["duration=3 steps"]
    (tmp_path / "weights.pt").unlink()
    assert told() == [left_out, fewer, repeats]

    run = RunDirectory(tmp_path / "runs", "run")
    events = [record["event"] for record in read_metrics(run.metrics) if record["kind"] == "event"]
    names = [event for event in events if event != "stage"]
    assert names[:3] == ["indexing", "started", "warning"]  # the index is made before the attempt has begun to train
    warnings = [record for record in read_metrics(run.metrics) if record.get("event") == "warning"]
    told_twice = [left_out, fewer, repeats, head, left_out, fewer, repeats]
    assert [f"WARNING: {record['detail']['text']}" for record in warnings] == told_twice
    assert [record["step"] for record in warnings] == [0, 0, 0, 0, 2, 2, 2]
    evaluations = [record for record in read_metrics(run.metrics) if record["kind"] == "eval"]
    assert {record["top5"] for record in evaluations} == {None}
