"""Numbers that are not finite stand as null in the record of a run: everyone who reads it says so, and nobody fails."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.api import load_run
from launcher.console import Progress, summary_lines
from launcher.planning.preemption import stop_s
from launcher.report.goodput import goodput
from launcher.run.directory import RunDirectory
from launcher.run.progress import images_per_s
from resnet_dist.telemetry.metrics_file import read_metrics

Capture = pytest.CaptureFixture[str]
Record = dict[str, Any]
Change = Callable[[Record], Record]

STARTED = {"kind": "event", "step": 0, "event": "started", "detail": {"total_steps": 2}}
SAVED = {"kind": "event", "step": 2, "event": "checkpoint", "detail": {"stalled_s": 1.0, "write_s": 2.0}}
STEPS = [{"kind": "train", "step": step} for step in (1, 2)]
TRAIN = dict.fromkeys(
    ["epoch", "loss", "top1", "gradient_norm", "learning_rate", "images_per_s", "step_time_s", "time_left_s"]
)
EVAL = dict.fromkeys(["epoch", "top1", "top5", "loss", "num_samples", "time_s"])
SUMMARY = dict.fromkeys(["top1", "top5", "loss", "num_samples", "time_s", "images_per_s"])
PLAIN = {"step": 2, "duration": "2 steps", "finished": True}

CHANGES: dict[str, Change] = {
    "null": dict,
    "NaN": lambda numbers: dict.fromkeys(numbers, math.nan),  # before it is written
    "missing": lambda numbers: {},
}


def records(change: Change) -> list[Record]:
    train = [{**step, **change(TRAIN)} for step in STEPS]
    return [STARTED, *train, {"kind": "eval", "step": 2, **change(EVAL)}, SAVED]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def written(run: RunDirectory, change: Change) -> RunDirectory:
    number = run.begin_attempt({"workers": 1})
    run.logs(number).log(0).write_text("rank 0 of 1\n")
    run.metrics.write_text("".join(f"{json.dumps(record)}\n" for record in records(change)))
    run.end_attempt(number, 0, "finished", 2)
    run.mark_finished({**PLAIN, **change(SUMMARY)})
    return run


def live_lines(change: Change) -> list[str]:
    stream = io.StringIO()
    for record in records(change):
        Progress(stream).record(record)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(("kind", "word"), [("null", "not finite"), ("NaN", "not finite"), ("missing", "n/a")])
def test_the_console_says_what_is_not_finite_and_what_is_missing(kind: str, word: str, tmp_path: Path) -> None:
    first, _, evaluated = live_lines(CHANGES[kind])
    assert f"loss {word}  LR {word}  {word} images/s  left {word}" in first
    assert f"evaluated: top-1 {word}  loss {word}" in evaluated
    lines = summary_lines(RunDirectory(tmp_path, "run"), {**PLAIN, **CHANGES[kind](SUMMARY)})
    assert f"  top-1        {word} of {word} val images" in lines
    assert not any("nan" in line for line in lines)


def warnings(numbers: Record) -> list[str]:
    summary = {**PLAIN, "top1": 0.5, "top5": 0.75, "loss": 1.0, "num_samples": 355, "num_nonfinite": 0, **numbers}
    return [line for line in summary_lines(RunDirectory(Path("x"), "run"), summary) if "WARNING" in line]


@pytest.mark.parametrize("number", [None, math.nan])
def test_the_summary_warns_of_an_evaluation_that_is_not_finite(number: float | None) -> None:
    [line] = warnings({"top1": number, "top5": number, "loss": number, "num_nonfinite": 12})
    assert line.startswith("WARNING: the last evaluation is not finite: 12 of 355 samples. Probable cause: the weights")
    [line] = warnings({"loss": number})  # too large for its type, though no logit is
    assert line.startswith("WARNING: the last evaluation is not finite: loss. ")


def test_the_summary_does_not_warn_of_an_evaluation_that_is_finite() -> None:
    assert warnings({}) == []


READERS: dict[str, Callable[[RunDirectory], object]] = {
    "status": lambda run: cli.main(["status", str(run.path)]),
    "status --json": lambda run: cli.main(["status", str(run.path), "--json"]),
    "list": lambda run: cli.main(["list", str(run.storage)]),
    "list --json": lambda run: cli.main(["list", str(run.storage), "--json"]),
    "report": lambda run: cli.main(["report", str(run.path)]),
    "compare": lambda run: cli.main(["compare", str(run.path), str(run.path)]),
    "compare --json": lambda run: cli.main(["compare", str(run.path), str(run.path), "--json"]),
    "logs": lambda run: cli.main(["logs", str(run.path)]),
    "goodput": lambda run: int(goodput(run).useful),
    "images per second": lambda run: int(images_per_s(run)),
}


@pytest.mark.parametrize("kind", ["null", "missing"])
@pytest.mark.parametrize("reader", READERS)
def test_a_record_without_numbers_fails_no_reader(
    reader: str, kind: str, small_run: RunDirectory, capsys: Capture
) -> None:
    assert READERS[reader](written(small_run, CHANGES[kind])) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "nan" not in output.out.lower()
    if reader.endswith("--json"):
        json.loads(output.out, parse_constant=refuse)


@pytest.mark.parametrize("verb", ["status", "list"])
def test_status_and_list_say_what_is_not_finite(verb: str, small_run: RunDirectory, capsys: Capture) -> None:
    run = written(small_run, CHANGES["null"])
    assert cli.main([verb, str(run.path if verb == "status" else run.storage)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert {"status": "loss not finite, top-1 not finite", "list": "100 not finite not finite"}[verb] in shown


def test_status_for_machines_tells_what_is_not_finite_from_what_is_not_known(
    small_run: RunDirectory, capsys: Capture
) -> None:
    for kind, not_finite in (("null", ["loss", "images_per_s", "top1"]), ("missing", [])):
        READERS["status --json"](written(small_run, CHANGES[kind]))
        found = json.loads(capsys.readouterr().out)
        assert (found["top1"], found["not_finite"]) == (None, not_finite)


@pytest.mark.parametrize("kind", ["null", "missing"])
def test_a_notice_is_compared_with_the_times_that_are_known(kind: str, small_run: RunDirectory) -> None:
    run = written(small_run, CHANGES[kind])
    assert stop_s(run) is None
    timed = {"kind": "train", "step": 2, "step_time_s": 4.0}
    unknown = {**SAVED, "detail": {"stalled_s": None, "write_s": None}}
    with run.metrics.open("a") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in (timed, unknown))
    assert stop_s(run) == 3.0 + 2 * 4.0


def test_a_null_of_a_table_is_nan_in_a_column_of_numbers(small_run: RunDirectory) -> None:
    pandas = pytest.importorskip("pandas")
    table = load_run(written(small_run, CHANGES["null"]).path).metrics
    assert {table[name].dtype for name in ("loss", "top1", "top5")} == {pandas.Series([0.5]).dtype}
    assert table.top5.isna().all()


def change_eval(run: RunDirectory, **numbers: object) -> None:
    lines = [{**record, **numbers} if record["kind"] == "eval" else record for record in read_metrics(run.metrics)]
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_compare_takes_null_for_equal_to_null_and_for_different_from_a_number(
    small_run: RunDirectory, capsys: Capture
) -> None:
    other = RunDirectory(small_run.storage, "other")
    shutil.copytree(written(small_run, CHANGES["null"]).path, other.path)
    both = ["compare", str(small_run.path), str(other.path)]
    assert cli.main(both) == 0
    change_eval(other, top1=0.25)
    assert cli.main(both) == 1
    assert "not finite" in capsys.readouterr().out


def test_compare_writes_json_for_machines_whatever_the_configs_hold(small_run: RunDirectory, capsys: Capture) -> None:
    other = RunDirectory(small_run.storage, "other")
    shutil.copytree(written(small_run, CHANGES["null"]).path, other.path)
    other.write_config("schedule: {peak_lr: .inf}\n")
    assert cli.main(["compare", str(small_run.path), str(other.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["config"]["schedule.peak_lr"] == {"a": 0.1, "b": None}


MODEL = """
import torch

