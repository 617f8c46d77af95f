"""The full-screen view: textual handles the terminal and the keys, `launcher.watch.screen` makes what is shown."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from launcher.watch.lines import STYLES, Line
from launcher.watch.screen import screen
from launcher.watch.snapshot import Snapshot
from launcher.watch.sources import Poller, Source
from launcher.watch.view import AXES, PANELS, SMOOTHING, View

FIRST_S = 0.3  # for the first snapshots, before an empty screen is shown
TOGETHER_S = 0.4  # snapshots that come within this time are drawn together
_STYLES = {name: Style.parse(text) for name, text in STYLES.items()}


class Canvas(Widget):
    """Shows the lines that `make` returns for its width and height; only those that have changed are drawn again."""

    def __init__(self, make: Callable[[int, int], list[Line]]) -> None:
        super().__init__()
        self._make = make
        self.rows: list[Line] = []

    def renew(self) -> None:
        """Ask for the lines again."""
        before, self.rows = self.rows, self._make(*self.size) if self.size else []
        if len(before) != len(self.rows):
            self.refresh()
        elif changed := [y for y, row in enumerate(self.rows) if row != before[y]]:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def on_resize(self, _: events.Resize) -> None:
        """Draw for another size."""
        self.rows = []
        self.renew()

    def render_line(self, y: int) -> Strip:
        """As textual asks for it."""
        row = self.rows[y] if y < len(self.rows) else ()
        return Strip([Segment(text, _STYLES[style]) for text, style in row]).adjust_cell_length(self.size.width)


class Changed(Message):
    """There is a new snapshot."""


class WatchApp(App[None]):
    """The view of one or two runs, which are read by threads of their own."""

    CSS = "Screen, Canvas { background: ansi_default; color: ansi_default; width: 1fr; height: 1fr; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,escape", "quit", priority=True),
        Binding("tab", "turn('panel', 1)", priority=True),
        Binding("shift+tab", "turn('panel', -1)", priority=True),
        *(Binding(str(number), f"panel({number})") for number in range(1, len(PANELS) + 1)),
        Binding("s", "turn('smoothing', 1)"),
        Binding("x", "turn('axis', 1)"),
        Binding("r", "rank(1)"),
        Binding("R", "rank(-1)"),
        Binding("question_mark,h", "help"),
        Binding("down,j", "scroll(1)"),
        Binding("up,k", "scroll(-1)"),
        Binding("pagedown,space", "scroll(10)"),
        Binding("pageup", "scroll(-10)"),
    ]

    def __init__(self, sources: Sequence[Source], names: Sequence[str], rank: int = 0) -> None:
        super().__init__(ansi_color=True)
        self.view = View(rank=rank)
        self._is_due = False
        self._runs = [Snapshot(run="", name=name, state="reading") for name in names]
        self._pollers = [
            Poller(source, run, lambda: self.view.rank, functools.partial(self._update, index))
            for index, (source, run) in enumerate(zip(sources, self._runs, strict=True))
        ]
        for poller in self._pollers:
            poller.start()
        for poller in self._pollers:
            poller.has_begun.wait(FIRST_S)

    def compose(self) -> ComposeResult:
        """One widget."""
        yield Canvas(lambda width, height: screen(self._runs, self.view, width, height))

    def close(self) -> None:
        """End the threads, after `run`."""
        for poller in self._pollers:
            poller.stop()

    def on_changed(self, _: Changed) -> None:
        """Draw newer snapshots: those of both runs come at about the same time, and are drawn together."""
        if not self._is_due:
            self._is_due = True
            self.set_timer(TOGETHER_S, self._draw)

    def on_mouse_scroll_down(self, _: events.MouseScrollDown) -> None:
        """Scroll."""
        self.action_scroll(3)

    def on_mouse_scroll_up(self, _: events.MouseScrollUp) -> None:
        """Scroll."""
        self.action_scroll(-3)

    def action_panel(self, number: int) -> None:
        """Show panel number `number`, from 1."""
        self._choose(panel=PANELS[number - 1], scroll=0, help=False)

    def action_turn(self, what: str, by: int) -> None:
        """The next choice of the panel, the smoothing or the axis."""
        choices = {"panel": PANELS, "smoothing": tuple(SMOOTHING), "axis": tuple(AXES)}[what]
        chosen = choices[(choices.index(getattr(self.view, what)) + by) % len(choices)]
        self._choose(**{what: chosen}, scroll=0, help=False)

    def action_rank(self, by: int) -> None:
        """The log of the next rank that has one."""
        ranks = sorted({rank for run in self._runs for rank in run.ranks}) or [0]
        at = ranks.index(self.view.rank) + by if self.view.rank in ranks else 0
        self._choose(panel="log", rank=ranks[at % len(ranks)], scroll=0, help=False)
        for poller in self._pollers:
            poller.hurry()

    def action_help(self) -> None:
        """Show the help, or hide it."""
        self._choose(help=not self.view.help)

    def action_scroll(self, by: int) -> None:
        """Scroll the workers down, or the log towards its end."""
        longest = max(len(run.log if self.view.panel == "log" else run.workers) for run in self._runs)
        by = -by if self.view.panel == "log" else by
        self._choose(scroll=min(max(self.view.scroll + by, 0), longest))

    def _choose(self, **changes: Any) -> None:
        self.view = dataclasses.replace(self.view, **changes)
        self._draw()

    def _update(self, index: int, run: Snapshot) -> None:
        """A newer snapshot of run number `index`, from its thread."""
        self._runs[index] = run
        if self.is_running:
            self.post_message(Changed())

    def _draw(self) -> None:
        self._is_due = False
        self.query_one(Canvas).renew()
