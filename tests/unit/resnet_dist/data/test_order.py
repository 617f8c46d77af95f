from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_dist.data.order import Stream


def epoch(stream: Stream, number: int) -> NDArray[np.int64]:
    start = number * stream.num_samples
    return stream.sample_ids(np.arange(start, start + stream.num_samples, dtype=np.int64))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 9, 10, 1797, 100_003])
@pytest.mark.parametrize("number", [0, 1, 10**9])
def test_each_epoch_takes_every_sample_once(num_samples: int, number: int) -> None:
    ids = epoch(Stream(num_samples, seed=0), number)
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), np.arange(num_samples))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 10**12))
def test_each_epoch_is_a_permutation_for_any_size_and_seed(num_samples: int, seed: int, number: int) -> None:
    assert np.array_equal(np.sort(epoch(Stream(num_samples, seed), number)), np.arange(num_samples))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2**62), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_samples_exist_at_any_position_of_any_data_set(num_samples: int, positions: list[int]) -> None:
    ids = Stream(num_samples, seed=1).sample_ids(np.array(positions, dtype=np.int64))
    assert ((ids >= 0) & (ids < num_samples)).all()


def test_a_call_may_span_epochs_and_ask_in_any_order() -> None:
    stream = Stream(10, seed=3)
    in_turn = np.concatenate([epoch(stream, number) for number in range(5)])
    asked = np.random.default_rng(0).permutation(50)
    assert np.array_equal(stream.sample_ids(asked), in_turn[asked])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch(Stream(1797, seed), number) for seed in (0, 1) for number in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two independent permutations agree in one place on average (Poisson): 10 or more has a chance of 1e-7.
            assert (one == other).sum() < 10


def test_order_never_changes() -> None:
    # A change here would change the course of every run that was ever made.
    assert Stream(1797, seed=0).sample_ids(np.arange(8)).tolist() == [600, 65, 125, 523, 761, 1421, 344, 54]
    far = np.array([10**15, 10**15 + 1, 10**15 + 2])
    assert Stream(1_281_167, seed=42).sample_ids(far).tolist() == [319351, 1276830, 691710]


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5])
def test_all_orders_of_a_few_samples_are_equally_likely(num_samples: int) -> None:
    num_epochs, num_orders = 40_000, math.factorial(num_samples)
    ids = Stream(num_samples, seed=1).sample_ids(np.arange(num_epochs * num_samples))
    codes = ids.reshape(num_epochs, num_samples) @ (num_samples ** np.arange(num_samples))
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == num_orders
    expected = num_epochs / num_orders
    excess = ((counts - expected) ** 2 / expected).sum() - (num_orders - 1)
    assert abs(excess) < 4 * math.sqrt(2 * (num_orders - 1))


@pytest.mark.parametrize("num_samples", [9, 20])
def test_every_sample_is_equally_likely_at_every_place(num_samples: int) -> None:
    num_epochs = 10_000
    ids = Stream(num_samples, seed=5).sample_ids(np.arange(num_epochs * num_samples)).reshape(num_epochs, num_samples)
    expected, freedom = num_epochs / num_samples, (num_samples - 1) ** 2
    table = np.stack([np.bincount(ids[:, place], minlength=num_samples) for place in range(num_samples)])
    # Rows and columns of the table both sum to num_epochs, hence (N-1)^2 degrees of freedom and the factor (N-1)/N.
    statistic = ((table - expected) ** 2 / expected).sum() * (num_samples - 1) / num_samples
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_neighbours_in_the_index_do_not_stay_neighbours() -> None:
    ids = epoch(Stream(100_000, seed=0), 0)
    assert (np.abs(np.diff(ids)) == 1).sum() < 15  # 2 expected of a random order
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 4 / math.sqrt(len(ids))


def test_even_and_odd_permutations_are_equally_frequent() -> None:
    stream, odd, num_epochs = Stream(9, seed=0), 0, 2000
    for order in stream.sample_ids(np.arange(9 * num_epochs)).reshape(num_epochs, 9):
        odd += int(np.linalg.det(np.eye(9)[order]) < 0)
    assert abs(odd - num_epochs / 2) < 4 * math.sqrt(num_epochs / 4)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        Stream(0, seed=0)
