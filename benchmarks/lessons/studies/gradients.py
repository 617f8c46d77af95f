"""Gradients by layer, with and without shortcuts and batch norm; and four remedies for a run that does not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import CHANCE, Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import in_points, joined, listed, percent, power, share

NETWORKS = ("plain", "residual")
NORMS = ("without norm", "with norm")
DEPTHS = (20, 56)
LATER = 10  # the last step of the short runs
RESCUES = ("nothing", "clipping", "smaller weights", "LR 0.03", "batch norm")
FACTOR = 10.0  # change from 20 to 56 layers that counts as one
TRAINED = 0.4  # top-1 of a run that has learned something: four times that of a guess


def where(network: str, depth: int, norm: str) -> Where:
    """One of the eight networks."""
    return {"label": f"{network} {depth} {norm}"}


def rescue(name: str) -> Where:
    """One of the runs of a residual network at LR 0.3."""
    return {"label": f"rescue: {name}"}


def first(measured: Measured, network: str, depth: int, norm: str, step: int = 1) -> float | None:
    """Norm of the first layer's gradient: the geometric mean over the seeds; None if all runs have diverged."""
    norms = measured.layers("gradient_norm", where(network, depth, norm), step)
    return norms[0] if norms else None


def growth(measured: Measured, network: str, norm: str) -> float:
    """The first layer's gradient at 56 layers / at 20, at step 1."""
    shallow, deep = (first(measured, network, depth, norm) for depth in DEPTHS)
    assert shallow is not None and deep is not None  # noqa: PT018 - at step 1, nothing has diverged
    return deep / shallow


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = [f"{power(growth(measured, network, norm))} ({network} {norm})" for norm in NORMS for network in NETWORKS]
    return f"from 20 to 56 layers, the first layer's gradient changes by a factor of {', '.join(texts)}"


def table(measured: Measured) -> list[list[str]]:
    """The first layer's gradient at step 1 and later."""
    columns = [f"{depth} layers, step {step}" for depth in DEPTHS for step in (1, LATER)]
    rows = [["first layer's gradient", *columns]]
    for norm in NORMS:
        for network in NETWORKS:
            cells = [_cell(measured, network, depth, norm, step) for depth in DEPTHS for step in (1, LATER)]
            rows.append([f"{network} {norm}", *cells])
    return rows


def _cell(measured: Measured, network: str, depth: int, norm: str, step: int) -> str:
    """The first layer's gradient, and the number of runs that have one if some have diverged before."""
    point, value = where(network, depth, norm), first(measured, network, depth, norm, step)
    if value is None:
        return "all diverged"
    left, all_ = measured.num_with_layers("gradient_norm", point, step), len(measured.runs(point))
    return power(value) if left == all_ else f"{power(value)} ({left} of {all_} runs)"


def notes(measured: Measured) -> list[str]:
    """How to read the cells of the table."""
    points = [(network, depth, norm) for norm in NORMS for network in NETWORKS for depth in DEPTHS]
    text = "The table has geometric means over the seeds."
    if any(measured.num_diverged(where(*point)) for point in points):
        text += " A cell with a number of runs is the mean of these runs alone: the others had diverged by then."
    if any(first(measured, *point, step) == 0 for point in points for step in (1, LATER)):
        text += (
            " A gradient of exactly 0 means that one of the updates before has set the ReLUs of a layer to 0 for every "
            "image. Then no gradient passes back through it, and the network will not recover."
        )
    return [text]


def findings(measured: Measured) -> list[str]:
    """Which networks have vanishing or exploding gradients, and what makes a run train."""
    found = notes(measured)
    for norm in NORMS:
        texts = [f"{behaviour(growth(measured, network, norm))} in a {network} network" for network in NETWORKS]
        found.append(f"From 20 to 56 layers {norm}, the first layer's gradient {' and '.join(texts)}.")
    base = measured.summary("top1", rescue("nothing"), diverged=CHANCE)
    found.append(
        f"A residual network of 20 layers without batch norm, at LR 0.3: top-1 is {percent(base)}, where a guess has "
        f"{share(CHANCE)}; {measured.num_diverged(rescue('nothing'))} of {base.n} runs diverged."
    )
    counts = {name: _num_trained(measured, name) for name in RESCUES[1:]}
    always = [name for name, (trained, tried) in counts.items() if trained == tried]
    never = [name for name, (trained, _) in counts.items() if not trained]
    sometimes = [(name, *count) for name, count in counts.items() if name not in always + never]
    texts = [
        *([f"by every seed with {listed(always)}"] if always else []),
        *(f"by {trained} of {tried} seeds with {name}" for name, trained, tried in sometimes),
        *([f"by no seed with {listed(never)}"] if never else []),
    ]
    found.append(f"A top-1 of {share(TRAINED)} is reached {joined(texts)}.")
    gains = [
        f"{name} {in_points(measured.difference('top1', rescue(name), rescue('nothing'), diverged=CHANCE))}"
        for name in RESCUES[1:]
    ]
    found.append(f"Top-1 minus that without a remedy (a diverged run counts as a guess): {'; '.join(gains)}.")
    return found


def _num_trained(measured: Measured, name: str) -> tuple[int, int]:
    """How many runs have learned something, and of how many."""
    top1 = measured.by_seed("top1", rescue(name), diverged=CHANCE).values()
    return sum(value >= TRAINED for value in top1), len(top1)


def behaviour(factor: float) -> str:
    """What the first layer's gradient at 56 layers, relative to that at 20, means.

    >>> behaviour(0.002), behaviour(3.0), behaviour(350.0)
    ('vanishes (0.002 times as large)', 'changes little (3 times as large)', 'explodes (350 times as large)')
    """
    word = "vanishes" if factor < 1 / FACTOR else "explodes" if factor > FACTOR else "changes little"
    return f"{word} ({power(factor)} times as large)"


def draw(measured: Measured) -> Draw:
    """The gradient of each layer at 56 layers, and the training loss of the rescued runs."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        lines = [(f"{network} {norm}", where(network, 56, norm)) for network in NETWORKS for norm in NORMS]
        drawing.layers(left, measured, lines, "gradient_norm")
        left.set(ylabel="norm of the gradient", title="56 layers, step 1", ylim=(1e-6, 1e7))
        left.legend(loc="upper center", ncols=2)
        drawing.curves(right, measured, [(name, rescue(name)) for name in RESCUES])
        right.set(ylabel="training loss", title="A run that fails, and four remedies", ylim=(0.4, 3.2))
        right.legend(loc="upper right")

    return panels


LESSON = Lesson("gradients", answer, table, findings, draw, curves=("loss",), layers=("gradient_norm",))
