"""Draws samples as one picture: for each the whole image with its window, what the network sees, and a caption."""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels of the two pictures of a sample
_COLUMNS = 3
_GAP = 16
_TEXT_PX, _LINE_PX = 16, 22
_NUM_LINES = 4  # of a caption
_WIDTH = 2 * SIDE + 6  # of a sample
_HEIGHT = SIDE + 6 + _NUM_LINES * _LINE_PX

_PAPER, _INK, _FAINT, _WINDOW = (255, 255, 255), (0, 0, 0), (96, 96, 96), (230, 0, 0)
_LEGEND = "left: the whole image, and in red the window that is cut out; right: what the network sees"


@dataclass(frozen=True, eq=False)
class Sample:
    """An image of a step or of an evaluation.

    position   in the stream (training) or in the split (evaluation)
    sample_id  the row of the index
    path       in the data set
    classes    names of the classes and their parts of the label, the largest first
    window     top, left, height, width in the original
    flipped    left to right, after it was cut out
    original   the whole image; None if it cannot be read
    seen       what the network sees, without the normalisation; None for a broken image, which it does not see
    caption    lines in place of those about classes, position and path
    """

    position: int
    sample_id: int
    path: str
    classes: Sequence[tuple[str, float]]
    window: tuple[int, int, int, int]
    flipped: bool
    original: Image.Image | None
    seen: Image.Image | None
    caption: Sequence[str] = ()


def draw(samples: Sequence[Sample], titles: Sequence[str]) -> Image.Image:
    """The samples in rows of three below `titles`, which are lines of text."""
    columns = min(_COLUMNS, len(samples))
    rows = -(-len(samples) // columns)
    width = max(columns * (_WIDTH + _GAP) + _GAP, 2 * (_WIDTH + _GAP))
    lines = [line for title in (*titles, _LEGEND) for line in _wrapped(title, width - 2 * _GAP)]
    top = 2 * _GAP + len(lines) * _LINE_PX
    sheet = Image.new("RGB", (width, top + rows * (_HEIGHT + _GAP)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * _LINE_PX), line, _INK, _font())
    for number, sample in enumerate(samples):
        left = _GAP + number % columns * (_WIDTH + _GAP)
        _draw_sample(sheet, pen, sample, left, top + number // columns * (_HEIGHT + _GAP))
    return sheet


def _draw_sample(sheet: Image.Image, pen: ImageDraw.ImageDraw, sample: Sample, left: int, top: int) -> None:
    for image, start in ((sample.original, left), (sample.seen, left + SIDE + 6)):
        if image is not None:
            sheet.paste(_resized(image), (start, top))
        else:
            pen.rectangle((start, top, start + SIDE - 1, top + SIDE - 1), outline=_FAINT)
            pen.text((start + _GAP, top + _GAP), "broken", _INK, _font())
    if sample.original is not None:
        factor = SIDE / max(sample.original.size)
        window_top, window_left, height, width = (factor * pixels for pixels in sample.window)
        right, bottom = left + window_left + width - 1, top + window_top + height - 1
        pen.rectangle((left + window_left, top + window_top, right, bottom), outline=_WINDOW, width=2)
    for number, line in enumerate(_caption(sample)):
        where = (left, top + SIDE + 6 + number * _LINE_PX)
        pen.text(where, _shortened(line, _WIDTH), _FAINT if number else _INK, _font())


def _resized(image: Image.Image) -> Image.Image:
    """The image with a longer side of SIDE pixels; a small one with its pixels as squares."""
    longer = max(image.size)
    if longer == SIDE:
        return image
    size = max(1, round(image.width * SIDE / longer)), max(1, round(image.height * SIDE / longer))
    kind = Image.Resampling.NEAREST if 2 * longer <= SIDE else Image.Resampling.BICUBIC
    return image.resize(size, kind)


def _caption(sample: Sample) -> Iterator[str]:
    """At most _NUM_LINES lines; a longer class name or path is shortened in its middle."""
    if sample.caption:
        yield from sample.caption
    else:
        parts = [name if part == 1 else f"{100 * part:.2g} % {name}" for name, part in sample.classes]
        yield " + ".join(_shortened(part, (_WIDTH - 40) // len(parts)) for part in parts)
        yield f"position {sample.position:,}, id {sample.sample_id:,}"
        yield sample.path
    top, left, height, width = sample.window
    size = "" if sample.original is None else f" of {sample.original.width} x {sample.original.height}"
    flipped = ", flipped" if sample.flipped else ""
    yield f"window {width} x {height} at ({left}, {top}){size}{flipped}"


def _shortened(text: str, width: int) -> str:
    """`text` without its middle, as far as `width` pixels require, and in characters that can be drawn."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if _font().getlength(text) <= width:
        return text

    def without_middle(kept: int) -> str:
        return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"

    kept = bisect_left(range(1, len(text)), width, key=lambda kept: math.ceil(_font().getlength(without_middle(kept))))
    return without_middle(kept)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """`text` in lines of at most `width` pixels; a longer word is shortened."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and _font().getlength(longer) > width:
            yield line
            longer = word
        line = _shortened(longer, width)
    yield line


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_PX)
