"""A whole screen as lines: the header of each run, one panel, and the keys. Drawn for any size."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from launcher.formatting import count
from launcher.run.status import NOT_BEGUN
from launcher.watch import panels
from launcher.watch.chart import draw, number
from launcher.watch.lines import Line, Span, beside, fitted, flowed, line, plain
from launcher.watch.snapshot import Snapshot
from launcher.watch.view import PANELS, View, charts, duration

TWO_COLUMNS = 76  # cells from which two charts, or the panels of two runs, are next to each other
_CHART_HEIGHT = 7  # least height of a chart, if there is space for more than one
_STATES = {"finished": "good", "running": "good", "saving": "good", "failed": "bad", "unknown": "bad"}
_LEGEND: tuple[Span, ...] = (("A ━━", "first"), ("B ╍╍", "second"))
_FULL, _EMPTY = "█", "░"

HELP = (
    ("1 2 3 4, tab", "curves, time and attempts, workers, log"),
    ("s", "smoothing of curves: none, light, strong"),
    ("x", "horizontal axis: step, epoch, time of training"),
    ("r, R", "log of the next rank, of the one before"),
    ("up, down, page", "scroll the workers and the log"),
    ("?", "this help"),
    ("q", "quit; the run goes on"),
)
SIGNS = (
    "Marks on the loss: x failure, | stop, a digit: this attempt began, s straggler, T target of stop_at. "
    "Of two runs, A is the solid line and B the dashed one."
)


def screen(runs: Sequence[Snapshot], view: View, width: int, height: int) -> list[Line]:
    """The screen with exactly `height` lines of `width` cells."""
    head = _header(runs, width, height)
    foot = [_keys(runs, view, width)]
    space = max(height - len(head) - len(foot), 0)
    body = _help(width) if view.help else _body(runs, view, width, space)
    rows = [*head, *body[:space], *([()] * (space - len(body))), *foot][:height]
    return [fitted(row, width) for row in rows]


def text(runs: Sequence[Snapshot], view: View, width: int) -> str:
    """Everything, one panel after the other, for a terminal that only prints."""
    blocks = [_header(runs, width, 100)]
    blocks += [draw(chart, width, 14) for chart in charts(runs, view)]
    for one in runs:
        title = [line((one.name, "bold"))] if len(runs) > 1 else []
        blocks += [
            [*title, *panels.time(one, width)],
            panels.attempts(one, width, 40),
            panels.workers(one, width, 0)[:20],
        ]
        blocks.append(panels.log(one, width, 12, 0))
    return "\n\n".join("\n".join(plain(row) for row in block) for block in blocks if block) + "\n"


def _body(runs: Sequence[Snapshot], view: View, width: int, height: int) -> list[Line]:
    if view.panel == "curves":
        return _curves(runs, view, width, height)
    draw_panel = _PANELS[view.panel]
    if len(runs) == 1:
        return draw_panel(runs[0], view, width, height)
    titles = [line((f"{letter} {run.name}", "bold")) for letter, run in zip("AB", runs, strict=True)]
    if width >= TWO_COLUMNS:
        half = (width - 1) // 2
        left, right = (
            [title, *draw_panel(run, view, half, height - 1)] for title, run in zip(titles, runs, strict=True)
        )
        return list(beside(left, right, half))
    half = height // 2
    return [
        row
        for title, run in zip(titles, runs, strict=True)
        for row in ([title, *draw_panel(run, view, width, half - 1)] + [()] * half)[:half]
    ]


_PANELS: dict[str, Callable[[Snapshot, View, int, int], list[Line]]] = {
    "time": lambda run, view, width, height: [*panels.time(run, width), (), *panels.attempts(run, width, height)],
    "workers": lambda run, view, width, height: panels.scrolled(
        panels.workers(run, width, 1), view.scroll, height, keep=2
    ),
    "log": lambda run, view, width, height: panels.log(run, width, height, view.scroll),
}


def _curves(runs: Sequence[Snapshot], view: View, width: int, height: int) -> list[Line]:
    """Charts, as many as fit, and below them what else is worth a line."""
    all_charts = list(charts(runs, view))
    columns = 2 if width >= TWO_COLUMNS else 1
    extra = _extra(runs, width, max(height - 2 * _CHART_HEIGHT, 0) if columns == 2 else height - 12)
    space = height - len(extra)
    rows = max(min(space // _CHART_HEIGHT, len(all_charts) // columns), 1)
    each, half = space // rows, (width - 1) // 2 if columns == 2 else width
    lines: list[Line] = []
    for row in range(rows):
        shown = [draw(chart, half, each) for chart in all_charts[row * columns : (row + 1) * columns]]
        lines += beside(shown[0], shown[1], half) if columns == 2 else shown[0]
    return [*lines, *([()] * (space - len(lines))), *extra]


def _extra(runs: Sequence[Snapshot], width: int, height: int) -> list[Line]:
    """Up to `height` lines: where time goes, the workers, the newest mark, and the end of the log."""
    if height <= 0:
        return []
    rows: list[Line] = []
    for letter, one in zip("AB", runs, strict=False):
        rows += panels.summary(one, name=letter if len(runs) > 1 else "")
    left = height - len(rows)
    if len(runs) == 1 and left > 1:
        rows += panels.log(runs[0], width, min(left, 8), 0)
    return rows[:height]


def _header(runs: Sequence[Snapshot], width: int, height: int) -> list[Line]:
    at_most = 1 if height < 10 else 2 if height < 20 or len(runs) > 1 else 3
    rows: list[Line] = []
    for index, one in enumerate(runs):
        legend = [_LEGEND[index]] if len(runs) > 1 else []
        rows += flowed([*legend, *_facts(one, width)], width, at_most)
    return rows


def _facts(one: Snapshot, width: int) -> Iterator[str | Span]:
    """What is known of a run, the most important first."""
    state = "not started" if one.state == "unknown" and one.reason == NOT_BEGUN else one.state
    yield one.name, "bold"
    yield state, _STATES.get(state, "bold")
    if one.step is not None and one.total_steps:
        part = min(one.step / one.total_steps, 1.0)
        bar = max(min(width // 6, 20), 6)
        full = int(part * bar)
        yield f"{_FULL * full}{_EMPTY * (bar - full)} {part:.0%}"
    is_wrong = state in ("failed", "unknown")
    if one.reason and is_wrong:
        yield one.reason, "bad"
    if one.time_left_s is not None:
        yield f"left {duration(one.time_left_s)}"
    if one.step is not None:
        yield f"step {one.step:,}{f'/{one.total_steps:,}' if one.total_steps else ''}"
    if one.reason and not is_wrong:
        yield one.reason
    if one.loss is not None:
        yield f"loss {one.loss:.4g}"
    if one.top1 is not None:
        best = f" (best {one.best_top1:.2%})" if one.best_top1 is not None and one.best_top1 > one.top1 else ""
        yield f"top-1 {one.top1:.2%}{best}"
    if one.images_per_s is not None:
        yield f"{number(one.images_per_s)} images/s"
    if one.learning_rate is not None:
        yield f"LR {one.learning_rate:.4g}"
    if one.epoch is not None:
        yield f"epoch {one.epoch:.2f}"
    if one.attempt is not None:
        workers = "" if one.num_workers is None else f" on {count(one.num_workers, 'worker')}"
        yield f"attempt {one.attempt}{workers}"
    if one.last_beat_s is not None:
        yield f"heartbeat {one.last_beat_s:.0f} s ago"
    if one.job:
        yield one.job


def _keys(runs: Sequence[Snapshot], view: View, width: int) -> Line:
    tabs: list[str | Span] = []
    for position, panel in enumerate(PANELS, 1):
        name = f"{position} {panel}" if width >= 60 else str(position)
        tabs.append((f" {name} ", "tab" if panel == view.panel and not view.help else "quiet"))
    keys = [f"s smooth {view.smoothing}", f"x axis {view.axis}"] if view.panel == "curves" else []
    keys += [f"r rank {view.rank}"] if view.panel == "log" else []
    parts = [*tabs, *((key, "quiet") for key in ("? help", "q quit", *keys))]
    return flowed(parts, width, 1, gap=" ")[0]


def _help(width: int) -> list[Line]:
    rows = [
        line((f"{keys if index == 0 else '':<16}", "bold"), part)
        for keys, words in HELP
        for index, part in enumerate(textwrap.wrap(words, max(width - 16, 20)))
    ]
    return [*rows, (), *panels.wrapped(SIGNS, width)]
