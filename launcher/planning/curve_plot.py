"""A curve as lines of text: bars between the axis and the curve, so that a peak of a single step is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"  # 0 to 8 eighths of a row
_ASCII = " ...:::##"
_PROBES = 8  # steps of a column at which the curve is read; the highest one is drawn


def curve(
    value: Callable[[int], float],
    steps: int,
    *,
    width: int,
    height: int,
    ticks: Sequence[str],
    ascii_only: bool = False,
) -> Iterator[str]:
    """`value(step)` for the steps 0 to `steps` - 1: `height` lines and two of the axis, at most `width` wide.

    The vertical axis begins at 0 and ends at the largest value that is drawn; a value above 0 is at least a dot.
    `ticks` are texts that are spread evenly below the horizontal axis: all of them, or only the first, the middle and
    the last one, or only the first and the last one, as there is space. `ascii_only`: for a terminal that cannot show
    block characters.

    >>> print("\\n".join(curve(float, 8, width=14, height=2, ticks=("0", "8"), ascii_only=True)))
      7 |     ..:#
    3.5 |  .:#####
      0 +---------
         0       8
    """
    top = max(_highest(value, steps, column, width) for column in range(width)) or 1.0
    labels = _labels(top, height)
    margin = max(map(len, labels))
    num = max(1, width - margin - 2)
    heights = [_highest(value, steps, column, num) for column in range(num)]
    eighths = [min(max(round(8 * height * one / top), int(one > 0)), 8 * height) for one in heights]
    shades = _ASCII if ascii_only else _BLOCKS
    side, corner, line = "|+-" if ascii_only else "│└─"
    for row in reversed(range(height)):
        cells = "".join(shades[min(max(one - 8 * row, 0), 8)] for one in eighths)
        yield f"{labels[row + 1]:>{margin}} {side}{cells}".rstrip()
    yield f"{labels[0]:>{margin}} {corner}{line * num}"
    yield f"{' ' * (margin + 2)}{_spread(ticks, num)}".rstrip()


def _labels(top: float, height: int) -> list[str]:
    """The labels of the axis and of the upper edges of all rows, from below: 0, half of `top`, and `top`."""
    labels = ["0", *[""] * (height - 1), f"{top:.3g}"]
    if height > 1 and height % 2 == 0:
        labels[height // 2] = f"{top / 2:.3g}"
    return labels


def _highest(value: Callable[[int], float], steps: int, column: int, num_columns: int) -> float:
    """The largest of the values that are read for a column."""
    first = steps * column // num_columns
    after = max(first + 1, steps * (column + 1) // num_columns)
    between = max(1, min(_PROBES, after - first) - 1)
    return max(value(first + (after - 1 - first) * probe // between) for probe in range(between + 1))


def _spread(ticks: Sequence[str], width: int) -> str:
    """The ticks, spread evenly over `width` characters: the ends at its ends, the others around their places."""
    for chosen in (ticks, ticks[:: max(1, len(ticks) // 2)], (ticks[0], ticks[-1])):
        line = " " * width
        for number, text in enumerate(chosen):
            place = round(number * width / (len(chosen) - 1) - len(text) / 2)
            start = max(0, min(place, width - len(text)))
            if line[max(0, start - 1) : start + len(text) + 1].strip():
                break
            line = line[:start] + text + line[start + len(text) :]
        else:
            return line
    return ticks[0]
