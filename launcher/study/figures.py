"""The figures of a study, as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from launcher.study.plan import LABEL, short, shown
from launcher.study.results import PERCENT, Results
from launcher.study.schema import Figure
from launcher.study.series import EVALUATION, Series, is_number, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "matplotlib is not installed: no figures (pip install 'resnet-launcher[figures]')"

# Okabe and Ito's palette, which people with colour blindness can tell apart; markers and dashes repeat the distinction.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
SIZE_INCHES = (6.4, 4.0)
FEW = 4  # lines with a legend in the size of the other text
LOG_X, LOG_Y = 20.0, 1000.0  # largest / smallest value from which on an axis is logarithmic
STYLE = {
    "svg.hashsalt": "study",  # the same bytes for the same numbers
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def file_name(number: int, figure: Figure) -> str:
    """The name of a figure's files, without a suffix.

    >>> file_name(0, Figure(kind="line", x="model.name", y="top1"))
    '1-line-top1-by-model'
    """
    against = f"-by-{short(figure.x, ())}" if figure.x else ""
    return re.sub(r"[^A-Za-z0-9-]+", "_", f"{number + 1}-{figure.kind}-{figure.y}{against}")


def title(figure: Figure, axes: Sequence[str]) -> str:
    """What a figure shows, as a heading. `axes`: the keys that the study varies.

    >>> title(Figure(kind="line", x="model.name", y="top1"), []), title(Figure(kind="curve", y="train.loss"), [])
    ('top1 against model', 'train.loss against step')
    """
    x = {"curve": "step", "layers": "layer"}.get(figure.kind) or short(figure.x or "", axes)
    return f"{figure.y} against {x}"


def draw(figure: Figure, results: Results) -> dict[str, bytes] | None:
    """The figure as PNG and SVG, by suffix; None if there is nothing to draw yet."""
    lines = series(figure, results)
    if not lines:
        return None
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(cast(Any, STYLE)):
        drawing, axes = pyplot.subplots(figsize=SIZE_INCHES, layout="constrained")
        {"line": _lines, "bar": _bars, "curve": _bands, "layers": _bands}[figure.kind](axes, lines)
        _label(axes, figure, results, lines)
        made = {}
        for suffix, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            stream = io.BytesIO()
            drawing.savefig(stream, format=suffix, **options)
            made[suffix] = stream.getvalue()
        pyplot.close(drawing)
    return made


def _styles(lines: Sequence[Series]) -> list[dict[str, Any]]:
    """The style of each line: its family has a colour, and its position in the family a dash."""
    families = list(dict.fromkeys(line.family for line in lines))
    styles = []
    for number, line in enumerate(lines):
        inside = sum(other.family == line.family for other in lines[:number])
        color = COLORS[families.index(line.family) % len(COLORS)]
        styles.append({"color": color, "linestyle": DASHES[inside % len(DASHES)]})
    return styles


def _positions(lines: Sequence[Series]) -> dict[str, int] | None:
    """The position of each value of x that is not a number; None if all are."""
    values = [value for line in lines for value in line.x]
    if all(map(is_number, values)):
        return None
    return {text: position for position, text in enumerate(dict.fromkeys(map(shown, values)))}


def _lines(axes: Axes, lines: Sequence[Series]) -> None:
    positions = _positions(lines)
    for number, (line, style) in enumerate(zip(lines, _styles(lines), strict=True)):
        x = line.x if positions is None else [positions[shown(value)] for value in line.x]
        axes.errorbar(
            x, line.mean, _errors(line), label=line.label, marker=MARKERS[number % len(MARKERS)], capsize=4,
            **style,
        )  # fmt: skip
    _ticks(axes, positions)
    if positions is None:
        _log(axes, "x", [value for line in lines for value in line.x], LOG_X)
        values = sorted({value for line in lines for value in line.x})
        if len(values) <= 8:  # name the values that were trained
            axes.set_xticks(values, [shown(value) for value in values])
            axes.minorticks_off()


def _bars(axes: Axes, lines: Sequence[Series]) -> None:
    positions = {text: number for number, text in
                 enumerate(dict.fromkeys(shown(value) for line in lines for value in line.x))}  # fmt: skip
    width = 0.8 / len(lines)
    for number, line in enumerate(lines):
        x = [positions[shown(value)] + (number - (len(lines) - 1) / 2) * width for value in line.x]
        axes.bar(x, line.mean, width * 0.95, yerr=_errors(line), capsize=4, label=line.label,
                 color=COLORS[number % len(COLORS)])  # fmt: skip
    _ticks(axes, positions)


def _bands(axes: Axes, lines: Sequence[Series]) -> None:
    for number, (line, style) in enumerate(zip(lines, _styles(lines), strict=True)):
        few: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if len(line.x) <= 25 else {}
        axes.plot(line.x, line.mean, label=line.label, **style, **few)
        if line.low != line.high:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.2, linewidth=0)


def _errors(line: Series) -> list[list[float]] | None:
    """Lengths of the error bars below and above; None without any."""
    below = [mean - low for mean, low in zip(line.mean, line.low, strict=True)]
    above = [high - mean for mean, high in zip(line.mean, line.high, strict=True)]
    return [below, above] if any(below) or any(above) else None


def _ticks(axes: Axes, positions: dict[str, int] | None) -> None:
    if positions is not None:
        long = sum(map(len, positions)) > 60  # characters on the axis
        axes.set_xticks(list(positions.values()), list(positions), rotation=30 if long else 0,
                        ha="right" if long else "center")  # fmt: skip


def _log(axes: Axes, axis: str, values: Sequence[float], ratio: float) -> None:
    if min(values) > 0 and max(values) >= ratio * min(values):
        axes.set(**{f"{axis}scale": "log"})


def _label(axes: Axes, figure: Figure, results: Results, lines: Sequence[Series]) -> None:
    from matplotlib.ticker import MaxNLocator

    name = figure.y.removeprefix(EVALUATION)
    x = {"curve": "step", "layers": "layer, from the input"}.get(figure.kind)
    if x is None:
        assert figure.x is not None
        x = "" if figure.x == LABEL else short(figure.x, results.plan.axes)
    y = "training loss" if figure.y == "train.loss" else name.replace("_", " ")
    axes.set(xlabel=x, ylabel=f"{y} (%)" if name in PERCENT else y)
    if figure.kind != "bar":
        _log(axes, "y", [value for line in lines for value in line.mean], LOG_Y)
    if name in PERCENT and name != "gap":  # an interval may be wider than the scale
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 100.0))
    if figure.kind in ("curve", "layers"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(line.label for line in lines):
        axes.legend(fontsize="small" if len(lines) > FEW else None)


def note(figure: Figure, results: Results) -> str:
    """What the intervals of a figure are, for its caption."""
    if len(results.plan.file.study.seeds) < 2:
        return "one seed"
    if figure.kind in ("line", "bar"):
        return "mean and 95 % interval over the seeds"
    return "mean and range over the seeds"
