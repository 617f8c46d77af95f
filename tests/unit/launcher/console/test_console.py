"""What a person sees."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest

from launcher.console import Progress, left_out_text, summary_lines
from launcher.run.directory import RunDirectory


def test_train_and_eval_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.record({"kind": "event", "step": 0, "event": "started", "detail": {"total_steps": 200}})
    train = {"kind": "train", "step": 10, "epoch": 0.5, "loss": 1.25, "learning_rate": 0.1}
    progress.record({**train, "images_per_s": 1234.4, "time_left_s": 61.2})
    evaluated = {"kind": "eval", "step": 20, "epoch": 1.0, "top1": 0.5, "top5": 0.75, "loss": 1.0}
    progress.record({**evaluated, "num_samples": 1000, "time_s": 2.0})
    first, second = stream.getvalue().splitlines()
    assert first == "epoch   0.50  step  10/200  loss 1.2500  LR 0.1  1,234 images/s  left 1:01"
    assert "top-1 50.00%" in second
    assert "top-5 75.00%" in second
    assert "1,000 images" in second


@pytest.mark.parametrize("top5", [None, math.nan])
def test_top_5_is_left_out_where_it_is_no_number(top5: float | None, tmp_path: Path) -> None:
    stream = io.StringIO()
    numbers = {"step": 20, "top1": 0.5, "top5": top5, "loss": 1.0, "num_samples": 1000, "time_s": 2.0}
    Progress(stream).record({"kind": "eval", **numbers})
    assert "top-1 50.00%  loss 1.0000" in stream.getvalue()
    summary = {**numbers, "images_per_s": 90.0, "duration": "2 epochs"}
    lines = summary_lines(RunDirectory(tmp_path, "run"), summary)
    assert "  top-1        50.00% of 1,000 val images" in lines
    assert not any("top-5" in line or "WARNING" in line for line in lines)


def test_a_warning_of_a_worker_is_shown() -> None:
    stream = io.StringIO()
    detail = {"text": "3 files were left out"}
    Progress(stream).record({"kind": "event", "step": 0, "event": "warning", "detail": detail})
    assert stream.getvalue() == "WARNING: 3 files were left out\n"


def test_how_far_the_index_is_is_shown() -> None:
    stream = io.StringIO()
    detail = {"text": "index: reading the headers of train: 1 of 2"}
    Progress(stream).record({"kind": "event", "step": 0, "event": "indexing", "detail": detail})
    assert stream.getvalue() == "index: reading the headers of train: 1 of 2\n"


def test_what_was_evaluated_is_said_where_it_is_the_average() -> None:
    stream = io.StringIO()
    record = {"kind": "eval", "step": 20, "top1": 0.5, "top5": 0.75, "loss": 1.0, "num_samples": 1000, "time_s": 2.0}
    for weights in ("model", "ema"):
        Progress(stream).record({**record, "weights": weights})
    model, average = stream.getvalue().splitlines()
    assert "evaluated: top-1" in model
    assert "evaluated, average of the weights: top-1" in average


def test_an_evaluation_beside_training_is_named_as_such() -> None:
    stream = io.StringIO()
    record = {"kind": "eval", "step": 20, "top1": 0.5, "top5": 0.75, "loss": 1.0, "num_samples": 1000, "time_s": 2.0}
    Progress(stream).record({**record, "weights": "ema", "beside": True})
    assert "evaluated beside training, average of the weights: top-1" in stream.getvalue()


def test_the_training_split_and_the_users_metrics_are_shown_where_they_are_evaluated(tmp_path: Path) -> None:
    stream = io.StringIO()
    numbers = {"step": 20, "top1": 0.5, "top5": None, "loss": 1.0, "num_samples": 1000, "time_s": 2.0}
    more = {"train_top1": 0.75, "train_loss": 0.5, "metrics": {"margin": 0.125, "odd": None}}
    Progress(stream).record({"kind": "eval", **numbers, **more})
    shown = "  loss 1.0000  margin 0.125  odd not finite  training split: top-1 75.00%  loss 0.5000  (1,000 images"
    assert shown in stream.getvalue()
    lines = summary_lines(RunDirectory(tmp_path, "run"), {**SUMMARY, **numbers, **more, "duration": "2 epochs"})
    assert lines[3:6] == [
        "  training     top-1 75.00%, loss 0.5000 on the training images",
        "  margin       0.125",
        "  odd          not finite",
    ]


def test_a_target_that_is_reached_or_missed_is_shown(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress, event = Progress(stream), {"kind": "event", "step": 500}
    top1 = {"metric": "top1", "target": 0.759, "value": 0.7612}
    progress.record({**event, "event": "target_reached", "detail": top1})
    progress.record({**event, "event": "target_missed", "detail": {"metric": "loss", "target": 0.5, "value": None}})
    assert stream.getvalue().splitlines() == [
        "step 500/n/a  target reached: top-1 76.12% (stop_at 75.90%)",
        "step 500/n/a  target missed: loss not finite (stop_at 0.5000)",
    ]
    summary = {**SUMMARY, "step": 500, "top1": 0.7612, "duration": "2 epochs", "epoch": 1.25}
    reached = {**summary, "target_reached": True, "stop_at": {"top1": 0.759}}
    line = "  target       reached after 500 steps, 1.25 epochs: top-1 76.12% (stop_at 75.90%)"
    assert line in summary_lines(RunDirectory(tmp_path, "run"), reached)
    missed = {**summary, "target_reached": False, "stop_at": {"loss": 0.5}, "loss": 0.75}
    line = "  target       MISSED after 500 steps, 1.25 epochs: loss 0.7500 (stop_at 0.5000)"
    assert line in summary_lines(RunDirectory(tmp_path, "run"), missed)


def test_the_bottleneck_is_printed_also_under_the_event_name_of_version_0_1() -> None:
    stream = io.StringIO()
    for name in ("bottleneck", "verdict"):
        Progress(stream).record({"kind": "event", "step": 3, "event": name, "detail": {"text": f"{name}: input"}})
    assert stream.getvalue().splitlines() == ["bottleneck: input", "verdict: input"]


SUMMARY = {"step": 40, "time_s": 9.0, "images_per_s": 90.0, "top1": 0.5, "top5": 0.75, "num_samples": 100}


def test_the_hint_is_to_train_twice_as_long(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    for duration, longer in (("20 epochs", "40 epochs"), ("1 epoch", "2 epochs"), ("75 steps", "150 steps")):
        lines = summary_lines(run, {**SUMMARY, "duration": duration})
        assert f"  train longer python -m launcher.train {run.config} duration='{longer}'" in lines


def test_the_console_says_where_the_newest_profile_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "run")
    summary = {**SUMMARY, "duration": "20 epochs"}
    assert not any("profile" in line for line in summary_lines(run, summary))
    trace = run.path / "profiles" / "attempt-2" / "rank-0.trace.json.gz"
    trace.parent.mkdir(parents=True)
    trace.touch()
    assert any(line.startswith(f"  profile      {trace}") for line in summary_lines(run, summary))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "train"},
        {"kind": "train", "step": "3", "loss": "x", "epoch": [], "learning_rate": {}, "time_left_s": 10**400},
        {"kind": "eval", "step": None, "top1": "x", "num_samples": 1.5, "time_s": True},
        {"kind": "event"},
        {"kind": "event", "event": "started"},
        {"kind": "event", "event": "started", "detail": {"total_steps": None, "batch_size": "8", "num_samples": 1}},
        {"kind": "event", "event": "bottleneck", "detail": "text"},
        {"kind": "event", "event": ["stopped"], "detail": None},
        {"kind": "event", "event": "stopped"},
        {"kind": "event", "event": "target_reached", "detail": {"metric": ["top1"], "value": "x"}},
        {"kind": "eval", "metrics": {"odd": "x"}, "train_top1": []},
    ],
)
def test_a_record_of_any_form_is_shown_as_far_as_it_can_be_read(record: dict[str, Any]) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.record(record)
    progress.record({"kind": "train", "step": 5, "loss": 1.5})
    assert " 5/" in stream.getvalue().splitlines()[-1]
    assert "loss 1.5000" in stream.getvalue().splitlines()[-1]


def test_what_is_no_number_is_shown_as_not_available() -> None:
    stream = io.StringIO()
    Progress(stream).record({"kind": "train", "step": "3", "loss": None, "learning_rate": "x"})
    assert stream.getvalue() == "step n/a/n/a  loss not finite  LR n/a  n/a images/s  left n/a\n"


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_stream_that_cannot_be_written_does_not_end_a_run() -> None:
    closed = io.StringIO()
    closed.close()
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    for stream in (Full(), closed, ascii_only):
        Progress(stream).print("2 \u00d7 3")


def test_broken_images_are_named_once_and_counted(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for rank in (0, 2):  # rank 0 has logged its own
        detail = {"path": f"train/{rank}.jpg", "problem": "cannot be decoded", "rank": rank}
        progress.record({"kind": "event", "step": 3, "event": "bad_image", "detail": detail})
    numbers = {"step": 20, "top1": 0.5, "top5": 0.75, "loss": 1.0, "num_samples": 998, "num_bad": 2, "time_s": 2.0}
    progress.record({"kind": "eval", **numbers})
    named, evaluated = stream.getvalue().splitlines()
    assert named == "WARNING: train/2.jpg cannot be decoded: it is left out"
    assert "(998 images without 2 broken ones in 2.0 s)" in evaluated
    summary = {**numbers, "images_per_s": 90.0, "duration": "2 epochs", "num_bad_images": 3, "num_left_out": 1201}
    assert summary_lines(RunDirectory(tmp_path, "run"), summary)[2] == (
        "  left out     3 broken images found (events bad_image in metrics.jsonl); 1,201 samples of the training"
        " steps, 2 val images"
    )
    assert left_out_text({**numbers, "num_bad": 0, "num_bad_images": 0, "num_left_out": 0}) == ""


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"num_bad_images": 0, "num_known_bad": 6}, "6 listed in data.known_bad"),
        (
            {"num_bad_images": 1, "num_known_bad": 6},
            "1 broken image found (events bad_image in metrics.jsonl), 6 listed in data.known_bad",
        ),
        ({}, "images listed in data.known_bad"),  # a run that goes on
    ],
)
def test_images_that_are_listed_are_not_found(counts: dict[str, int], text: str) -> None:
    assert left_out_text({**counts, "num_left_out": 7}) == f"{text}; 7 samples of the training steps, 0 val images"
