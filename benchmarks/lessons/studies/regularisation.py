"""Regularizers on 1,000 images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, listed, number, percent, sentence, sorted_by_verdict
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
    gap, top1 = (effects(measured, metric) for metric in ("gap", "top1"))
    return f"{_changes('the gap', gap)}; {_changes('validation accuracy', top1)}"


def _changes(subject: str, differences: dict[str, Summary]) -> str:
    return sentence(
        subject,
        sorted_by_verdict(differences),
        larger="rises with {}",
        smaller="falls with {}",
        inconclusive="does not change clearly with {}",
    ).rstrip(".")


def table(measured: Measured) -> list[list[str]]:
    """Accuracies, gap and weights."""
    columns = ["training top-1", "validation top-1", "gap, points", "weights below 0.001", "norm of the weights"]
    rows = [["regularizer", *columns]]
    for label in (BASE, *KINDS):
        point = where(label)
        top1 = [percent(measured.summary(metric, point)) for metric in ("train_top1", "top1")]
        gap, small = (percent(measured.summary(metric, point)) for metric in ("gap", "small_weights"))
        rows.append([label, *top1, gap.replace(" %", ""), small, number(measured.summary("weight_norm", point), 1)])
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
    text = f"So {_changes('validation accuracy', top1)}."
    kinds = sorted_by_verdict({label: one for label, one in gap.items() if top1[label].verdict != "larger"})
    if kinds["smaller"]:
        names, verb = _first(listed(kinds["smaller"])), "makes" if len(kinds["smaller"]) == 1 else "make"
        text += f" {names} {verb} the gap smaller without a higher validation accuracy."
    found.append(text)
    small, norm = (
        {label: measured.summary(metric, where(label)).mean for label in (BASE, *KINDS)}
        for metric in ("small_weights", "weight_norm")
    )
    found.append(
        f"The most weights below 0.001 are found with {_named(max(small, key=small.__getitem__))}, the smallest norm "
        f"of all weights with {_named(min(norm, key=norm.__getitem__))}."
    )
    return found


def _named(label: str) -> str:
    return "no regularizer" if label == BASE else label


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
