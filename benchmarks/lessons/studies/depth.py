"""Plain against residual networks at 8, 20 and 56 layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import by_verdict, in_points, in_units, number, percent

DEPTHS = (8, 20, 56)
KINDS = {True: "residual", False: "plain"}


def where(depth: int, residual: bool) -> Where:
    """The network of this depth, with or without shortcuts."""
    return {"model.name": f"resnet{depth}", "model.residual": residual}


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    top1 = measured.difference("top1", where(56, False), where(56, True))
    loss = measured.difference("training_loss", where(56, False), where(56, True))
    if top1.verdict == "smaller" and loss.verdict == "larger":
        return f"not without shortcuts: at 56 layers, plain minus residual is {in_points(top1)} in top-1"
    return f"inconclusive: plain minus residual at 56 layers is {in_points(top1)} in top-1"


def table(measured: Measured) -> list[list[str]]:
    """Top-1 and training loss of the six networks."""
    rows = [["layers", "top-1, residual", "top-1, plain", "training loss, residual", "training loss, plain"]]
    for depth in DEPTHS:
        networks = [where(depth, residual) for residual in KINDS]
        top1 = [percent(measured.summary("top1", one)) for one in networks]
        rows.append([str(depth), *top1, *(number(measured.summary("training_loss", one)) for one in networks)])
    return rows


def findings(measured: Measured) -> list[str]:
    """What the data say about each depth, and about depth itself."""
    found = []
    for depth in DEPTHS:
        pair = where(depth, False), where(depth, True)
        top1, loss = measured.difference("top1", *pair), measured.difference("training_loss", *pair)
        found.append(
            f"At {depth} layers, plain minus residual is {in_points(top1)} in top-1, {in_units(loss)} in training loss."
        )
    top1 = measured.difference("top1", where(56, False), where(20, False))
    loss = measured.difference("training_loss", where(56, False), where(20, False))
    text = f"56 minus 20 layers without shortcuts: {in_points(top1)} in top-1, {in_units(loss)} in training loss."
    if top1.verdict == "smaller":
        text += by_verdict(
            loss.verdict,
            larger=" The deeper network is worse on the images that it trains on, so this is no overfitting: it is "
            "harder to train (degradation).",
            smaller=" It fits its training images better, so this is overfitting.",
            inconclusive=" The training losses do not tell overfitting from degradation.",
        )
    found.append(text)
    deeper = measured.difference("top1", where(56, True), where(20, True))
    verdict = by_verdict(
        deeper.verdict,
        larger="depth helps even in this short run.",
        smaller="even with shortcuts the deeper network learns more slowly in a run this short.",
        inconclusive="these runs show neither a loss nor a gain.",
    )
    found.append(f"With shortcuts, 56 minus 20 layers is {in_points(deeper)} in top-1: {verdict}")
    return found


def draw(measured: Measured) -> Draw:
    """Top-1 against depth, and the training loss of the networks of 56 layers."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        for style, (residual, name) in enumerate(KINDS.items()):
            points = [(depth, where(depth, residual)) for depth in DEPTHS]
            drawing.dots(left, measured, "top1", points, number=style, label=name)
        left.set(xlabel="layers", ylabel="top-1, %", title="Validation accuracy", xticks=DEPTHS)
        left.legend()
        lines = [(f"{name}, {depth}", where(depth, residual)) for depth in (20, 56) for residual, name in KINDS.items()]
        drawing.curves(right, measured, lines)
        right.set(ylabel="training loss", title="Training loss")
        right.legend()

    return panels


LESSON = Lesson("depth", answer, table, findings, draw, curves=("loss",))
