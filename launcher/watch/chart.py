"""Line charts of braille characters: each has 2 × 4 dots, so a chart has eight times the resolution of its cells.

Drawn here and not with plotext, which needs six times as long (`python -m benchmarks.watch`) and cannot dash a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from launcher.watch.lines import Line, Span, line

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row] of a braille character
_BRAILLE = 0x2800
_DASH = 4  # dots of a dash, and of the gap after it
_LOG_FROM = 100  # ratio of the largest and the smallest value from which the axis is logarithmic
_AXIS = 8  # cells of the labels at the left

Point = tuple[float, float | None]  # None: not finite; the curve has a gap


@dataclass(frozen=True)
class Curve:
    """A curve and its style. Dashed and solid lines differ without colours."""

    points: Sequence[Point]
    style: str = "first"
    dashed: bool = False
    name: str = ""  # one letter, drawn at its end


@dataclass(frozen=True)
class Chart:
    """What a chart shows. `marks` are (x, sign, style)."""

    title: str
    curves: Sequence[Curve]
    show: Callable[[float], str]  # a value at the vertical axis
    show_x: Callable[[float], str]
    x_name: str  # of the horizontal axis
    x_range: tuple[float, float]
    marks: Sequence[tuple[float, str, str]] = ()
    from_zero: bool = False
    may_be_log: bool = False
    if_empty: str = "no data yet"  # shown without a value


@dataclass
class _Grid:
    """The dots of a chart of width × height cells."""

    width: int
    height: int
    bits: dict[tuple[int, int], int] = field(default_factory=dict)  # (row, column) -> dots of the cell
    styles: dict[tuple[int, int], str] = field(default_factory=dict)

    def draw(self, column: int, low: int, high: int, style: str) -> None:
        """Set the dots from `low` to `high`, counted from the bottom, in a column of dots."""
        for dot in range(max(low, 0), min(high, 4 * self.height - 1) + 1):
            row, inside = divmod(4 * self.height - 1 - dot, 4)
            key = (row, column // 2)
            self.bits[key] = self.bits.get(key, 0) | _DOTS[column % 2][inside]
            self.styles[key] = style


def draw(chart: Chart, width: int, height: int) -> list[Line]:
    """The chart in `width` × `height` cells: its title, the curves, and two lines for the horizontal axis."""
    head = line((chart.title[:width], "bold"))
    values = [value for curve in chart.curves for _, value in curve.points if value is not None]
    num_rows, num_columns = height - 3, width - _AXIS
    if not values or num_rows < 1 or num_columns < 4:
        return [head, line((f"  {chart.if_empty}" if not values else "", "quiet"))][:height]
    is_log = chart.may_be_log and min(values) > 0 and max(values) / min(values) > _LOG_FROM
    scale = math.log10 if is_log else float
    low, high = _range(values, from_zero=chart.from_zero, is_log=is_log)
    grid = _Grid(num_columns, num_rows)
    signs: dict[tuple[int, int], Span] = {}
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0
    for curve in chart.curves:
        dots = [
            (x, None if y is None or (is_log and y <= 0) else (scale(y) - bottom) / span * (4 * num_rows - 1))
            for x, y in _in_columns(curve.points, chart.x_range, 2 * num_columns)
        ]
        end = _draw_curve(grid, dots, curve)
        if end is not None and curve.name:
            row = min(max(num_rows - 1 - int(end[1]) // 4, 0), num_rows - 1)
            column = min(end[0] // 2, num_columns - 1)
            signs[row, column - ((row, column) in signs)] = (curve.name, curve.style)
    columns = _mark_columns(chart, num_columns)
    labels = _labels(chart, low, high, num_rows, is_log)
    rows = [line((labels.get(row, ""), "quiet"), *_row(grid, row, signs, columns)) for row in range(num_rows)]
    head = line((chart.title[:width], "bold"), (", log axis" if is_log else "", "quiet"))
    return [head, *rows, _axis(columns, num_columns), _x_labels(chart, width)]


def number(value: float) -> str:
    """A value in at most 7 characters.

    >>> [number(value) for value in (0.0, 0.25, 12.5, 1234.0, 2_500_000.0, 1e-5)]
    ['0', '0.25', '12.5', '1,234', '2.5M', '1e-05']
    """
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.2g}"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def _range(values: Sequence[float], *, from_zero: bool, is_log: bool) -> tuple[float, float]:
    """The values at the bottom and at the top."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    if is_log:
        return low, high
    if high == low:
        pad = abs(high) / 10 or 1.0
        return (low if from_zero else low - pad), high + pad
    return low, high


