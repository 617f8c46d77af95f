"""The charts of a page: which curves they have, what they show in words, and their drawing as SVG.

page.js draws the same charts again from the same numbers when a reader zooms or chooses another axis: the geometry
and the ticks are the same in both.
"""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.report.curves import Curves, rounded
from launcher.report.result import Accuracy

WIDTH, HEIGHT = 720, 270  # in units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 38  # margins
NUM_COLORS = 8  # of page.css; further runs repeat them with dashes
_MARKED = 60  # points of a line with markers, at most
_TICKS = 5
_WIDE = 1000.0  # largest / smallest value from which on an axis is logarithmic


@dataclass(frozen=True)
class Kind:
    """A chart of the page: its quantities, each with what it is called."""

    id: str
    title: str
    unit: str
    quantities: Mapping[str, str]  # of launcher.report.curves.QUANTITIES: its label
    percent: bool = False  # fractions, shown in percent
    zero: bool = False  # its vertical axis begins at 0
    note: str = ""

    @property
    def factor(self) -> float:
        """From a recorded value to a drawn one."""
        return 100.0 if self.percent else 1.0


KINDS = (
    Kind(
        "top1",
        "Top-1 accuracy",
        "%",
        {"eval_top1": "val", "train_split_top1": "training split", "train_top1": "training batches"},
        percent=True,
        note="Training batches are augmented, and seen before the step's update: their accuracy may be below that of "
        "val. The vertical bars are 95 % intervals of the evaluations.",
    ),
    Kind(
        "loss",
        "Loss",
        "",
        {"eval_loss": "val", "train_split_loss": "training split", "train_loss": "training batches"},
        note="Label smoothing, mixing and augmentation raise the loss of training batches; evaluations have none.",
    ),
    Kind("lr", "Learning rate", "", {"learning_rate": "learning rate"}),
    Kind("speed", "Throughput", "images/s", {"images_per_s": "images/s"}, zero=True),
    Kind("wait", "Waiting for images", "% of a step", {"data_wait": "data wait"}, percent=True, zero=True),
    Kind("norm", "Gradient norm", "", {"gradient_norm": "gradient norm"}),
    Kind(
        "trust",
        "Trust ratios of the layers",
        "",
        {"trust_ratio_max": "largest", "trust_ratio_median": "median", "trust_ratio_min": "smallest"},
    ),
)


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    run: int  # number of the run on the page, from 0
    run_name: str
    quantity: str
    label: str  # of the quantity
    curves: Curves
    color: int  # from 0: of its run, or of its quantity if there is one run

    @property
    def x(self) -> Sequence[float]:
        """Epochs; steps if they are not recorded."""
        return self.curves.step if self.curves.epoch is None else self.curves.epoch

    @property
    def values(self) -> list[tuple[float, float]]:
        """(x, value) of the points that have one."""
        return [(self.x[position], value) for position, value in self.curves.points[self.quantity].known()]

    @property
    def strength(self) -> int:
        """0 for the main quantity of a chart, 1 for a second one (dashed), 2 for a faint one."""
        if self.quantity in ("train_loss", "train_top1"):
            return 2
        return 1 if self.quantity in ("train_split_loss", "train_split_top1", "trust_ratio_min") else 0

    @property
    def style(self) -> str:
        """The classes of page.css: its colour, dashes if the colour is taken, and how strong it is."""
        return f"{color_of(self.color)} q{self.strength}"

    @property
    def has_markers(self) -> bool:
        """Whether its points are drawn: those of a few evaluations, or a single one."""
        is_evaluation = self.quantity.startswith(("eval", "train_split"))
        return len(self.x) == 1 or (is_evaluation and len(self.x) <= _MARKED)

    def intervals(self) -> list[tuple[int, float, float]]:
        """Point, lower and upper end of the 95 % intervals of its accuracies; empty for another quantity."""
        numbers = self.curves.points.get("num_samples")
        if self.quantity != "eval_top1" or not self.has_markers or numbers is None:
            return []
        found = []
        for position, value in self.curves.points[self.quantity].known():
            if (num_samples := numbers.mean[position]) and 0 <= value <= 1:
                low, high = Accuracy(value, int(num_samples)).interval
                found.append((position, rounded(low), rounded(high)))
        return found


