"""Nesterov momentum and LARS at three batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import by_verdict, in_points, listed, number, percent

BATCHES = (64, 256, 1024)
OPTIMIZERS = ("Nesterov", "LARS")


def where(optimizer: str, batch: int) -> Where:
    """The runs of the best LR."""
    return {"label": optimizer, "batch.size": batch}


def lr(measured: Measured, optimizer: str, batch: int) -> float:
    """The best of the tried peak LRs."""
    base = float(measured.runs(where(optimizer, batch))[0]["values"]["schedule.base_lr"])
    return base * batch / 256


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = []
    for batch in BATCHES:
        difference = measured.difference("top1", where("LARS", batch), where("Nesterov", batch))
        texts.append(f"{in_points(difference)} at {batch:,}")
    return f"LARS minus Nesterov, in top-1: {', '.join(texts)}"


def table(measured: Measured) -> list[list[str]]:
    """Top-1, steps and the best LR."""
    rows = [
        ["batch", "steps", *(f"{what}, {name}" for name in OPTIMIZERS for what in ("top-1", "peak LR", "to target"))]
    ]
    for batch in BATCHES:
        cells = []
        for name in OPTIMIZERS:
            point = where(name, batch)
            reached = measured.by_seed("steps_to_target", point)
            target = "-" if not reached else number(measured.summary("steps_to_target", point), 0)
            if 0 < len(reached) < len(measured.runs(point)):
                target += f" ({len(reached)} of {len(measured.runs(point))} runs)"
            cells += [percent(measured.summary("top1", point)), f"{lr(measured, name, batch):g}", target]
        rows.append([f"{batch:,}", str(measured.runs(where("Nesterov", batch))[0]["steps"]), *cells])
    return rows


def findings(measured: Measured) -> list[str]:
    """Whether LARS is needed, and what a large batch costs."""
    found = []
    for batch in BATCHES:
        difference = measured.difference("top1", where("LARS", batch), where("Nesterov", batch))
        verdict = by_verdict(
            difference.verdict,
            larger="LARS is better",
            smaller="Nesterov is better",
            inconclusive="these runs do not tell them apart",
        )
        found.append(f"Batch {batch:,}: LARS minus Nesterov is {in_points(difference)}: {verdict}.")
    for name in OPTIMIZERS:
        difference = measured.difference("top1", where(name, BATCHES[-1]), where(name, BATCHES[0]))
        found.append(
            f"{name}: batch {BATCHES[-1]:,} minus {BATCHES[0]} is {in_points(difference)} for the same images."
        )
    edges = [f"{name} at {batch:,}" for name in OPTIMIZERS for batch in BATCHES if on_edge(measured, name, batch)]
    found.append(
        f"The best LR is the smallest or the largest that was tried, so a better one may exist: {listed(edges)}."
    )
    return found


def on_edge(measured: Measured, optimizer: str, batch: int) -> bool:
    """Whether the best LR is the first or the last of those that were tried."""
    tried = sorted(
        {
            run["values"]["schedule.base_lr"]
            for run in measured.content["runs"]
            if run["values"]["label"] == optimizer and run["values"]["batch.size"] == batch
        }
    )
    return lr(measured, optimizer, batch) * 256 / batch in (tried[0], tried[-1])


def draw(measured: Measured) -> Draw:
    """Top-1 and steps to the target against the batch."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        for style, name in enumerate(OPTIMIZERS):
            points = [(batch, where(name, batch)) for batch in BATCHES]
            drawing.dots(left, measured, "top1", points, number=style, label=name)
            drawing.dots(right, measured, "steps_to_target", points, number=style, label=name, factor=1.0)
        left.set(xscale="log", xlabel="batch", ylabel="top-1, %", title="The same images in fewer steps")
        right.set(xscale="log", yscale="log", xlabel="batch", ylabel="steps", title="Steps to a training loss of 0.8")
        for one in axes:
            one.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
            one.minorticks_off()
        left.legend()

    return panels


LESSON = Lesson("batch_size", answer, table, findings, draw)
