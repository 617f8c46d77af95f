from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launcher import cli
from launcher.errors import UsageError, UserCodeError
from launcher.inference import evaluate
from launcher.inference.accuracy import interval_text, wilson_interval
from launcher.inference.evaluate import Evaluated, evaluate_checkpoint, threads_of
from launcher.inference.trained import saved
from resnet_dist.data import index_of
from resnet_dist.errors import CheckpointError, DataError
from resnet_dist.inference import TrainedModel
from resnet_dist.inference.predictions import probabilities_of
from resnet_dist.telemetry.metrics_file import read_metrics
from resnet_dist.training.device import Worker
from tests.unit.launcher.inference.conftest import CLASSES, write_classes

NUM = 21  # val images


def recorded(run: Path, step: int) -> dict[str, Any]:
    """The run's own evaluation after a step."""
    return next(one for one in read_metrics(run / "metrics.jsonl") if one["kind"] == "eval" and one["step"] == step)


def evaluated(run: Path, **request: Any) -> Evaluated:
    return evaluate_checkpoint(saved(run), **request)


def evaluated_json(run: Path, *arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert cli.main(["evaluate", str(run), "--json", *arguments]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("step", [2, 6])
def test_an_evaluation_is_bit_equal_to_the_one_of_the_run(trained_run: Path, step: int) -> None:
    found = evaluated(trained_run / "checkpoints" / f"step-{step:08d}")
    own = recorded(trained_run, step)
    assert own["weights"] == "ema"
    assert {**own, **found.evaluation.record()} == own
    assert found.step == step


def test_the_newest_checkpoint_of_a_run_is_evaluated_and_nothing_is_written(trained_run: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in trained_run.rglob("*"))
    assert evaluated(trained_run).step == 6
    assert sorted(path.stat().st_mtime_ns for path in trained_run.rglob("*")) == before


def test_the_weights_of_the_last_step_are_others(trained_run: Path) -> None:
    found = evaluated(trained_run, weights="model")
    assert (found.weights, found.evaluation.weights) == ("model", "model")
    assert found.evaluation.loss != recorded(trained_run, 6)["loss"]


def test_flip_averages_the_probabilities_of_mirror_images(trained_run: Path) -> None:
    recipe = saved(trained_run).recipe
    index = index_of(recipe.data, "val")
    worker = Worker(0, 1, torch.device("cpu"), 1)
    one, other = saved(trained_run).load(), saved(trained_run).load()
    other.model.register_forward_pre_hook(lambda _, inputs: (inputs[0].flip(3),))
    parts = [np.concatenate([found for _, found in probabilities_of(model, index, worker)]) for model in (one, other)]
    expected = (parts[0] + parts[1]) / 2
    flipped = evaluated(trained_run, flip=True)
    assert flipped.predictions is not None
    assert list(flipped.predictions.predicted) == list(expected.argmax(axis=1))
    np.testing.assert_allclose(flipped.predictions.probabilities, expected.max(axis=1), rtol=1e-5)
    assert np.abs(parts[0] - parts[1]).max() > 1e-3  # else this would show nothing
    assert math.isclose(-np.log(expected[range(NUM), index.labels]).mean(), flipped.evaluation.loss, rel_tol=1e-5)


def test_predictions_have_the_counts_of_the_evaluation(trained_run: Path) -> None:
    found = evaluated(trained_run)
    assert found.predictions is not None
    assert list(found.predictions.rows) == list(range(NUM))
    right = int((found.predictions.predicted == found.predictions.labels).sum())
    assert right / NUM == found.evaluation.top1
    assert math.isclose(-np.log(found.predictions.of_labels).mean(), found.evaluation.loss, rel_tol=1e-6)


def test_classes_of_another_data_set_are_matched_by_name(
    trained_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for name in ("aardvark", "gnu", "cat"):  # other labels: aardvark comes first
        shutil.copytree(images / "val" / ("dog" if name == "aardvark" else name), other / name)
    found = evaluated_json(trained_run, "--data", str(other), capsys=capsys)
    own = evaluated_json(trained_run, capsys=capsys)
    assert found["extra_classes"] == ["aardvark"]
    assert found["missing_classes"] == ["ant", "bee", "dog", "elk", "fox"]
    assert (found["label"]["num_samples"], found["label"]["num_left_out"]) == (6, 3)
    for name in ("cat", "gnu"):
        assert [one["num_correct"] for one in found["classes"] if one["class"] == name] == [
            one["num_correct"] for one in own["classes"] if one["class"] == name
        ]


def test_a_data_set_with_a_val_folder_is_the_same_as_its_val_folder(trained_run: Path, images: Path) -> None:
    whole, val = (evaluated(trained_run, data=str(root)) for root in (images, images / "val"))
    assert whole.evaluation == val.evaluation == evaluated(trained_run).evaluation


def test_a_data_set_without_a_class_of_the_model_is_refused(trained_run: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "others", ("hen", "ibis"))
    with pytest.raises(DataError, match=r"has no class of the model. It has hen, ibis; the model predicts ant, bee"):
        evaluated(trained_run, data=str(tmp_path / "others"))


def test_a_folder_that_is_no_data_set_is_refused(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images; expected ROOT/val/CLASS"):
        evaluated(trained_run, data=str(tmp_path))
    with pytest.raises(DataError, match="No such file"):
        evaluated(trained_run, data=str(tmp_path / "nothing"))


def test_broken_images_are_left_out_and_named(
    trained_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(images / "val", tmp_path / "other"))
    (other / "cat" / "1.png").write_bytes(b"no image")
    content = bytearray((other / "dog" / "0.png").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    (other / "dog" / "0.png").write_bytes(content)  # only reading its pixels shows it
    found = evaluated_json(trained_run, "--data", str(other), capsys=capsys)
    assert (found["label"]["num_samples"], found["label"]["num_bad"]) == (NUM - 2, 2)
    assert found["broken"] == ["cat/1.png", "dog/0.png"]
    assert cli.main(["evaluate", str(trained_run), "--data", str(other)]) == 0
    assert "2 broken images: cat/1.png, dog/0.png" in capsys.readouterr().out


def test_another_resolution_is_in_the_label(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated_json(trained_run, "--resolution", "24", capsys=capsys)
    assert (found["label"]["resolution"], found["label"]["crop"], found["label"]["weights"]) == (24, 0.875, "ema")
    assert found["loss"] != recorded(trained_run, 6)["loss"]


@pytest.mark.parametrize("arguments", [["--resolution", "7"], ["--workers", "0"], ["--resolution", "70000"]])
def test_wrong_numbers_are_usage_errors(
    trained_run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained_run), *arguments]) == 64
    assert "Allowed: a whole number from" in capsys.readouterr().err


def test_an_average_that_the_run_has_not_is_a_usage_error(trained_run: Path) -> None:
    found = saved(trained_run)
    without = dataclasses.replace(found, recipe=dataclasses.replace(found.recipe, ema=type(found.recipe.ema)()))
    with pytest.raises(UsageError, match="the run has no moving average"):
        evaluate_checkpoint(without, weights="ema")


def test_a_damaged_checkpoint_of_a_run_is_skipped_with_a_warning(
    copied_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = copied_run / "checkpoints" / "step-00000006" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert evaluated(copied_run).step == 4
    assert "step-00000006" in caplog.text
    with pytest.raises(CheckpointError, match="was altered"):
        saved(copied_run / "checkpoints" / "step-00000006")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(copied_run: Path) -> None:
    for file in copied_run.glob("checkpoints/*/state.json"):
        file.write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        saved(copied_run)


def test_what_is_no_checkpoint_is_named_with_what_is_allowed(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = trained_run / "checkpoints" / "step-00000006"
    with pytest.raises(UsageError, match=f"is a file of a checkpoint. Allowed: its folder, {checkpoint}"):
        saved(checkpoint / "model.safetensors")
    with pytest.raises(UsageError, match=f"Allowed: {trained_run}, or one of the checkpoints"):
        saved(trained_run / "checkpoints")
    with pytest.raises(UsageError, match="there is no checkpoint here"):
        saved(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        saved(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="has saved no checkpoint yet"):
        saved(tmp_path)


def test_the_best_checkpoint_is_the_one_with_the_highest_recorded_top1(
    trained_run: Path, copied_run: Path, tmp_path: Path
) -> None:
    top1 = {step: recorded(trained_run, step)["top1"] for step in (2, 4, 6)}
    assert saved(trained_run, best=True).step == max(top1, key=lambda step: (top1[step], step))
    with pytest.raises(UsageError, match="is one checkpoint"):
        saved(trained_run / "checkpoints" / "step-00000002", best=True)


def test_a_checkpoint_outside_of_a_run_is_evaluated(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run / "checkpoints" / "step-00000006", tmp_path / "model")
    found = evaluate_checkpoint(saved(tmp_path / "model"), num_threads=1)
    assert found.evaluation.top1 == recorded(trained_run, 6)["top1"]


def test_an_old_checkpoint_has_the_classes_of_the_index_of_its_run(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_classes(monkeypatch)
    other = write_classes(tmp_path / "other", ("cat", "zebu"))
    found = evaluated(trained_run, data=str(other))
    assert found.images is not None
    assert found.images.index.classes == CLASSES
    assert found.images.extra == ("zebu",)


def test_without_any_names_the_classes_are_those_of_the_data(
    copied_run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_classes(monkeypatch)
    shutil.rmtree(copied_run / "index")
    found = evaluated(copied_run, data=str(images))
    assert found.evaluation.top1 == recorded(copied_run, 6)["top1"]


def without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints be without class names, as those of version 0.1."""
    model_of = evaluate.model_of
    monkeypatch.setattr(evaluate, "model_of", lambda *given: dataclasses.replace(model_of(*given), classes=()))


def test_outputs_that_are_not_finite_are_an_error(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_finite(*given: Any) -> TrainedModel:
        trained = saved(trained_run).load()
        with torch.no_grad():
            trained.model.get_parameter("fc.bias")[0] = math.inf
        return trained

    monkeypatch.setattr(evaluate, "model_of", not_finite)
    assert cli.main(["evaluate", str(trained_run), "--json"]) == 65
    captured = capsys.readouterr()
    assert f"not finite for {NUM} of {NUM} images" in captured.err
    found = json.loads(captured.out)
    assert (found["top1"], found["calibration"], found["num_correct"]) == (None, None, 0)


def test_the_text_has_the_numbers_with_their_label(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(trained_run)]) == 0
    text = capsys.readouterr().out
    own = recorded(trained_run, 6)
    bounds = wilson_interval(own["top1"], NUM)
    for part in (
        "measured on  21 images at 16 px, central crop 0.875, moving average of the weights, float32",
        "step         6",
        f"{100 * own['top1']:.2f} %  ({round(own['top1'] * NUM)} of {NUM}; 95 %: {interval_text(bounds)})",
        f"{100 * own['top5']:.2f} %",
        f"{own['loss']:.4f}",
        "calibration",
        "most confused",
    ):
        assert part in text


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_of_long_class_names_fit_into_the_terminal(
    columns: int,
    trained_run: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = tuple(f"{name} with a very long name that no terminal of forty columns can show" for name in CLASSES)
    model_of = evaluate.model_of
    monkeypatch.setattr(evaluate, "model_of", lambda *given: dataclasses.replace(model_of(*given), classes=names))
    monkeypatch.setattr(evaluate, "class_names", lambda *given: names)
    root = images.with_name("long")
    if not root.exists():
        for name in names:
            shutil.copytree(images / "val" / name[:3], root / name)
    assert cli.main(["evaluate", str(trained_run), "--data", str(root)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.partition("\nclasses")[2].partition("\n--output")[0].splitlines())) <= columns


def test_output_has_all_results_as_files(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    found = evaluated_json(trained_run, "--output", str(folder), capsys=capsys)
    assert json.loads((folder / "evaluation.json").read_text()) == found
    rows = [line.split(",") for line in (folder / "confusion.csv").read_text().splitlines()]
    assert rows[0] == ["class", *CLASSES]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == NUM
    assert sum(int(row[number]) for number, row in enumerate(rows) if number) == found["num_correct"]
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "path,true,predicted,probability,probability_of_true"
    assert len(lines) == NUM + 1
    assert len((folder / "classes.csv").read_text().splitlines()) == len(CLASSES) + 1
    with Image.open(folder / "mistakes.png") as sheet, Image.open(folder / "confusion.png") as matrix:
        assert min(*sheet.size, *matrix.size) > 300


def test_a_folder_that_cannot_be_made_is_refused_before_the_evaluation(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "model_of", None)
    (tmp_path / "file").write_text("")
    for name, problem in (("file", "File exists"), ("file/inside", "Not a directory")):
        assert cli.main(["evaluate", str(trained_run), "--output", str(tmp_path / name)]) == 64
        expected = f"{name}: cannot be created: {problem}. Allowed: a folder that you can write to"
        assert expected in capsys.readouterr().err


def test_the_worst_mistakes_are_the_surest(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated_json(trained_run, capsys=capsys)
    sure = [one["probability"] for one in found["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    assert len(sure) == NUM - found["num_correct"]
    assert all(one["true"] != one["predicted"] and one["path"].startswith("val/") for one in found["mistakes"])


def test_an_error_of_the_users_metric_is_one_of_the_users_code(trained_run: Path) -> None:
    found = saved(trained_run)
    own = dataclasses.replace(found.recipe.evaluate, metrics=("torch:argmax",))  # returns [n]; on labels it raises
    with pytest.raises(UserCodeError, match="TypeError"):
        evaluate_checkpoint(dataclasses.replace(found, recipe=dataclasses.replace(found.recipe, evaluate=own)))


def test_a_worker_has_the_threads_that_the_config_of_the_run_gives_it(copied_run: Path) -> None:
    file = copied_run / "config.yaml"
    text = file.read_text()
    assert "cpus_per_worker: 1" in text
    file.write_text(text.replace("cpus_per_worker: 1", "cpus_per_worker: 6"))
    found = saved(copied_run)
    assert [threads_of(found, workers, torch.device("cpu")) for workers in (1, 2, 100)] == [6, 3, 1]
    file.write_text("unreadable: [")
    assert threads_of(found, 1, torch.device("cpu")) == len(os.sched_getaffinity(0))
