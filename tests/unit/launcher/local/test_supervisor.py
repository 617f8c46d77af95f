"""The parent of a local run: its child is refused, silent, hangs, or ends."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.config import load as configs
from launcher.config.schema import Faults, RunConfig
from launcher.console import Progress
from launcher.errors import ConfigError, LauncherError, Problem, UsageError, WorkerHung
from launcher.exit_codes import ExitCode
from launcher.local import supervisor as local_supervisor
from launcher.local.child import Job, Message
from launcher.local.supervisor import Child, run_supervised
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.notify import Notifier
from launcher.recovery.session import Session
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat

BEAT = Heartbeat(rank=0, host="here", pid=1, tick=1, phase="step", step=5, age_s=0.0)
FAULTS = Faults(hang_timeout_s=60.0, start_timeout_s=60.0)


class Process:
    """A child process: it runs until it is killed, or for `polls` polls."""

    def __init__(self, polls: float = float("inf")) -> None:
        self.polls, self.killed, self.returncode = polls, False, 0

    def poll(self) -> int | None:
        self.polls -= 1
        return None if self.polls >= 0 else 0

    def kill(self) -> None:
        self.killed = True

    def wait(self, timeout_s: float | None = None) -> int:
        return 0


class Pipe:
    """The messages of a child; None stands for a timeout."""

    def __init__(self, *messages: Message | None) -> None:
        self.messages: Iterator[Message | None] = iter(messages)
        self.next: Message | None = None

    def poll(self, timeout_s: float) -> bool:
        self.next = next(self.messages, None)
        return self.next is not None

    def recv(self) -> Message | None:
        return self.next

    def close(self) -> None:
        pass


def child_of(process: Process, *messages: Message | None) -> Child:
    return Child(cast(Any, process), cast(Any, Pipe(*messages)), Progress())


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return configs.load(write_config())


@pytest.fixture
def notifier(config: RunConfig, small_run: RunDirectory) -> Iterator[Notifier]:
    told = Notifier(config.notify, small_run)
    yield told
    told.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query of the clock advances it by a second."""
    seconds = itertools.count()
    monkeypatch.setattr("launcher.local.supervisor.time.monotonic", lambda: float(next(seconds)))


@pytest.mark.parametrize("error", [UsageError("--resume never"), ConfigError([Problem("x", "batch", "8", "16")])])
def test_a_refusal_before_the_attempt_begins_leaves_the_run_as_it_is(
    error: LauncherError,
    config: RunConfig,
    small_run: RunDirectory,
    notifier: Notifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = small_run.begin_attempt({"place": "local"})
    small_run.end_attempt(number, 0, "finished", 100)
    small_run.mark_finished({"step": 100})
    before = sorted(small_run.path.rglob("*")), small_run.attempts_file.read_bytes()

    jobs: list[Job] = []

    def start(job: Job, progress: Progress) -> Child:
        jobs.append(job)
        return child_of(Process(), error)

    monkeypatch.setattr(Child, "start", start)
    with pytest.raises(type(error)):
        run_supervised(Session(config, small_run, Progress(), notifier), "never")
    assert [job.mode for job in jobs] == ["never"]
    assert (sorted(small_run.path.rglob("*")), small_run.attempts_file.read_bytes()) == before


@pytest.mark.usefixtures("clock")
def test_a_heartbeat_that_cannot_be_read_once_is_no_hang(
    small_run: RunDirectory, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(1)

    def beats(*_: object) -> list[Heartbeat]:
        tick = next(ticks)
        return [] if tick % 50 == 0 else [dataclasses.replace(BEAT, tick=tick)]

    monkeypatch.setattr(local_supervisor, "read_beats", beats)
    result = AttemptResult(5, finished=True)
    child = child_of(Process(), AttemptSpec(1), *[None] * 1000, (0, result))  # longer than the timeout of a start
    assert child.run(small_run, FAULTS, notifier) == (ExitCode.OK, result)


@pytest.mark.usefixtures("clock")
def test_a_child_that_reports_a_hang_and_does_not_end_is_killed(
    small_run: RunDirectory, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_supervisor, "read_beats", lambda *_: [dataclasses.replace(BEAT, hung=True)])
    process = Process(polls=1000)
    error = child_of(process, AttemptSpec(1)).run(small_run, FAULTS, notifier)
    assert isinstance(error, WorkerHung)
    assert process.killed
    assert process.polls > 900


def test_a_message_that_comes_as_the_process_ends_is_received(small_run: RunDirectory, notifier: Notifier) -> None:
    result = AttemptResult(7, finished=False)
    child = child_of(Process(polls=0), None, (75, result))
    assert child.run(small_run, FAULTS, notifier) == (ExitCode.STOPPED, result)