@dataclass(frozen=True)
class Mark:
    """An attempt that ended before the run did, at a point of its train curves."""

    run: int
    curves: Curves
    position: int
    text: str

    @property
    def x(self) -> float:
        """As of a line."""
        return (self.curves.step if self.curves.epoch is None else self.curves.epoch)[self.position]


def marks(number: int, found: Curves, ends: Sequence[tuple[int, str]]) -> list[Mark]:
    """The marks of the run `number`. `ends`: last step and cause of its attempts."""
    last = len(found.step) - 1
    places = [(min(bisect.bisect_left(found.step, step), last), text) for step, text in ends]
    return [Mark(number, found, place, text) for place, text in places if last >= 0]


def color_of(number: int) -> str:
    """The classes of page.css for a colour, with dashes if it is used again.

    >>> color_of(1), color_of(9)
    ('s1 d0', 's1 d1')
    """
    return f"s{number % NUM_COLORS} d{number // NUM_COLORS % 3}"


@dataclass(frozen=True)
class Chart:
    """A chart with its curves, at least one."""

    kind: Kind
    lines: Sequence[Line]
    by_epoch: bool  # the horizontal axis: epochs, else steps
    log: bool  # the vertical axis
    marks: Sequence[Mark]


def charts(runs: Sequence[tuple[str, Curves, Curves]], marked: Sequence[Mark] = ()) -> list[Chart]:
    """The charts that have any curve. `runs`: name, train curves and eval curves of each run."""
    made = []
    by_epoch = all(curves.epoch is not None for _, *kinds in runs for curves in kinds if curves.step)
    for kind in KINDS:
        lines = [
            Line(number, name, quantity, label, curves, number if len(runs) > 1 else position)
            for position, (quantity, label) in enumerate(kind.quantities.items())
            for number, (name, *kinds) in enumerate(runs)
            for curves in kinds
            if quantity in curves.points
        ]
        values = [[value for _, value in line.values] for line in lines if line.values]
        if values:
            made.append(Chart(kind, lines, by_epoch, _is_wide(kind, values), marked))
    return made


def _is_wide(kind: Kind, values: Sequence[Sequence[float]]) -> bool:
    """Whether an axis for lines with these values is logarithmic. Of learning rates, which end near 0, peaks count."""
    least = min((max if kind.id == "lr" else min)(one) for one in values)
    can_be = kind.id in ("loss", "lr", "norm", "trust") and min(map(min, values)) > 0
    return can_be and max(map(max, values)) > _WIDE * least


def words(chart: Chart) -> str:
    """What the curves do: first, last and best values."""
    return " ".join(_words(chart.kind, line, several=len({one.run for one in chart.lines}) > 1) for line in chart.lines)


def _words(kind: Kind, line: Line, *, several: bool) -> str:
    values = line.values
    where = "epoch" if line.curves.epoch is not None else "step"
    name = f"{line.run_name}, {line.label}" if several else line.label
    if not values:
        return f"{name}: no finite value."
    (first_x, first), (last_x, last) = values[0], values[-1]
    text = f"{name}: {shown(kind, first)} at {where} {first_x:.3g}, {shown(kind, last)} at {where} {last_x:.3g}"
    pick, word = (min, "lowest") if kind.id == "loss" else (max, "highest")
    best_x, best = pick(values, key=lambda pair: pair[1])
    return f"{text}; {word} {shown(kind, best)} at {where} {best_x:.3g}."


def shown(kind: Kind, value: float | None) -> str:
    """A value with four digits, in the unit of its chart."""
    if value is None:
        return ""
    return f"{100 * value:.2f} %" if kind.percent else f"{value:.4g}"


# --- drawing