def _in_columns(
    points: Sequence[Point], x_range: tuple[float, float], num_columns: int
) -> Iterator[tuple[float, float | None]]:
    """Points with the column of dots, a fraction, in place of x."""
    first, last = x_range
    per_x = (num_columns - 1) / (last - first) if last > first else 0.0
    for x, y in sorted(points, key=lambda point: point[0]):
        yield min(max((x - first) * per_x, 0.0), num_columns - 1.0), y


def _draw_curve(grid: _Grid, dots: Sequence[tuple[float, float | None]], curve: Curve) -> tuple[int, float] | None:
    """Connect the dots; returns the last one, as (column, height)."""
    lows: dict[int, float] = {}
    highs: dict[int, float] = {}

    def reach(column: int, height: float) -> None:
        lows[column] = min(lows.get(column, height), height)
        highs[column] = max(highs.get(column, height), height)

    end = None
    for (x, y), following in pairwise([*dots, (0.0, None)]):
        if y is None:
            continue
        end = (int(x), y)
        reach(int(x), y)
        next_x, next_y = following
        if next_y is None:
            continue
        for column in range(int(x) + 1, int(next_x) + 1):
            part = (column - x) / (next_x - x)
            height = y + part * (next_y - y)
            reach(column - 1, height)
            reach(column, height)
    for column, low in lows.items():
        if not curve.dashed or column // _DASH % 2 == 0:
            grid.draw(column, int(low), int(highs[column]), curve.style)
    return end


def _mark_columns(chart: Chart, num_columns: int) -> dict[int, Span]:
    """{column: (sign, style)} of the marks inside the range. Of two in one place, the second is on the right."""
    first, last = chart.x_range
    per_x = (num_columns - 1) / (last - first) if last > first else 0.0
    columns: dict[int, Span] = {}
    for x, sign, style in chart.marks:
        if first <= x <= last:
            column = round((x - first) * per_x)
            column, span = min(column + (column in columns), num_columns - 1), (sign, style)
            while column in columns and column > 0:  # without space there, the earlier ones move to the left
                columns[column], span, column = span, columns[column], column - 1
            columns[column] = span
    return columns


def _labels(chart: Chart, low: float, high: float, num_rows: int, is_log: bool) -> dict[int, str]:
    """The labels of the vertical axis by row: round values, or on a logarithmic axis those of evenly spaced rows."""
    labels = dict.fromkeys(range(num_rows), " " * (_AXIS - 1) + "│")
    if is_log:
        parts = {row: 1 - row / max(num_rows - 1, 1) for row in range(0, num_rows, 3)}
        ticks = {row: float(f"{low * (high / low) ** part:.2g}") for row, part in parts.items()}
    else:
        of_row = (high - low) / num_rows
        step = _round_up(2 * of_row)
        first = math.ceil(low / step)
        values = [step * (first + k) for k in range(num_rows) if step * (first + k) <= high * (1 + 1e-9)]
        ticks = {min(max(int((high - value) / of_row), 0), num_rows - 1): value for value in values}
    for row, value in ticks.items():
        labels[row] = f"{chart.show(value)[: _AXIS - 1]:>{_AXIS - 1}}┤"
    return labels


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten.

    >>> _round_up(0.3), _round_up(12.0), _round_up(7e5)
    (0.5, 20.0, 1000000.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= value * (1 - 1e-9))


def _row(grid: _Grid, row: int, signs: dict[tuple[int, int], Span], columns: dict[int, Span]) -> Iterator[Span]:
    """The cells of a row, as few spans as possible."""
    text, style = "", ""
    for column in range(grid.width):
        key = (row, column)
        if key in signs:
            cell, of_cell = signs[key]
        elif key in grid.bits:
            cell, of_cell = chr(_BRAILLE + grid.bits[key]), grid.styles[key]
        elif column in columns:
            cell, of_cell = "┊", columns[column][1]
        else:
            cell, of_cell = " ", style
        if of_cell != style:
            if text:
                yield text, style
            text, style = "", of_cell
        text += cell
    yield text, style


def _axis(columns: dict[int, Span], num_columns: int) -> Line:
    spans: list[Span] = [(" " * (_AXIS - 1) + "└", "quiet")]
    drawn = -1
    for column in sorted(columns):
        spans += [("─" * (column - drawn - 1), "quiet"), columns[column]]
        drawn = column
    return line(*spans, ("─" * (num_columns - drawn - 1), "quiet"))


def _x_labels(chart: Chart, width: int) -> Line:
    first, last = (chart.show_x(x) for x in chart.x_range)
    middle = f"{chart.x_name} {chart.show_x(sum(chart.x_range) / 2)}"
    space = width - _AXIS
    text = first + last.rjust(space - len(first))
    at = (space - len(middle)) // 2
    if at > len(first) + 1 and at + len(middle) + 1 < space - len(last):
        text = text[:at] + middle + text[at + len(middle) :]
    return line((" " * _AXIS + text[:space], "quiet"))
