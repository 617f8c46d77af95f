"""Four schedules, with and without warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, number, percent, sentence, sorted_by_verdict
from launcher.study.statistics import Summary

DECAYS = ("constant", "step", "cosine", "polynomial")
WARM = ", warm-up"
LOW = f"{WARM}, LR 0.1"  # the preview has a high LR; these runs a moderate one


def where(decay: str, what: str = "") -> Where:
    """The runs with this decay: without warm-up, with it (`WARM`), or with it at LR 0.1 (`LOW`)."""
    return {"label": decay + what}


def decayed(measured: Measured) -> dict[str, Summary]:
    """Each decay minus constant, with warm-up."""
    return {decay: measured.difference("top1", where(decay, WARM), where("constant", WARM)) for decay in DECAYS[1:]}


def warmed(measured: Measured) -> dict[str, Summary]:
    """With warm-up minus without, for each decay."""
    return {decay: measured.difference("top1", where(decay, WARM), where(decay)) for decay in DECAYS}


def in_words(decays: Sequence[str]) -> list[str]:
    """Names for a list in a sentence, of decays in the order of `DECAYS`.

    >>> in_words(["constant", "step", "cosine"])
    ['a constant LR', 'step', 'cosine decay']
    """
    words = ["a constant LR" if decay == DECAYS[0] else decay for decay in decays]
    return [*words[:-1], f"{words[-1]} decay"] if decays and decays[-1] != DECAYS[0] else words


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = [f"{name} {in_points(one)}" for name, one in decayed(measured).items()]
    return f"against a constant LR, in top-1: {', '.join(texts)}"


def table(measured: Measured) -> list[list[str]]:
    """Top-1 and training loss of all schedules."""
    rows = [["decay", "top-1 without warm-up", "top-1 with warm-up", "training loss with warm-up"]]
    for decay in DECAYS:
        top1 = [percent(measured.summary("top1", where(decay, what))) for what in ("", WARM)]
        rows.append([decay, *top1, number(measured.summary("training_loss", where(decay, WARM)))])
    for decay in DECAYS:
        if measured.runs(where(decay, LOW)):
            loss = number(measured.summary("training_loss", where(decay, LOW)))
            rows.append([f"{decay}, LR 0.1", "-", percent(measured.summary("top1", where(decay, LOW))), loss])
    return rows


def findings(measured: Measured) -> list[str]:
    """What decay and warm-up are worth."""
    by_decay, by_warmup = (
        {verdict: in_words(decays) for verdict, decays in sorted_by_verdict(differences).items()}
        for differences in (decayed(measured), warmed(measured))
    )
    texts = [f"{name} {in_points(one)}" for name, one in decayed(measured).items()]
    found = [
        f"Top-1 with warm-up, minus that of a constant LR: {'; '.join(texts)}.",
        sentence(
            "So, compared with a constant LR, top-1",
            by_decay,
            larger="is higher with {}",
            smaller="is lower with {}",
            inconclusive="does not differ clearly with {}",
        ),
    ]
    texts = [f"{name} {in_points(one)}" for name, one in warmed(measured).items()]
    found.append(f"Top-1 with warm-up minus that without: {'; '.join(texts)}.")
    found.append(
        sentence(
            "So warm-up",
            by_warmup,
            larger="helps with {}",
            smaller="costs accuracy with {}",
            inconclusive="is inconclusive with {}",
        )
    )
    if measured.runs(where("cosine", LOW)):
        low = measured.difference("top1", where("cosine", LOW), where("constant", LOW))
        found.append(f"At LR 0.1, with warm-up, cosine minus constant is {in_points(low)} in top-1.")
    return found


def draw(measured: Measured) -> Draw:
    """The learning rates, and top-1."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        drawing.curves(left, measured, [(decay, where(decay, WARM)) for decay in DECAYS], "learning_rate")
        left.set(ylabel="LR", title="Learning rate, with warm-up")
        left.legend()
        points = [(decay + what, where(decay, what)) for decay in DECAYS for what in ("", WARM, LOW)]
        drawing.rows(right, measured, "top1", [point for point in points if measured.runs(point[1])])
        right.set(xlabel="top-1, %", title="Validation accuracy")

    return panels


LESSON = Lesson("schedule", answer, table, findings, draw, curves=("loss", "learning_rate"))
