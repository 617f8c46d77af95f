"""What the lesson on the batch says of two optimizers, and of a learning rate at the edge of its grid."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.lessons.data import Measured
from benchmarks.lessons.studies import batch_size

LRS = (0.06, 0.2, 0.6)


def measured(best: dict[str, float], difference: float = -0.06) -> Measured:
    """Three seeds of both optimizers at these best LRs; `difference`: top-1 of LARS minus Nesterov."""

    def run(name: str, batch: int, lr: float, seed: int) -> dict[str, Any]:
        top1 = 0.8 + seed / 1000 + (difference + seed / 5000 if name == "LARS" else 0.0)
        return {
            "values": {"label": name, "batch.size": batch, "schedule.base_lr": lr},
            "seed": seed,
            "status": "finished",
            "counts": lr == best[name],
            "steps": 25_600 // batch,
            "metrics": {"top1": top1},
        }

    points = [(name, batch, lr) for name in best for batch in batch_size.BATCHES for lr in LRS]
    return Measured({"study": "batch_size", "runs": [run(*point, seed) for point in points for seed in range(3)]})


def test_a_difference_between_tuned_optimizers_has_a_winner() -> None:
    data = measured({"Nesterov": 0.2, "LARS": 0.2})
    assert batch_size.findings(data)[0].endswith(": Nesterov is better.")
    assert "edge" not in batch_size.answer(data) + " ".join(batch_size.findings(data))


@pytest.mark.parametrize(
    ("best", "which"),
    [
        ({"Nesterov": 0.2, "LARS": 0.6}, "of LARS"),
        ({"Nesterov": 0.06, "LARS": 0.2}, "of Nesterov"),
        ({"Nesterov": 0.6, "LARS": 0.06}, "of Nesterov and of LARS"),
    ],
)
def test_a_best_lr_at_the_edge_of_the_grid_decides_nothing(best: dict[str, float], which: str) -> None:
    data = measured(best)
    for finding in batch_size.findings(data)[:3]:
        assert finding.endswith(f", but the best LR {which} is at the edge of the grid, so this does not decide it.")
    assert "is better" not in " ".join(batch_size.findings(data))
    assert batch_size.answer(data).endswith("so this does not decide which one is better")


def test_an_inconclusive_difference_also_says_that_the_lr_is_at_the_edge() -> None:
    (text, *_) = batch_size.findings(measured({"Nesterov": 0.2, "LARS": 0.6}, difference=0.0))
    assert text.endswith("do not tell them apart, and the best LR of LARS is at the edge of the grid.")
