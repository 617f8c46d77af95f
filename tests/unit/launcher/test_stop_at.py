"""A run with a target, from the command to its record: reached, missed, and started again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.commands import status
from launcher.commands.report import report_lines
from launcher.config import load as configs
from launcher.console import Progress
from launcher.exit_codes import ExitCode
from launcher.report.facts import facts
from launcher.report.run_record import read_all
from launcher.run.directory import RunDirectory
from launcher.run.status import read_status
from launcher.train import train

Start = Callable[..., tuple[int, RunDirectory, str]]


@pytest.fixture
def start(tmp_path: Path, write_images: Callable[[Path], Path]) -> Start:
    """Train with these overrides; returns the exit code, the run, and what was printed."""
    write_images(tmp_path / "images")
    (tmp_path / "run.yaml").write_text(
        "schema: 1\nname: run\nstorage: runs\nplace: local\nduration: 6 steps\nfaults: {preflight: false}\n"
        "model: {name: resnet20, num_classes: 2}\ndata: {root: images, resolution: 8, crop_area: [100 %, 100 %]}\n"
        "batch: {size: 6}\nschedule: {peak_lr: 0.01, warmup: 50 %}\nevaluate: {every: 2 steps}\n"
        "log: {every_steps: 1, tensorboard: false}\n"
    )

    def run(*overrides: str) -> tuple[int, RunDirectory, str]:
        stream = io.StringIO()
        config = configs.load(tmp_path / "run.yaml", overrides)
        code, directory = train(config, "auto", Progress(stream))
        return int(code), directory, stream.getvalue()

    return run


def test_a_run_ends_at_its_target_and_is_finished(start: Start) -> None:
    code, run, printed = start("stop_at.loss=100")
    assert code == ExitCode.OK
    summary = run.summary()
    assert summary is not None
    assert (summary["step"], summary["target_reached"], summary["stop_at"]) == (2, True, {"loss": 100.0})
    assert "step 2/6  target reached: loss " in printed
    assert "  target       reached after 2 steps, 1.50 epochs: loss " in printed
    found = read_status(run, None)
    assert (found.state, found.step, found.total_steps) == ("finished", 2, 2)
    assert "step 2 of 2 (100%)" in next(status.lines(found))
    assert found.reason == "it has reached the target of stop_at"
    assert any(
        line.startswith("target: reached after 2 steps, 1.50 epochs: loss ")
        for line in report_lines([facts(record) for record in read_all([run])])
    )

    for overrides in (["stop_at.loss=100"], ["stop_at.loss=100", "duration=12 steps"]):
        assert "finished already" in start(*overrides)[2]
    assert len(run.attempts()) == 1
    # Another target, or none: the run goes on.
    code, run, printed = start()
    assert code == ExitCode.OK
    assert "resumes at step 3" in printed
    assert "  changed: stop_at.loss was 100.0, is null" in printed
    summary = run.summary()
    assert summary is not None
    assert (summary["step"], "stop_at" in summary, "target_reached" in summary) == (6, False, False)
    assert "finished already" in start()[2]


def test_a_run_that_misses_its_target_ends_with_its_duration_and_says_so(start: Start) -> None:
    code, run, printed = start("stop_at.loss=0")
    assert code == ExitCode.OK
    assert "step 6/6  target missed: loss " in printed
    assert "  target       MISSED after 6 steps, 4.50 epochs: loss " in printed
    assert "(stop_at 0.0000)" in printed
    found = read_status(run, None)
    assert (found.step, found.total_steps) == (6, 6)
    assert found.reason == "all steps are done; it missed the target of stop_at"
    assert "finished already" in start("stop_at.loss=0")[2]
    # The target that its last checkpoint has reached needs no step.
    code, run, printed = start("stop_at.loss=100")
    assert (code, "step 6/6  target reached" in printed) == (0, True)
    assert len([record for record in _records(run) if record["kind"] == "train"]) == 6


def _records(run: RunDirectory) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]
