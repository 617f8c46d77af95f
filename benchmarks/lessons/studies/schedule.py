"""Four schedules, with and without warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, listed, number, percent, sorted_by_verdict
from launcher.study.statistics import Summary

DECAYS = ("constant", "step", "cosine", "polynomial")
WARMUPS = ("0 steps", "20 steps")


def where(decay: str, warmup: str) -> Where:
    """The runs with this decay and warm-up."""
    return {"label": decay, "schedule.warmup": warmup}


def decayed(measured: Measured) -> dict[str, Summary]:
    """Each decay minus constant, with warm-up."""
    base = where("constant", WARMUPS[1])
    return {decay: measured.difference("top1", where(decay, WARMUPS[1]), base) for decay in DECAYS[1:]}


def warmed(measured: Measured) -> dict[str, Summary]:
    """With warm-up minus without, for each decay."""
    return {decay: measured.difference("top1", where(decay, WARMUPS[1]), where(decay, WARMUPS[0])) for decay in DECAYS}


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = [f"{name} {in_points(one)}" for name, one in decayed(measured).items()]
    return f"against a constant LR, in top-1: {', '.join(texts)}"


def table(measured: Measured) -> list[list[str]]:
    """Top-1 and training loss of all schedules."""
    rows = [["decay", "top-1 without warm-up", "top-1 with warm-up", "training loss with warm-up"]]
    for decay in DECAYS:
        top1 = [percent(measured.summary("top1", where(decay, warmup))) for warmup in WARMUPS]
        rows.append([decay, *top1, number(measured.summary("training_loss", where(decay, WARMUPS[1])))])
    return rows


def findings(measured: Measured) -> list[str]:
    """What decay and warm-up are worth."""
    by_decay, by_warmup = sorted_by_verdict(decayed(measured)), sorted_by_verdict(warmed(measured))
    found = [
        f"{name.capitalize()} minus constant, with warm-up: {in_points(one)}."
        for name, one in decayed(measured).items()
    ]
    found.append(
        f"So better than a constant LR: {listed(by_decay['larger'])}; worse: {listed(by_decay['smaller'])}; "
        f"inconclusive: {listed(by_decay['inconclusive'])}."
    )
    texts = [f"{name} {in_points(one)}" for name, one in warmed(measured).items()]
    found.append(f"Warm-up minus none: {'; '.join(texts)}.")
    found.append(
        f"So warm-up helps with {listed(by_warmup['larger'], 'no schedule')}, costs accuracy with "
        f"{listed(by_warmup['smaller'], 'none')}, and is inconclusive with {listed(by_warmup['inconclusive'], 'none')}."
    )
    return found


def draw(measured: Measured) -> Draw:
    """The learning rates, and top-1."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        lines = [(decay, where(decay, WARMUPS[1])) for decay in DECAYS]
        drawing.curves(left, measured, lines, "learning_rate")
        left.set(ylabel="LR", title="Learning rate, with warm-up")
        left.legend()
        points = [(f"{decay}{', warm-up' if warmup == WARMUPS[1] else ''}", where(decay, warmup))
                  for decay in DECAYS for warmup in WARMUPS]  # fmt: skip
        drawing.rows(right, measured, "top1", points)
        right.set(xlabel="top-1, %", title="Validation accuracy")

    return panels


LESSON = Lesson("schedule", answer, table, findings, draw, curves=("loss", "learning_rate"))