class NotFiniteInEvaluation(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(3, num_classes)

    def forward(self, images):
        logits = self.linear(images.mean((2, 3)))
        return logits if self.training else logits * torch.nan
"""


@pytest.fixture
def config(
    tmp_path: Path, write_images: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[RunDirectory, list[str]]:
    """The run directory and the command of a short run of a user's model."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "users_model_of_not_finite_test.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "spoilt.yaml"
    content = {
        "schema": 1,
        "name": "spoilt",
        "storage": str(tmp_path / "runs"),
        "place": "local",
        "duration": "3 steps",
        "model": {"name": "users_model_of_not_finite_test:NotFiniteInEvaluation", "num_classes": 2},
        "data": {"root": str(write_images(tmp_path / "images")), "resolution": 8},
        "batch": {"size": 4},
        "schedule": {"peak_lr": 0.1},
        "evaluate": {"every": "1 step"},
        "checkpoint": {"every": "1 step", "keep": 1, "keep_best": 1},
        "faults": {"max_failures": 0},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    file.write_text(json.dumps(content))  # which is YAML too
    return RunDirectory(tmp_path / "runs", "spoilt"), ["train", str(file)]


def test_a_run_whose_evaluations_are_not_finite_ends_as_any_other(
    config: tuple[RunDirectory, list[str]], capsys: Capture
) -> None:
    run, command = config
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("evaluated: top-1 not finite  loss not finite  (8 images") == 3
    assert "WARNING: the last evaluation is not finite: 8 of 8 samples." in printed
    finished = json.loads(run.finished_file.read_text(), parse_constant=refuse)
    assert {name: finished[name] for name in ("step", "top1", "top5", "loss", "num_samples", "num_nonfinite")} == {
        "step": 3, "top1": None, "top5": None, "loss": None, "num_samples": 8, "num_nonfinite": 8,
    }  # fmt: skip
    lines = [json.loads(line, parse_constant=refuse) for line in run.metrics.read_text().splitlines()]
    evaluations = [(line["step"], line["top1"], line["loss"]) for line in lines if line["kind"] == "eval"]
    assert evaluations == [(1, None, None), (2, None, None), (3, None, None)]
    state = json.loads((run.checkpoints / "step-00000003" / "state.json").read_text(), parse_constant=refuse)
    assert state["metrics"] == {"top1": None, "top5": None, "loss": None}
    warned = [line for line in run.logs(1).log(0).read_text().splitlines() if "8 of 8 samples have logits" in line]
    assert ["after step 3 " in line for line in warned] == [False, False, True]

    assert cli.main(command) == 0
    assert "finished already" in capsys.readouterr().out
    assert [attempt.exit_code for attempt in run.attempts()] == [0]
    for reader in ("status", "list", "report", "compare"):
        assert READERS[reader](run) == 0
        output = capsys.readouterr()
        assert (output.err, "nan" in output.out) == ("", False)
        assert "top-1 not finite" in output.out or reader != "status"
