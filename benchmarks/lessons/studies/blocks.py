"""Basic and bottleneck blocks, and the kinds of shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, number, percent, sentence, sorted_by_verdict
from launcher.study.statistics import Summary

BASE = "basic with identity shortcuts"
BLOCKS = ("basic", "bottleneck")
KINDS = (
    "basic with projections where the shape changes",
    "basic with projections everywhere",
    "basic with pre-activation",
    "bottleneck with identity shortcuts",
)
ALL = (BASE, *KINDS[:3], "basic without shortcuts", KINDS[3], "bottleneck without shortcuts")


def where(label: str) -> Where:
    """The network with this label."""
    return {"label": label}


def worth(measured: Measured, block: str, metric: str = "top1") -> Summary:
    """With identity shortcuts minus without, at exactly equal parameters."""
    pair = where(f"{block} with identity shortcuts"), where(f"{block} without shortcuts")
    return measured.difference(metric, *pair)


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = [f"{in_points(worth(measured, block))} with {block} blocks" for block in BLOCKS]
    return f"in top-1, shortcuts are worth {' and '.join(texts)}, at equal parameters"


def table(measured: Measured) -> list[list[str]]:
    """Parameters, top-1 and training loss."""
    rows = [["network", "parameters", "top-1", "training loss"]]
    for label in ALL:
        point = where(label)
        size = f"{measured.summary('parameters', point).mean:,.0f}"
        loss = number(measured.summary("training_loss", point))
        rows.append([label, size, percent(measured.summary("top1", point)), loss])
    return rows


def findings(measured: Measured) -> list[str]:
    """What a shortcut is worth, and whether its kind matters."""
    found = [
        f"Identity shortcuts minus none, {block} blocks: {in_points(worth(measured, block))} in top-1."
        for block in BLOCKS
    ]
    differences = {label: measured.difference("top1", where(label), where(BASE)) for label in KINDS}
    found += [f"{label.capitalize()} minus {BASE}: {in_points(one)}." for label, one in differences.items()]
    kinds = sorted_by_verdict(differences)
    if len(kinds["inconclusive"]) == len(KINDS):
        found.append(f"So none of these kinds of blocks differs clearly in top-1 from {BASE}.")
    else:
        found.append(
            sentence(
                f"So, compared with {BASE}, top-1",
                kinds,
                larger="is higher for {}",
                smaller="is lower for {}",
                inconclusive="does not differ clearly for {}",
            )
        )
    return found


def draw(measured: Measured) -> Draw:
    """Top-1 and training loss of all networks."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        points = [(label.replace(" with ", "\nwith ").replace(" without", "\nwithout"), where(label)) for label in ALL]
        drawing.rows(left, measured, "top1", points)
        left.set(xlabel="top-1, %", title="Validation accuracy")
        drawing.rows(right, measured, "training_loss", points, factor=1.0)
        right.set(xlabel="training loss", title="Training loss")
        right.set_yticks(right.get_yticks(), [])

    return panels


LESSON = Lesson("blocks", answer, table, findings, draw)
