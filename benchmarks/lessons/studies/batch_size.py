"""Nesterov momentum and LARS at three batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.metrics import TARGET
from benchmarks.lessons.wording import by_verdict, in_points, joined, listed, number, percent
from launcher.study.statistics import Verdict

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
    edges = [batch for batch in BATCHES if edge_at(measured, batch)]
    text = f"LARS minus Nesterov, in top-1: {', '.join(texts)}"
    if edges:
        where_ = "at every batch" if len(edges) == len(BATCHES) else f"at {listed([f'{batch:,}' for batch in edges])}"
        text += f"; but {where_} a best LR is at the edge of the grid, so this does not decide which one is better"
    return text


def table(measured: Measured) -> list[list[str]]:
    """Top-1, steps and the best LR."""
    columns = ("top-1", "best peak LR", f"steps to loss {TARGET:g}")
    rows = [["batch", "steps", *(f"{what}, {name}" for name in OPTIMIZERS for what in columns)]]
    for batch in BATCHES:
        cells = []
        for name in OPTIMIZERS:
            point = where(name, batch)
            reached = measured.by_seed("steps_to_target", point)
            target = "-" if not reached else number(measured.summary("steps_to_target", point), 0)
            if 0 < len(reached) < len(measured.runs(point)):
                target += f", {len(reached)} of {len(measured.runs(point))} runs"
            cells += [percent(measured.summary("top1", point)), f"{lr(measured, name, batch):g}", target]
        rows.append([f"{batch:,}", str(measured.runs(where("Nesterov", batch))[0]["steps"]), *cells])
    return rows


def findings(measured: Measured) -> list[str]:
    """Whether LARS is needed, and what a large batch costs."""
    found = []
    for batch in BATCHES:
        difference = measured.difference("top1", where("LARS", batch), where("Nesterov", batch))
        verdict = conclusion(difference.verdict, edge_at(measured, batch))
        found.append(f"Batch {batch:,}: LARS minus Nesterov is {in_points(difference)}{verdict}.")
    for name in OPTIMIZERS:
        difference = measured.difference("top1", where(name, BATCHES[-1]), where(name, BATCHES[0]))
        edges = edge(measured, {f"at {batch:,}": (name, batch) for batch in (BATCHES[0], BATCHES[-1])})
        but = f"; but {edges}, so this does not decide its size" if edges else ""
        found.append(
            f"{name}: batch {BATCHES[-1]:,} minus {BATCHES[0]} is {in_points(difference)} for the same images{but}."
        )
    return found


def conclusion(verdict: Verdict, edges: str) -> str:
    """What follows from LARS minus Nesterov; `edges`: which of the best LRs are at the edge of the grid.

    >>> conclusion("smaller", "the best LR of LARS is at the edge of the grid")
    ', but the best LR of LARS is at the edge of the grid, so this does not decide it'
    >>> conclusion("smaller", "")
    ': Nesterov is better'
    """
    if edges and verdict != "inconclusive":
        return f", but {edges}, so this does not decide it"
    text = by_verdict(
        verdict,
        larger="LARS is better",
        smaller="Nesterov is better",
        inconclusive="these runs do not tell them apart",
    )
    return f": {joined([text, *([edges] if edges else [])])}"


def edge(measured: Measured, points: Mapping[str, tuple[str, int]]) -> str:
    """Says for which of `points`, optimizers and batches by name, the best LR is at the edge; empty if for none."""
    names = [name for name, point in points.items() if on_edge(measured, *point)]
    return f"the best LR {' and '.join(names)} is at the edge of the grid" if names else ""


def edge_at(measured: Measured, batch: int) -> str:
    """`edge` for the optimizers at a batch."""
    return edge(measured, {f"of {name}": (name, batch) for name in OPTIMIZERS})


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
        right.set(
            xscale="log", yscale="log", xlabel="batch", ylabel="steps", title=f"Steps to a training loss of {TARGET:g}"
        )
        for one in axes:
            one.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
            one.minorticks_off()
        left.legend()

    return panels


LESSON = Lesson("batch_size", answer, table, findings, draw)
