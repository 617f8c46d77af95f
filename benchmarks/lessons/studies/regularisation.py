"""Regularizers on 1,000 images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, listed, number, percent, sorted_by_verdict
from launcher.study.statistics import Summary

BASE = "none"
KINDS = ("L1", "L2", "dropout", "label smoothing", "mixup")


def where(label: str) -> Where:
    """The runs with this regularizer."""
    return {"label": label}


def effects(measured: Measured, metric: str) -> dict[str, Summary]:
    """Each regularizer minus none."""
    return {label: measured.difference(metric, where(label), where(BASE)) for label in KINDS}


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    gap, top1 = (sorted_by_verdict(effects(measured, metric)) for metric in ("gap", "top1"))
    return (
        f"a smaller gap: {listed(gap['smaller'])}; a higher validation accuracy: {listed(top1['larger'])}; "
        f"a lower one: {listed(top1['smaller'])}"
    )


def table(measured: Measured) -> list[list[str]]:
    """Accuracies, gap and weights."""
    rows = [["regularizer", "training top-1", "validation top-1", "gap", "weights below 0.001", "norm of the weights"]]
    for label in (BASE, *KINDS):
        point = where(label)
        shares = [percent(measured.summary(metric, point)) for metric in ("train_top1", "top1", "gap", "small_weights")]
        rows.append([label, *shares, number(measured.summary("weight_norm", point), 1)])
    return rows


def findings(measured: Measured) -> list[str]:
    """What each regularizer does to gap, accuracy and weights."""
    gap, top1 = effects(measured, "gap"), effects(measured, "top1")
    base = percent(measured.summary("gap", where(BASE))).replace("%", "points")
    found = [f"Without a regularizer, the gap between training and validation accuracy is {base}."]
    found += [
        f"{_first(label)}: gap {in_points(gap[label])}, validation accuracy {in_points(top1[label])}."
        for label in KINDS
    ]
    kinds = sorted_by_verdict(top1)
    text = (
        f"So validation accuracy rises with {listed(kinds['larger'])}, falls with {listed(kinds['smaller'])}, and is "
        f"inconclusive with {listed(kinds['inconclusive'])}."
    )
    in_vain = [label for label in sorted_by_verdict(gap)["smaller"] if label not in kinds["larger"]]
    if in_vain:
        text += f" A smaller gap is not by itself a better network: {listed(in_vain)}."
    found.append(text)
    small, norm = (
        {label: measured.summary(metric, where(label)).mean for label in (BASE, *KINDS)}
        for metric in ("small_weights", "weight_norm")
    )
    found.append(
        f"Most small weights: {max(small, key=small.__getitem__)}. Smallest norm of all weights: "
        f"{min(norm, key=norm.__getitem__)}."
    )
    return found


def _first(text: str) -> str:
    return text[0].upper() + text[1:]


def draw(measured: Measured) -> Draw:
    """The gap, and validation accuracy."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        points = [(label, where(label)) for label in (BASE, *KINDS)]
        drawing.rows(left, measured, "gap", points)
        left.set(xlabel="points", title="Training minus validation accuracy")
        drawing.rows(right, measured, "top1", points)
        right.set(xlabel="top-1, %", title="Validation accuracy")
        right.set_yticks(right.get_yticks(), [])

    return panels


LESSON = Lesson("regularisation", answer, table, findings, draw)
