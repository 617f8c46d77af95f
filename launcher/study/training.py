"""One run of a study in this process. What it prints goes to a file in its run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.exit_codes import ExitCode
from launcher.run.directory import RunDirectory
from launcher.signals import StopSignals

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class Order:
    """A run to train. `pause_at`: the fraction to train now."""

    config: RunConfig
    pause_at: Fraction | None = None


@dataclass(frozen=True)
class Moment:
    """Where a run is."""

    step: int
    total_steps: int | None
    time_left_s: float | None


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, and the reason of a failure."""

    code: int
    reason: str = ""


Answer = Moment | Ended


class RunStop(StopSignals):
    """Signals, and the pause of a run after a part of its steps."""

    paused = False

    @property
    def stopped(self) -> bool:
        """Whether a signal has arrived, or the run has come to its pause."""
        return self.paused or super().stopped


class Reporter(Progress):
    """Prints records to a file, and reports where the run is."""

    def __init__(self, stream: TextIO, order: Order, stop: RunStop, say: Callable[[Answer], None]) -> None:
        super().__init__(stream)
        self._pause_at, self._stop, self._say = order.pause_at, stop, say
        self._total: int | None = None
        self._said_at = 0.0

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a record, report the step now and then, and pause the run."""
        super().record(record)
        if record.get("event") == "started":
            self._total = record["detail"].get("total_steps")
        step = record["step"]
        if self._pause_at is not None and self._total is not None and step >= self._pause_at * self._total:
            self._stop.paused = step < self._total
        now = time.monotonic()
        if now - self._said_at >= REPORT_EVERY_S:
            self._said_at = now
            self._say(Moment(step, self._total, record.get("time_left_s")))


def carry_out(order: Order, stop: RunStop, say: Callable[[Answer], None]) -> Ended:
    """Train a run in this process, which belongs to the run meanwhile; errors become the reason of the answer."""
    from launcher.recovery.faults import rule_for
    from launcher.recovery.portable import message_of
    from launcher.train import train  # imports torch: seconds in which signals are handled already

    run = RunDirectory(Path(order.config.storage), order.config.name)
    stop.paused = False
    with _output(run) as stream:
        try:
            faults = dataclasses.replace(order.config.faults, max_failures=0)  # this process trains: no child does
            config = dataclasses.replace(order.config, faults=faults)
            code, _ = train(config, "auto", Reporter(stream, order, stop, say), attended=True, stop=stop)
            return Ended(int(code))
        except BaseException as error:  # the user's code may raise SystemExit, too
            print("".join(traceback.format_exception(error)), file=stream, flush=True)
            code = rule_for(error).exit_code if isinstance(error, Exception) else ExitCode.USER_CODE
            return Ended(int(code), f"{type(error).__name__}: {message_of(error)}")


@contextlib.contextmanager
def _output(run: RunDirectory) -> Iterator[TextIO]:
    """Append everything that this process prints in the block, also from C, to a file in the run directory."""
    run.path.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    with run.output.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            yield file
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, before in zip((1, 2), kept, strict=True):
                os.dup2(before, descriptor)
                os.close(before)
