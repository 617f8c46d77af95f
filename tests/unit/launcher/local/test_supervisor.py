"""What the parent of a run on this machine makes of its child: refused, silent, hung, or at its end."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config.schema import Faults, RunConfig
from launcher.console import Progress
from launcher.errors import ConfigError, LauncherError, Problem, UsageError, WorkerHung
from launcher.exit_codes import ExitCode
from launcher.local import supervisor as local_supervisor
from launcher.local.supervisor import _Child, run_supervised
from launcher.recovery.notify import Notifier
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat

BEAT = Beat(rank=0, host="here", pid=1, tick=1, phase="step", step=5, age_s=0.0)
FAULTS = Faults(hang_timeout_s=60.0, start_timeout_s=60.0)


class Process:
    """A child process: it runs until it is killed, or for so many looks."""

    def __init__(self, looks: float = float("inf")) -> None:
        self.looks, self.killed, self.returncode = looks, False, 0

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else 0

    def kill(self) -> None:
        self.killed = True

    def wait(self, timeout_s: float | None = None) -> int:
        return 0


class Pipe:
    """What the child says: None is a wait in vain."""

    def __init__(self, *says: Any) -> None:
        self.says: Iterator[Any] = iter(says)
        self.next: Any = None

    def poll(self, timeout_s: float) -> bool:
        self.next = next(self.says, None)
        return self.next is not None

    def recv(self) -> Any:
        return self.next

    def close(self) -> None:
        pass


def child_of(process: Process, pipe: Pipe) -> Any:
    child: Any = _Child.__new__(_Child)
    child.attempt, child.first_step, child.code, child.outcome = None, 0, ExitCode.INTERNAL, {}
    child._error, child._told, child._process, child._answers = None, False, process, pipe
    return child


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
    """A second passes at every look at the clock."""
    seconds = itertools.count()
    monkeypatch.setattr("launcher.local.supervisor.time.monotonic", lambda: float(next(seconds)))


@pytest.mark.parametrize("error", [UsageError("--resume never"), ConfigError([Problem("x", "batch", "8", "16")])])
def test_what_is_refused_before_it_begins_leaves_the_run_as_it_is(
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

    class Refused:
        attempt = None
        first_step = 0

        def __init__(self, *_: object) -> None: ...

        def run(self, *_: object) -> Exception:
            return error

    monkeypatch.setattr(local_supervisor, "_Child", Refused)
    with pytest.raises(type(error)):
        run_supervised(config, small_run, "never", Progress(), notifier)
    assert (sorted(small_run.path.rglob("*")), small_run.attempts_file.read_bytes()) == before


@pytest.mark.usefixtures("clock")
def test_a_heartbeat_that_cannot_be_read_for_once_ends_nobody(
    small_run: RunDirectory, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(1)

    def beats(*_: object) -> list[Beat]:
        tick = next(ticks)
        return [] if tick % 50 == 0 else [dataclasses.replace(BEAT, tick=tick)]

    monkeypatch.setattr(local_supervisor, "read_beats", beats)
    process = Process()
    pipe = Pipe(("begun", 1, 0), *[None] * 1000, ("outcome", 0, {"step": 5}))  # longer than any start may take
    child = child_of(process, pipe)
    assert child.run(small_run, FAULTS, notifier) is None
    assert (child.code, child.outcome) == (ExitCode.OK, {"step": 5})


@pytest.mark.usefixtures("clock")
def test_a_child_that_calls_itself_hung_and_does_not_end_is_killed(
    small_run: RunDirectory, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_supervisor, "read_beats", lambda *_: [dataclasses.replace(BEAT, hung=True)])
    process = Process(looks=1000)
    error = child_of(process, Pipe(("begun", 1, 0))).run(small_run, FAULTS, notifier)
    assert isinstance(error, WorkerHung)
    assert process.looks > 900


def test_a_last_word_that_comes_as_the_process_ends_is_heard(small_run: RunDirectory, notifier: Notifier) -> None:
    child = child_of(Process(looks=0), Pipe(None, ("outcome", 75, {"step": 7})))
    assert child.run(small_run, FAULTS, notifier) is None
    assert (child.code, child.outcome) == (ExitCode.STOPPED, {"step": 7})
