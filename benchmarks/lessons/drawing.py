"""The style of the lessons' figures: panels side by side, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.lessons.data import Measured, Where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito 2008, "Color Universal Design"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CHANCE = 0.1  # top-1 of a guess among ten classes

Draw = Callable[[Sequence[Any]], None]  # gets the axes of the panels


def svg(name: str, draw: Draw, panels: int, description: str) -> bytes:
    """A figure as SVG with text as text. The same data give the same bytes. `description` is kept in its metadata."""
    import matplotlib
    from cycler import cycler

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, panels, figsize=(4.4 * panels, 3.4), layout="constrained", squeeze=False)
        draw(list(axes[0]))
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Description": description})
        pyplot.close(figure)
    return content.getvalue()


def rows(
    axes: Axes, measured: Measured, metric: str, points: Sequence[tuple[str, Where]], factor: float = 100.0
) -> None:
    """A metric with intervals, one row for each of `points`, from top to bottom; empty for runs without the metric."""
    names = [name for name, _ in points]
    for row, (_, where) in enumerate(points):
        if measured.by_seed(metric, where):
            summary = measured.summary(metric, where)
            half = None if summary.half is None else factor * summary.half
            axes.errorbar(factor * summary.mean, row, xerr=half, color=COLOURS[0], marker=MARKERS[0], capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def dots(
    axes: Axes,
    measured: Measured,
    metric: str,
    points: Sequence[tuple[Any, Where]],
    *,
    number: int = 0,
    label: str = "",
    factor: float = 100.0,
    diverged: float | None = None,
) -> None:
    """A line through the means at each x, with intervals; runs without the metric are left out. `number`: its style."""
    found = [
        (x, measured.summary(metric, where, diverged=diverged))
        for x, where in points
        if measured.by_seed(metric, where, diverged=diverged)
    ]
    axes.errorbar(
        [x for x, _ in found],
        [factor * summary.mean for _, summary in found],
        yerr=[factor * (summary.half or 0.0) for _, summary in found],
        color=COLOURS[number],
        linestyle=LINES[number % len(LINES)],
        marker=MARKERS[number],
        markersize=5,
        capsize=3,
        label=label,
    )


def curves(axes: Axes, measured: Measured, points: Sequence[tuple[str, Where]], name: str = "loss") -> None:
    """A field of the train records against the step, a line for each of `points`: the mean over the seeds."""
    for number, (label, where) in enumerate(points):
        steps, values = measured.curve(name, where)
        axes.plot(steps, values, color=COLOURS[number], linestyle=LINES[number % len(LINES)], label=label)
    axes.set_xlabel("step")


def layers(axes: Axes, measured: Measured, points: Sequence[tuple[str, Where]], name: str) -> None:
    """A number of each layer against its depth, on a logarithmic scale: the geometric mean over the seeds."""
    for number, (label, where) in enumerate(points):
        values = measured.layers(name, where)
        positions = range(1, len(values) + 1)
        axes.semilogy(positions, values, color=COLOURS[number], linestyle=LINES[number % len(LINES)], label=label)
    axes.set_xlabel("layer, from the input")