def svg(chart: Chart, identity: str) -> str:
    """The drawing; `identity` is unique on the page."""
    factor = chart.kind.factor
    xs = [x for line in chart.lines for x, _ in line.values]
    ys = [factor * value for line in chart.lines for _, value in line.values]
    x_axis = Axis.around([0.0, max(xs)], LEFT, WIDTH - RIGHT, most_ticks=WIDTH // 80)
    y_axis = Axis.around([*ys, 0.0] if chart.kind.zero else ys, HEIGHT - BOTTOM, TOP, padding=0.05, log=chart.log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">',
        f'<title id="{identity}-t">{html.escape(chart.kind.title)}</title>',
        f'<desc id="{identity}-d">{html.escape(words(chart))}</desc>',
        *_axes(x_axis, y_axis, "epoch" if chart.by_epoch else "step"),
    ]
    for line in sorted(chart.lines, key=lambda line: -line.strength):
        parts += [f'<g class="{line.style}">', *_line(line, x_axis, y_axis, factor), "</g>"]
    for mark in chart.marks:
        place = f"M{x_axis.at(mark.x):.1f} {HEIGHT - BOTTOM - 9}l-5 9h10z"
        parts.append(f'<path class="mark" d="{place}"><title>{html.escape(mark.text)}</title></path>')
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Axis:
    """An axis: the values from `low` to `high` lie between the coordinates `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    most_ticks: float = _TICKS

    @classmethod
    def around(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        padding: float = 0.0,
        log: bool = False,
        most_ticks: float = _TICKS,
    ) -> Axis:
        """The axis for `values`, with `padding` as a part of their range on both sides."""
        low, high = (math.log10(end) if log else end for end in (min(values), max(values)))
        spare = (high - low) * padding if high > low else abs(low) * 0.05 or 1.0
        return cls(low - spare, high + spare, start, end, log, most_ticks)

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        place = (math.log10(max(value, 1e-300)) if self.log else value) - self.low
        return self.start + place / (self.high - self.low) * (self.end - self.start)

    def inside(self, value: float) -> float:
        """The coordinate of a value, or the nearer end of the axis."""
        return min(max(self.at(value), min(self.start, self.end)), max(self.start, self.end))

    def ticks(self) -> list[float]:
        """Round values on the axis: multiples of 1, 2 or 5 times a power of ten; on a long logarithmic one, powers."""
        rough = (self.high - self.low) / self.most_ticks
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        step = max(round(step), 1) if self.log else step
        numbers = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [10.0 ** (number * step) if self.log else number * step for number in numbers]


def tick_text(value: float) -> str:
    """A tick as text.

    >>> tick_text(0.30000000000000004), tick_text(20000.0), tick_text(1e-05)
    ('0.3', '20,000', '1e-05')
    """
    small = abs(value) < 1e-12
    return "0" if small else f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def _axes(x_axis: Axis, y_axis: Axis, x_label: str) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value in y_axis.ticks():
        y = y_axis.at(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
    for value in x_axis.ticks():
        x = x_axis.at(value)
        yield f'<path class="grid" d="M{x:.1f} {bottom}v5"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick_text(value)}</text>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
    yield f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{x_label}</text>'


def _line(line: Line, x_axis: Axis, y_axis: Axis, factor: float) -> Iterator[str]:
    points = line.curves.points[line.quantity]
    places = [
        (x_axis.at(x), None if value is None else y_axis.at(factor * value))
        for x, value in zip(line.x, points.mean, strict=True)
    ]
    if points.low is not points.mean:
        yield f'<path class="band" d="{_band(line, x_axis, y_axis, factor)}"/>'
    for position, *ends in line.intervals():
        bottom, top = (y_axis.inside(factor * end) for end in ends)
        yield f'<path class="bar" d="M{places[position][0]:.1f} {bottom:.1f}V{top:.1f}"/>'
    yield f'<path class="line" d="{path(places)}"/>'
    if line.has_markers:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places if y is not None)


def path(places: Sequence[tuple[float, float | None]]) -> str:
    """An SVG path through the points; one without a y interrupts it.

    >>> path([(0.0, 1.0), (2.0, 3.0), (4.0, None), (6.0, 7.0)])
    'M0.0 1.0L2.0 3.0M6.0 7.0'
    """
    parts, command = [], "M"
    for x, y in places:
        if y is None:
            command = "M"
        else:
            parts.append(f"{command}{x:.1f} {y:.1f}")
            command = "L"
    return "".join(parts)


def _band(line: Line, x_axis: Axis, y_axis: Axis, factor: float) -> str:
    """The range between the smallest and the largest value of each point."""
    points = line.curves.points[line.quantity]
    both = zip(line.x, points.low, points.high, strict=True)
    known = [(x, low, high) for x, low, high in both if low is not None and high is not None]
    ends = [(x, high) for x, _, high in known] + [(x, low) for x, low, _ in reversed(known)]
    return f"M{'L'.join(f'{x_axis.at(x):.1f} {y_axis.inside(factor * value):.1f}' for x, value in ends)}Z"
