"""The progress of a run for a person: a live line on a terminal, else a line every few steps."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from launcher import streams
from launcher.console.records import detail_of, shown, text_of
from launcher.run.holder import process_start

if TYPE_CHECKING:
    from launcher.console.live import LiveLine

LONG_S = (
    0.8  # without a terminal, the begin of a stage is shown if it takes longer than this: nothing is silent for 1 s
)
_STAGE_WIDTH = 60
_LONGEST_START_S = 3600.0  # what takes longer since the start of the process is no start of a command

# Called with the detail of the first event "started" and its step; returns what is trained, line by line.
Describe = Callable[[Mapping[str, Any], int], Sequence[str]]


class Progress:
    """Shows the stages of a start, and records of metrics.jsonl. Neither a record nor its reader can make it fail.

    Without a `stream`, it writes to standard output; if that is a terminal, with a live line. `began`: when the command
    began, by time.monotonic.
    """

    def __init__(self, stream: TextIO | None = None, began: float | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._is_live = stream is None and streams.is_terminal(sys.stdout)
        self._line: LiveLine | None = None
        self._stage: tuple[str, float] | None = None  # its text, and its begin
        self._long: threading.Timer | None = None  # shows the begin of a long stage
        self._total_steps = "n/a"
        self.began = time.monotonic() if began is None else began
        self.start_s: float | None = None  # seconds of the command until its first attempt began to train
        self.training_began: float | None = None  # of the newest attempt, by time.time
        self.describe: Describe = lambda detail, step: ()
        self.on_record: Callable[[], object] = lambda: None  # called with each record: workers are there

    @property
    def is_live(self) -> bool:
        """Whether there is a line on a terminal that changes: nothing else may write to the terminal."""
        return self._is_live

    def print(self, text: str) -> None:
        """Print a line. A closed stream, a full disk, or a letter that the encoding lacks loses the line only."""
        with contextlib.suppress(OSError, ValueError):
            if self._line is not None:
                self._line.print(text)
            else:
                print(text, file=self._stream, flush=True)

    def stage(self, text: str | None, began: float | None = None) -> None:
        """A stage of the start begins, and the one before ends; None: none begins.

        `began`: it began then, and its begin was shown then.
        """
        now = time.monotonic()
        self._end_stage(now)
        if text is not None:
            self._stage = text, now if began is None else began
            if not self._is_live and began is None:
                self._long = threading.Timer(LONG_S, lambda: self.print(f"{text} ..."))
                self._long.daemon = True
                self._long.start()
        if self._is_live and (line := self._live()) is not None:
            line.stage = self._stage
            line.refresh()

    def see(self, step: int, phase: str) -> None:
        """Rank 0 has completed `step`, by its heartbeat, and is in this phase."""
        if self._line is not None and self._line.training is not None:
            self._line.training.see(step, {"evaluate": "evaluating", "save": "saving"}.get(phase, ""))

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record, if it is of interest to a person."""
        kind, event, detail = record.get("kind"), record.get("event"), detail_of(record)
        self.on_record()
        if event == "stage":
            begins = detail.get("begins")
            self.stage(begins if isinstance(begins, str) else None)
        elif event == "started":
            self._started(record, detail)
        elif event in ("finished", "stopped") and self._line is not None:
            self._line.training = None
            self._line.stage = "ending", time.monotonic()
        line = self._line
        if line is None:
            text = text_of(record, self._total_steps)
            if text is not None:
                self.print(text)
        elif kind == "train":
            if line.training is not None:
                line.training.add(record)
                line.refresh()
        elif event == "indexing" and self._stage is not None:
            line.stage = f"{detail.get('text', 'n/a')}", self._stage[1]
        elif (text := text_of(record, self._total_steps, line.width)) is not None:
            self.print(text)

    def hide(self) -> None:
        """Show the live line no longer; takes no lock."""
        if self._line is not None:
            self._line.is_hidden = True

    def close(self) -> None:
        """End the live line; a stage that is running ends without a word. The next stage begins another line."""
        self._stage = None
        self._cancel()
        if self._line is not None:
            self._line.close()
            self._line = None

    def _started(self, record: Mapping[str, Any], detail: Mapping[str, Any]) -> None:
        self._total_steps = shown(detail, "total_steps", "d")
        self.training_began = time.time()
        is_first = self.start_s is None
        if is_first:
            self.start_s = time.monotonic() - self.began
        step = record.get("step")
        if self._line is not None and self._total_steps.isdecimal() and isinstance(step, int):
            from launcher.console.live import TrainingLine

            self._line.training = TrainingLine(int(self._total_steps), step)
        self.stage(None)
        if is_first and isinstance(step, int):
            for text in self.describe(detail, step):
                self.print(text)

    def _live(self) -> LiveLine | None:
        """The live line, which begins now if there is none yet."""
        if self._line is None:
            from launcher.console.live import LiveLine

            sys.stdout.flush()
            self._line = LiveLine()
        return self._line

    def _end_stage(self, now: float) -> None:
        self._cancel()
        if self._line is not None:
            self._line.stage = None
        if self._stage is not None:
            text, began = self._stage
            width = _STAGE_WIDTH if self._line is None else min(self._line.width - 1, _STAGE_WIDTH)
            self.print(f"{text[: width - 10].ljust(width - 10)}{now - began:>8.1f} s")
        self._stage = None

    def _cancel(self) -> None:
        if self._long is not None:
            self._long.cancel()
            self._long = None


def command_began() -> float:
    """When this process began, by time.monotonic; now if the system does not say."""
    now = time.monotonic()
    with contextlib.suppress(ValueError, AttributeError, OSError):  # proc(5): the start is in ticks since the boot
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        elapsed = since_boot - int(process_start(os.getpid())) / os.sysconf("SC_CLK_TCK")
        if 0.0 <= elapsed < _LONGEST_START_S:
            return now - elapsed
    return now
