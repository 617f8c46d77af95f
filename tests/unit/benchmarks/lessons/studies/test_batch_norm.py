"""What the lesson on batch norm says of its hypothesis about learning rates."""

from __future__ import annotations

import pytest

from benchmarks.lessons.studies import batch_norm


@pytest.mark.parametrize(
    ("with_norm", "without", "text"),
    [
        ([0.1, 1.0], [0.1], '"at least 10 times wider" holds on this grid'),
        ([0.01, 0.1, 1.0], [0.1], '"at least 10 times wider" holds on this grid'),
        ([0.1, 1.0], [0.01, 0.1], '"at least 10 times wider" does not hold on this grid'),
        ([0.1], [], "no LR of the grid trains without batch norm."),
        ([], [], "no LR of the grid trains with or without batch norm."),
    ],
)
def test_the_verdict_on_the_range_follows_the_rates_that_train(
    with_norm: list[float], without: list[float], text: str
) -> None:
    assert text in batch_norm.range_verdict(with_norm, without)
