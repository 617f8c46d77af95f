"""What is left of a failure for whoever is paged, and what the report makes of it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.report import goodput, incident_lines
from launcher.config import load as config
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import WorkerLost
from launcher.recovery.handler import Recovery
from launcher.recovery.notify import Notifier
from launcher.recovery.policy import Skip
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat
from resnet_dist.checkpoint import format
from resnet_dist.errors import DataError, DivergedError

DATA: dict[str, Any] = {
    "schema": 1,
    "name": "struck",
    "data": {"root": "images"},
    "batch": {"size": 8},
    "duration": "40 steps",
    "schedule": {"peak_lr": 0.1},
    "workers": 2,
}
SLOTS = {"host-0": 1, "host-1": 1}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "struck")
    directory.create()
    return directory


def config_of(run: RunDirectory, **more: Any) -> RunConfig:
    return config.from_mapping({**DATA, "storage": str(run.storage), **more}, run.storage)


def recovery_of(run: RunDirectory, **more: Any) -> Recovery:
    run_config = config_of(run, **more)
    return Recovery(run_config, run, Progress(), Notifier(run_config.notify, run))


def attempt(run: RunDirectory, step: int, saved: int | None = None) -> tuple[int, float]:
    """An attempt of two workers that got to `step`, with what it leaves behind; its number and start."""
    began = time.time()
    number = run.begin_attempt({"place": "ray", "workers": 2, "from_step": 0})
    logs = run.logs(number)
    for name in ("heartbeat", "stacks", "flight"):
        (logs.path / name).mkdir()
    for rank in range(2):
        beat = Beat(rank=rank, host=f"host-{rank}", pid=rank, tick=1, phase="step", step=step + 1, age_s=0.0)
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
    return number, began


def checkpoint(run: RunDirectory, step: int) -> Path:
    """Leave a checkpoint without tensors, its hashes right; its folder."""
    folder = run.checkpoints / format.folder_name(step)
    folder.mkdir()
    contents = {format.MODEL: b"", format.OPTIMIZER: b"", format.STATE: format.json_bytes({"step": step})}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    records = {
        name: format.FileRecord(len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    }
    (folder / format.MANIFEST).write_bytes(format.manifest_bytes(records))
    return folder


LOST = WorkerLost("host-1", 1, "the actor died")


def test_an_incident_says_what_happened_and_what_to_do_in_its_first_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    number, began = attempt(run, step=12, saved=10)
    recovery_of(run).failed(LOST, number, 0, began, SLOTS, "host-1")
    folder = run.incident(1)
    summary = (folder / "summary.txt").read_text().splitlines()
    expected = "attempt 1 failed after step 12: WorkerLost: worker 1 on host-1: the actor died. What to do: look at"
    assert summary[0].startswith(expected)
    assert "goes on at step 11; 2 steps are done again" in summary[3]
    facts = json.loads((folder / "incident.json").read_text())
    assert (facts["class"], facts["rank"], facts["host"], facts["exit_code"]) == ("WorkerLost", 1, "host-1", 76)
    assert (facts["phase"], facts["step"], facts["nodes"]) == ("step", 13, ["host-0", "host-1"])
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 12
    assert (folder / "logs/rank-0.log").read_text().splitlines()[-1] == "line 499"
    assert [path.name for path in (folder / "stacks").iterdir()] == ["rank-1.txt"]
    assert "starting again: failure 1 of 3" in capsys.readouterr().out


def test_an_incident_names_what_differs_from_the_attempt_before(run: RunDirectory) -> None:
    recovery = recovery_of(run)
    for _ in range(2):
        number, began = attempt(run, step=3)
        recovery.failed(LOST, number, 0, began, SLOTS, "host-1")
    difference = json.loads((run.incident(2) / "environment.json").read_text())
    assert difference == {"packages.torch": ["2.1", "2.2"]}


def test_attempts_know_their_end_and_what_was_lost(run: RunDirectory) -> None:
    number, began = attempt(run, step=12, saved=10)
    recovery_of(run).failed(LOST, number, 0, began, SLOTS, "host-1")
    [ended] = run.attempts()
    assert (ended.exit_code, ended.last_step, ended.cause) == (76, 12, f"WorkerLost: {LOST}")
    facts = ended.end_facts
    assert (facts["class"], facts["rank"], facts["node"]) == ("WorkerLost", 1, "host-1")
    assert (facts["checkpoint_step"], facts["steps_redone"]) == (10, 2)
    assert facts["decision"] == "failure 1 of 3 without a later checkpoint"


def test_the_same_node_at_fault_twice_is_named_everywhere(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    recovery = recovery_of(run, workers="1..2")
    for _ in range(2):
        number, began = attempt(run, step=3)
        decision = recovery.failed(LOST, number, 0, began, SLOTS, "host-1")
    assert decision.history.excluded == ("host-1",)
    assert "host-1 was at fault 2 times and is left out" in capsys.readouterr().out
    assert run.attempts()[1].end_facts["excluded"] == ["host-1"]
    assert json.loads((run.incident(2) / "incident.json").read_text())["excluded"] == ["host-1"]


def test_what_ends_a_run_keeps_its_class_and_gets_the_history_as_a_note(run: RunDirectory) -> None:
    recovery = recovery_of(run, faults={"max_failures": 1})
    number, began = attempt(run, step=3)
    recovery.failed(LOST, number, 0, began, SLOTS)
    number, began = attempt(run, step=3)
    with pytest.raises(WorkerLost) as ended:
        recovery.failed(LOST, number, 0, began, SLOTS)
    [note] = ended.value.__notes__
    assert note.startswith("2 failures without a later checkpoint; faults.max_failures is 1. What happened:")
    assert "attempt 2" in note


def test_broken_data_is_never_tried_again(run: RunDirectory) -> None:
    number, began = attempt(run, step=0)
    with pytest.raises(DataError):
        recovery_of(run).failed(DataError("a.jpg", "broken", 7), number, 0, began, SLOTS)
    assert run.attempts()[0].exit_code == 65


def test_a_failure_while_the_run_is_to_stop_ends_it(run: RunDirectory) -> None:
    number, began = attempt(run, step=3)
    with pytest.raises(WorkerLost):
        recovery_of(run).failed(LOST, number, 0, began, SLOTS, stopping=True)


def test_skips_outlive_the_driver(run: RunDirectory) -> None:
    more = {"faults": {"on_nonfinite": "skip"}}
    number, began = attempt(run, step=12, saved=10)
    recovery_of(run, **more).failed(DivergedError(13, float("nan")), number, 0, began, SLOTS)
    assert recovery_of(run, **more).history.skips == (Skip(10, 3 * 8),)


def test_a_skip_starts_at_the_checkpoint_that_the_next_attempt_can_trust(run: RunDirectory) -> None:
    more = {"faults": {"on_nonfinite": "skip"}}
    checkpoint(run, 30)
    (checkpoint(run, 40) / format.MODEL).write_bytes(b"altered")
    number, began = attempt(run, step=32)
    recovery = recovery_of(run, **more)
    assert recovery.history.saved_step == 30
    recovery.failed(DivergedError(33, float("nan")), number, 30, began, SLOTS)
    assert recovery.history.skips == (Skip(30, 3 * 8),)


def test_the_timeline_has_every_attempt_and_the_goodput(run: RunDirectory) -> None:
    number, began = attempt(run, step=12, saved=10)
    recovery_of(run).failed(LOST, number, 0, began, SLOTS, "host-1")
    number = run.begin_attempt({"workers": 2, "from_step": 10})
    with run.metrics.open("a") as file:
        file.write(json.dumps({"kind": "event", "event": "started", "step": 10, "detail": {}}) + "\n")
        for step in range(11, 15):
            file.write(json.dumps({"kind": "train", "step": step, "step_time_s": 0.5}) + "\n")
    run.end_attempt(number, 0, "finished", 14)
    text = "\n".join(incident_lines(run))
    assert "attempt 1 began after step 0 with 2 workers" in text
    assert "2 steps to do again after the checkpoint of step 10, " in text
    assert str(run.incident(1) / "summary.txt") in text
    assert "ended after step 14, exit code 0: finished" in text
    assert goodput(run).useful == 14 * 0.5 * 2  # steps 11 and 12 of the first attempt were done again


def test_the_command_prints_the_timeline(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher import cli

    assert cli.main(["report", str(run.path), "--incidents"]) == 64
    run.begin_attempt({"workers": 1})
    assert cli.main(["report", str(run.path), "--incidents"]) == 0
    assert "attempt 1 began" in capsys.readouterr().out


def test_a_failure_before_any_checkpoint_is_told_as_such(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    facts = {"steps_redone": 3, "checkpoint_step": 0, "seconds_lost": 12.3, "decision": "failure 1 of 3"}
    run.end_attempt(number, 76, "WorkerLost: gone", None, facts)
    text = "\n".join(incident_lines(run))
    assert "no checkpoint yet: 3 steps to do again, from the beginning, 12 s after the start; failure 1 of 3" in text
    assert "step None" not in text
    assert "step 0:" not in text


def test_a_failure_right_after_a_checkpoint_loses_no_step(run: RunDirectory) -> None:
    number = run.begin_attempt({"workers": 1})
    facts = {"steps_redone": 0, "checkpoint_step": 20, "seconds_lost": 0.04, "decision": "failure 1 of 3"}
    run.end_attempt(number, 76, "WorkerLost: gone", 20, facts)
    assert "no step is lost: the checkpoint of step 20 is the newest" in "\n".join(incident_lines(run))
