"""The incident folder of a failure, and the report of a run's failures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.report import report_lines
from launcher.config import load as config
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import WorkerLost
from launcher.recovery.attempt import AttemptSpec
from launcher.recovery.handler import FailureHandler
from launcher.recovery.history import read_skips
from launcher.recovery.notify import Notifier
from launcher.recovery.policy import Skip
from launcher.recovery.session import Session
from launcher.report.facts import facts
from launcher.report.goodput import goodput
from launcher.report.run_record import read_all
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.worker.train import skipped_steps
from resnet_dist.checkpoint import format
from resnet_dist.errors import DataError, DivergedError

DATA: dict[str, Any] = {
    "schema": 1,
    "name": "small",
    "data": {"root": "images"},
    "batch": {"size": 8},
    "duration": "40 steps",
    "schedule": {"peak_lr": 0.1},
    "workers": 2,
}
SLOTS = {"host-0": 1, "host-1": 1}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "small")
    directory.create()
    return directory


def config_of(run: RunDirectory, **more: Any) -> RunConfig:
    return config.from_mapping({**DATA, "storage": str(run.storage), **more}, run.storage)


def handler_of(run: RunDirectory, **more: Any) -> FailureHandler:
    run_config = config_of(run, **more)
    return FailureHandler(Session(run_config, run, Progress(), Notifier(run_config.notify, run)))


def attempt(run: RunDirectory, step: int, saved: int | None = None, first_step: int = 0) -> AttemptSpec:
    """An attempt of two workers that completed `step` steps, with its files."""
    began = time.time()
    number = run.begin_attempt({"place": "ray", "workers": 2, "from_step": 0})
    logs = run.logs(number)
    for name in ("heartbeat", "stacks", "flight"):
        (logs.path / name).mkdir()
    for rank in range(2):
        beat = Heartbeat(rank=rank, host=f"host-{rank}", pid=rank, tick=1, phase="step", step=step + 1, age_s=0.0)
        heartbeats.write(logs, beat)
        run.logs(number).log(rank).write_text("".join(f"line {line}\n" for line in range(500)))
    (logs.stacks / "rank-1.txt").write_text("in forward")
    (logs.stacks / "rank-0.txt").write_text("")
    logs.environment.write_text(json.dumps({"time": number, "packages": {"torch": f"2.{number}"}}))
    with run.metrics.open("a") as file:
        for number_of_step in range(1, step + 1):
            record = {"kind": "train", "step": number_of_step, "loss": 1.0, "step_time_s": 0.5}
            file.write(json.dumps(record) + "\n")
    if saved is not None:
        checkpoint(run, saved)
    return AttemptSpec(number, first_step, began=began)


def checkpoint(run: RunDirectory, step: int, more: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint without tensors, with valid hashes; returns its folder."""
    folder = run.checkpoints / format.folder_name(step)
    folder.mkdir()
    state = format.json_bytes({"step": step, **(more or {})})
    contents = {format.MODEL: b"", format.OPTIMIZER: b"", format.STATE: state}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    records = {
        name: format.FileRecord(len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    }
    (folder / format.MANIFEST).write_bytes(format.manifest_bytes(records))
    return folder


LOST = WorkerLost("host-1", 1, "the actor died")


def test_the_first_line_of_an_incident_says_what_happened_and_what_to_do(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = attempt(run, step=12, saved=10)
    written = time.time() - 20
    os.utime(run.logs(1).heartbeat(1), (written, written))
    handler_of(run).handle(LOST, failed, SLOTS, "host-1")
    folder = run.incident(1)
    summary = (folder / "summary.txt").read_text().splitlines()
    expected = "attempt 1 failed after step 12: WorkerLost: worker 1 on host-1: the actor died. What to do: check"
    assert summary[0].startswith(expected)
    assert "resumes at step 11; lost: 2 steps, " in summary[3]
    assert re.search(r"^step       13 \(heartbeat of 2\d s ago\)$", "\n".join(summary), re.MULTILINE)
    facts = json.loads((folder / "incident.json").read_text())
    assert (facts["class"], facts["rank"], facts["host"], facts["exit_code"]) == ("WorkerLost", 1, "host-1", 76)
    assert (facts["phase"], facts["step"], facts["nodes"]) == ("step", 13, ["host-0", "host-1"])
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    assert (folder / "logs/rank-0.log").read_text().splitlines()[-1] == "line 499"
    assert [path.name for path in (folder / "stacks").iterdir()] == ["rank-1.txt"]
    assert "starting again: failure 1 of 3" in capsys.readouterr().out


def test_an_incident_has_the_differences_from_the_previous_attempt(run: RunDirectory) -> None:
    handler = handler_of(run)
    for _ in range(2):
        failed = attempt(run, step=3)
        handler.handle(LOST, failed, SLOTS, "host-1")
    difference = json.loads((run.incident(2) / "environment.json").read_text())
    assert difference == {"packages.torch": ["2.1", "2.2"]}


def test_an_attempt_records_its_end_and_what_was_lost(run: RunDirectory) -> None:
    failed = attempt(run, step=12, saved=10)
    handler_of(run).handle(LOST, failed, SLOTS, "host-1")
    [ended] = run.attempts()
    assert (ended.exit_code, ended.last_step, ended.cause) == (76, 12, f"WorkerLost: {LOST}")
    facts = ended.end_facts
    assert (facts["class"], facts["rank"], facts["node"]) == ("WorkerLost", 1, "host-1")
    assert (facts["checkpoint_step"], facts["steps_redone"]) == (10, 2)
    assert facts["decision"] == "failure 1 of 3 without a later checkpoint"


def test_a_node_that_failed_twice_is_named_everywhere(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    handler = handler_of(run, workers="1..2")
    for _ in range(2):
        failed = attempt(run, step=3)
        decision = handler.handle(LOST, failed, SLOTS, "host-1")
    assert decision.history.excluded == ("host-1",)
    assert "host-1 failed 2 times and is excluded" in capsys.readouterr().out
    assert run.attempts()[1].end_facts["excluded"] == ["host-1"]
    assert json.loads((run.incident(2) / "incident.json").read_text())["excluded"] == ["host-1"]


def test_the_last_error_keeps_its_class_and_gets_the_history_as_a_note(run: RunDirectory) -> None:
    handler = handler_of(run, faults={"max_failures": 1})
    failed = attempt(run, step=3)
    handler.handle(LOST, failed, SLOTS)
    failed = attempt(run, step=3)
    with pytest.raises(WorkerLost) as ended:
        handler.handle(LOST, failed, SLOTS)
    [note] = ended.value.__notes__
    assert note.startswith("2 failures without a later checkpoint; faults.max_failures is 1. What happened:")
    assert "attempt 2" in note


def test_broken_data_is_never_retried(run: RunDirectory) -> None:
    failed = attempt(run, step=0)
    with pytest.raises(DataError):
        handler_of(run).handle(DataError("a.jpg", "broken", 7), failed, SLOTS)
    assert run.attempts()[0].exit_code == 65


def test_a_failure_while_the_run_is_to_stop_ends_it(run: RunDirectory) -> None:
    failed = attempt(run, step=3)
    with pytest.raises(WorkerLost):
        handler_of(run).handle(LOST, failed, SLOTS, stopping=True)


def test_skips_are_kept_for_the_next_session(run: RunDirectory) -> None:
    more = {"faults": {"on_nonfinite": "skip"}}
    failed = attempt(run, step=12, saved=10)
    handler_of(run, **more).handle(DivergedError(13, float("nan")), failed, SLOTS)
    assert handler_of(run, **more).history.skips == (Skip(10, 3 * 8),)


def test_a_skip_starts_at_the_checkpoint_that_the_next_attempt_can_trust(run: RunDirectory) -> None:
    more = {"faults": {"on_nonfinite": "skip"}}
    checkpoint(run, 30)
    (checkpoint(run, 40) / format.MODEL).write_bytes(b"altered")
    failed = attempt(run, step=32, first_step=30)
    handler = handler_of(run, **more)
    assert handler.history.saved_step == 30
    handler.handle(DivergedError(33, float("nan")), failed, SLOTS)
    assert handler.history.skips == (Skip(30, 3 * 8),)


def test_the_timeline_has_every_attempt_and_the_goodput(run: RunDirectory) -> None:
    failed = attempt(run, step=12, saved=10)
    handler_of(run).handle(LOST, failed, SLOTS, "host-1")
    number = run.begin_attempt({"workers": 2, "from_step": 10})
    with run.metrics.open("a") as file:
        file.write(json.dumps({"kind": "event", "event": "started", "step": 10, "detail": {}}) + "\n")
        for step in range(11, 15):
            file.write(json.dumps({"kind": "train", "step": step, "step_time_s": 0.5}) + "\n")
    run.end_attempt(number, 0, "finished", 14)
    text = "\n".join(report_lines([facts(record) for record in read_all([run])]))
    assert "attempt 1 started after step 0 with 2 workers" in text
    assert "2 steps to repeat after the checkpoint of step 10, " in text
    assert "  incidents/attempt-1/summary.txt\n" in text
    assert "ended after step 14, exit code 0: finished" in text
    assert goodput(run).useful == 14 * 0.5 * 2  # steps 11 and 12 of the first attempt were repeated


UNREADABLE_SKIPS = [b"", b"{", b"null", b'{"step": 1}', b"[1]", b'[{"step": "10", "samples": 24}]', b'[{"step": 10}]']


@pytest.mark.parametrize("content", UNREADABLE_SKIPS)
def test_skips_that_cannot_be_read_are_those_of_the_newest_checkpoint(run: RunDirectory, content: bytes) -> None:
    checkpoint(run, 20, {"skipped": [[10, 13], [15, 16]], "batch_size": 8})
    run.skips.write_bytes(content)
    skips = read_skips(run)
    assert skips == (Skip(10, 3 * 8), Skip(12, 8))
    assert skipped_steps(skips, 8) == ((10, 13), (15, 16))
    assert (run.path / "skips.json.unreadable").read_bytes() == content
    assert read_skips(run) == skips  # they were written again
    run.skips.unlink()
    assert read_skips(run) == skips


def test_without_a_checkpoint_no_step_was_made_with_skips(run: RunDirectory) -> None:
    run.skips.write_text("{")
    assert read_skips(run) == ()
