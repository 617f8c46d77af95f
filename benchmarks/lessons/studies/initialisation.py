"""He, Xavier and N(0, 0.01), with and without batch norm; zero gamma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lessons import drawing
from benchmarks.lessons.data import Measured, Where
from benchmarks.lessons.drawing import CHANCE, Draw
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import by_verdict, in_points, number, percent, power, share

NAMES = ("He", "Xavier", "N(0, 0.01)")
NORMS = ("without norm", "with norm")
GAMMAS = ("residual 20, gamma 1", "residual 20, gamma 0")


def where(name: str, norm: str) -> Where:
    """A plain network with this initialisation."""
    return {"label": f"{name}, {norm}"}


def ratio(measured: Measured, point: Where) -> float:
    """Standard deviation of the last convolution's outputs / the first one's, at step 1: geometric mean."""
    stds = measured.layers("activation_std", point)[:-1]
    return stds[-1] / stds[0]


def backward(measured: Measured, point: Where) -> str:
    """Standard deviation of the gradient at the first layer's outputs / at the last convolution's: geometric mean."""
    stds = measured.layers("output_gradient_std", point)[:-1]
    return power(stds[0] / stds[-1]) if stds[-1] > 0 else "the last is 0"


def answer(measured: Measured) -> str:
    """The answer in one sentence."""
    texts = []
    for norm in NORMS:
        values = [f"{name} {_top1(measured, where(name, norm))}" for name in NAMES]
        texts.append(f"{norm}, {', '.join(values)}")
    return f"top-1 of a plain network {'; '.join(texts)}"


def _top1(measured: Measured, point: Where) -> str:
    return percent(measured.summary("top1", point)) if measured.by_seed("top1", point) else "diverged"


def table(measured: Measured) -> list[list[str]]:
    """Top-1, training loss, and the ratio of activations, for each initialisation."""
    rows = [["network", "top-1", "training loss", "activations, last / first layer", "gradients, first / last layer"]]
    for point in (*(where(name, norm) for norm in NORMS for name in NAMES), *({"label": name} for name in GAMMAS)):
        loss = number(measured.summary("training_loss", point)) if measured.by_seed("top1", point) else "-"
        rows.append(
            [
                str(point["label"]),
                _top1(measured, point),
                loss,
                power(ratio(measured, point)),
                backward(measured, point),
            ]
        )
    return rows


def findings(measured: Measured) -> list[str]:
    """How activations shrink, which networks train, and what zero gamma does."""
    found = []
    for norm in NORMS:
        sizes = [f"{power(ratio(measured, where(name, norm)))} ({name})" for name in NAMES]
        found.append(
            f"{norm.capitalize()}, the last convolution's outputs are {', '.join(sizes)} times as large as the first's."
        )
        pairs = {
            name: measured.difference("top1", where(name, norm), where("He", norm), diverged=CHANCE)
            for name in NAMES[1:]
        }
        texts = [f"{name} {in_points(difference)}" for name, difference in pairs.items()]
        found.append(f"{norm.capitalize()}, top-1 minus that of He: {'; '.join(texts)}. A guess has {share(CHANCE)}.")
    one, zero = ({"label": name} for name in GAMMAS)
    difference = measured.difference("top1", zero, one)
    verdict = by_verdict(
        difference.verdict,
        larger="it helps",
        smaller="it makes these 20 layers learn more slowly",
        inconclusive="no effect that these runs could show",
    )
    found.append(f"Zero gamma in a residual network of 20 layers: {in_points(difference)} in top-1: {verdict}.")
    return found


def draw(measured: Measured) -> Draw:
    """The activations of each layer, and the loss curves."""

    def panels(axes: Sequence[Any]) -> None:
        left, right = axes
        lines = [(f"{name}, {norm}", where(name, norm)) for norm in NORMS for name in NAMES]
        drawing.layers(left, measured, lines, "activation_std")
        left.set(ylabel="standard deviation of the outputs", title="Plain, 8 layers, step 1")
        left.legend(loc="lower left")
        drawing.curves(right, measured, lines)
        right.set(ylabel="training loss", title="Training loss")

    return panels


LESSON = Lesson(
    "initialisation", answer, table, findings, draw, curves=("loss",), layers=("activation_std", "output_gradient_std")
)
