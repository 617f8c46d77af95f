"""The learning rates that train with and without batch norm, small spans, the two modes, and the order of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import CHANCE, Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import by_verdict, in_points, in_units, listed, percent, share
from launcher.study.statistics import Summary

LRS = (0.01, 0.1, 1.0, 10.0)
SIDES = ("with", "without")
SPANS = (2, 4, 16, 128)
PRE = {"label": "before the activation and the convolution"}
WIDER = 10.0  # the hypothesis: the range of learning rates with batch norm / the range without
TRAINED = 0.6  # top-1 of a run that counts as trained


def where(lr: float, side: str) -> Where:
    """The runs at a learning rate, with or without batch norm."""
    return {"label": f"LR {lr:g}, {side}"}


def of_span(span: int) -> Where:
    """The runs at LR 0.1 whose batch norm has this span."""
    return where(0.1, "with") if span == 128 else {"label": f"span {span}"}


def trained(measured: Measured, side: str) -> list[float]:
    """The learning rates at which every seed trains."""
    top1 = {lr: measured.by_seed("top1", where(lr, side), diverged=CHANCE).values() for lr in LRS}
    return [lr for lr, values in top1.items() if values and min(values) >= TRAINED]


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    ranges = [listed([f"{lr:g}" for lr in trained(measured, side)]) for side in SIDES]
    span = measured.difference("top1", of_span(2), of_span(128))
    return (
        f"learning rates that train: {ranges[0]} with it, {ranges[1]} without; "
        f"statistics over 2 images instead of 128 are {in_points(span)} in top-1"
    )


def table(measured: Measured) -> list[list[str]]:
    """Top-1 of all runs, and the loss in both modes."""
    rows = [["run", "top-1", "evaluation minus training mode: loss"]]
    points = [*(where(lr, side) for side in reversed(SIDES) for lr in LRS), *map(of_span, SPANS[:-1]), PRE]
    for point in points:
        runs = measured.runs(point)
        if runs:
            bad = measured.num_diverged(point)
            parts = [percent(measured.summary("top1", point))] if bad < len(runs) else []
            text = ", ".join([*parts, *([f"{bad} of {len(runs)} diverged"] if bad else [])])
            rows.append([str(point["label"]), text, _modes(measured, point)])
    return rows


def _modes(measured: Measured, point: Where) -> str:
    difference = between_modes(measured, point)
    return "-" if difference is None else in_units(difference)


def between_modes(measured: Measured, point: Where) -> Summary | None:
    """Loss on the same val images in evaluation mode minus that in training mode; None without batch norm."""
    return measured.between("evaluation_mode_loss", "training_mode_loss", point)


def findings(measured: Measured) -> list[str]:
    """The range of learning rates, spans, modes and the order of layers."""
    found = []
    for side in SIDES:
        tried = [lr for lr in LRS if measured.runs(where(lr, side))]
        good = trained(measured, side)
        found.append(
            f"{side.capitalize()} batch norm, of the LRs {listed([f'{lr:g}' for lr in tried])} these reach a top-1 of "
            f"{share(TRAINED)} with every seed (a guess has {share(CHANCE)}): {listed([f'{lr:g}' for lr in good])}."
        )
    found.append(range_verdict(*(trained(measured, side) for side in SIDES)))
    spans = {span: measured.difference("top1", of_span(span), of_span(128)) for span in SPANS[:-1]}
    texts = [f"{in_points(difference)} at span {span}" for span, difference in spans.items()]
    found.append(f"Top-1 with small spans minus span 128: {', '.join(texts)}.")
    gaps = [f"{_modes(measured, of_span(span))} at span {span}" for span in SPANS]
    found.append(f"Loss in evaluation mode minus training mode, same weights and images: {', '.join(gaps)}.")
    order = measured.difference("top1", PRE, of_span(128))
    verdict = by_verdict(
        order.verdict, larger="better", smaller="worse", inconclusive="no difference that these runs could show"
    )
    found.append(f"Norm and activation before each convolution instead of after it: {in_points(order)}: {verdict}.")
    return found


def range_verdict(with_norm: Sequence[float], without: Sequence[float]) -> str:
    """What the learning rates that train, in increasing order, say about the hypothesis that batch norm widens them.

    >>> range_verdict([0.1, 1.0], [])
    'The hypothesis about the range cannot be checked: no LR of the grid trains without batch norm.'
    """
    missing = [side for side, lrs in zip(SIDES, (with_norm, without), strict=True) if not lrs]
    if missing:
        sides = listed(missing).replace(" and ", " or ")
        return f"The hypothesis about the range cannot be checked: no LR of the grid trains {sides} batch norm."
    wide, narrow = (lrs[-1] / lrs[0] for lrs in (with_norm, without))
    holds = "holds" if wide / narrow > WIDER * (1 - 1e-9) else "does not hold"
    return (
        f"So the range spans a factor of {wide:.0f} with batch norm and of {narrow:.0f} without: the hypothesis "
        f'"at least {WIDER:.0f} times wider" {holds} on this grid. Its neighbours differ by a factor of '
        f"{LRS[1] / LRS[0]:.0f}, so a finer grid may give another answer."
    )


def draw(measured: Measured) -> Draw:
    """Top-1 against the learning rate, and the loss in both modes against the span."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        for style, side in enumerate(SIDES):
            points = [(lr, where(lr, side)) for lr in LRS]
            drawing.dots(left, measured, "top1", points, number=style, label=f"{side} batch norm", diverged=CHANCE)
        left.axhline(100 * CHANCE, color="#8A8A8A", linewidth=0.8, linestyle=":")
        left.set(xscale="log", xlabel="peak LR", ylabel="top-1, %", title="Learning rates that train", ylim=(0, 100))
        left.legend()
        for style, mode in enumerate(("training", "evaluation")):
            points = [(span, of_span(span)) for span in SPANS]
            drawing.dots(right, measured, f"{mode}_mode_loss", points, number=style, label=f"{mode} mode", factor=1.0)
        right.set(
            xscale="log", xlabel="images per span", ylabel="loss on the same images", title="LR 0.1: the two modes"
        )
        right.set_xticks(SPANS, [str(span) for span in SPANS])
        right.minorticks_off()
        right.legend()

    return panels


LESSON = Lesson("batch_norm", answer, table, findings, draw)
