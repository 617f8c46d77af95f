"""One line at the bottom of a terminal that changes; other lines appear above it."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher import streams
from launcher.console.records import shown
from resnet_dist.progress_line import in_time

BAR = 8, 30  # least and most columns
_REFRESH_PER_S = 4


class LiveLine:
    """The line: the stage that is running, or else how far the training is. It never wraps."""

    def __init__(self) -> None:
        self.stage: tuple[str, float] | None = None  # its text, and its begin by time.monotonic
        self.training: TrainingLine | None = None
        self.is_hidden = False
        self._console = Console(file=streams.protected_stdout(), force_terminal=True, highlight=False)
        self._live = Live(
            self,
            console=self._console,
            transient=True,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
        )
        self._live.start()
        self._console.show_cursor(True)  # so that it is there however the process ends

    @property
    def width(self) -> int:
        """The columns of the terminal, as it is now."""
        return self._console.width

    def print(self, text: str) -> None:
        """Print text above the line. What is longer than the terminal is wide is broken between words."""
        lines = [part for line in text.split("\n") for part in _wrapped(line, self.width)]
        self._console.print("\n".join(lines), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Show now what has changed."""
        self._live.refresh()

    def close(self) -> None:
        """Remove the line."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich shows."""
        width = options.max_width - len("^C") - 1  # what a terminal adds after a key press; a full line may wrap
        if self.is_hidden:
            yield Text()
        elif self.stage is not None:
            text, began = self.stage
            elapsed = f"  {time.monotonic() - began:.0f} s"
            yield Text(text[: max(width - len(elapsed), 0)] + elapsed, no_wrap=True, overflow="crop")
        elif self.training is not None:
            yield self.training.row(width)
        else:
            yield Text()


def _wrapped(line: str, width: int) -> list[str]:
    begin = re.match(r" *(\S+( \S+)?  +(?=\S))?", line)  # a name in the first column, and the spaces behind it
    indent = min(len(begin[0]) if begin else 0, width // 2) or 2
    wrapped = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return wrapped or [""]


class TrainingLine:
    """Bar, step, epoch, loss, speed and time left; from the newest record, and from heartbeats in between."""

    def __init__(self, total_steps: int, step: int) -> None:
        self._total, self._step = total_steps, step
        self._doing = ""
        self._record: Mapping[str, Any] = {}
        self._recorded_at = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """A train record has come."""
        self._record, self._recorded_at = record, time.monotonic()
        self.see(record.get("step"), "")

    def see(self, step: object, doing: str) -> None:
        """So many steps are completed, and rank 0 is `doing` something other than a step; ignored if it is old."""
        if isinstance(step, int) and step >= self._step:
            self._step, self._doing = step, doing

    def row(self, width: int) -> Table:
        """The line, for so many columns."""
        texts = self.texts(width)
        bar = min(width - sum(len(text) + 2 for text in texts), BAR[1])
        row = Table.grid(padding=(0, 2), pad_edge=False)
        cells: list[Any] = [Text(text, no_wrap=True, overflow="crop") for text in texts]
        if bar >= BAR[0]:
            cells.insert(
                0, ProgressBar(total=max(self._total, 1), completed=self._step, width=bar, complete_style="green")
            )
        row.add_row(*cells)
        return row

    def texts(self, width: int) -> Sequence[str]:
        """What stands beside the bar: the parts that fit, by their importance, in the order of the line."""
        record = self._record
        step = f"{self._step:>{len(str(self._total))}d}/{self._total}"
        loss, speed = f"loss {shown(record, 'loss', '.4f')}", f"{shown(record, 'images_per_s', ',.0f')} images/s"
        epoch = f"epoch {shown(record, 'epoch', '.2f')}"
        known = {"loss", "images_per_s", "epoch"} & set(record)
        order = [step, epoch * ("epoch" in known), loss * ("loss" in known), speed * ("images_per_s" in known)]
        order += [self._doing, self._left()]
        chosen: list[int] = []
        for index in (0, 5, 2, 4, 3, 1):  # the most important ones first
            needed = sum(len(order[one]) + 2 for one in [*chosen, index])
            if order[index] and (not chosen or needed + BAR[0] <= width):
                chosen.append(index)
        return [order[index] for index in sorted(chosen)]

    def _left(self) -> str:
        left = self._record.get("time_left_s")
        if not isinstance(left, int | float) or not 0 <= left < 10**9:
            return ""
        return f"{in_time(max(round(left - (time.monotonic() - self._recorded_at)), 0))} left"
