from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_dist.data import Index
from resnet_dist.data.order import Order, ShardStream, Stream, order_of, unevenness, warn_of_classes
from resnet_dist.recipe.schema import DataRecipe


def epoch(stream: Order, number: int) -> NDArray[np.int64]:
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


# --- order: shards


SIZES = (5, 1, 7, 3, 4)  # samples of the shards
SHARDS = np.repeat(np.arange(len(SIZES)), SIZES)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 200),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**12),
)
def test_each_epoch_of_shards_is_a_permutation(sizes: list[int], window: int, seed: int, number: int) -> None:
    stream = ShardStream(np.repeat(np.arange(len(sizes)), sizes), seed, window)
    assert np.array_equal(np.sort(epoch(stream, number)), np.arange(sum(sizes)))


def test_a_call_may_span_epochs_of_shards_and_ask_in_any_order() -> None:
    stream = ShardStream(SHARDS, seed=3, window=6)
    in_turn = np.concatenate([epoch(stream, number) for number in range(7)])
    asked = np.random.default_rng(0).permutation(len(in_turn))
    assert np.array_equal(ShardStream(SHARDS, seed=3, window=6).sample_ids(asked), in_turn[asked])


def test_a_window_reads_the_shards_that_overlap_with_it_and_each_shard_is_read_once() -> None:
    shards = np.repeat(np.arange(50), 20)
    stream = ShardStream(shards, seed=1, window=60)
    windows = shards[epoch(stream, 4)][:960].reshape(-1, 60)
    assert [len(set(window.tolist())) for window in windows] == [3] * 16
    assert len({shard for window in windows for shard in set(window.tolist())}) == 48  # no shard is in two windows


def test_rows_of_a_shard_need_not_be_neighbours_in_the_index() -> None:
    mixed = np.array([2, 0, 1, 2, 0, 1, 1])
    stream = ShardStream(mixed, seed=0, window=1)  # nothing is shuffled within a shard
    found = mixed[epoch(stream, 0)]
    assert (np.diff(found) != 0).sum() == 2
    assert sorted(epoch(stream, 0).tolist()) == list(range(7))


def test_the_order_of_the_shards_and_of_their_samples_changes_with_epoch_and_seed() -> None:
    orders = [epoch(ShardStream(np.arange(3000) // 10, seed, 100), number) for seed in (0, 1) for number in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10
            assert (one // 10 == other // 10).sum() < 100  # 10 expected, in runs


def test_order_of_shards_never_changes() -> None:
    # A change here would change the course of every run with `order: shards` that was ever made.
    found = ShardStream(SHARDS, seed=0, window=6).sample_ids(np.arange(15, 25))
    assert found.tolist() == [1, 0, 12, 3, 4, 13, 15, 8, 7, 14]


@pytest.mark.parametrize("window", [4, 6])
def test_all_orders_of_a_few_shards_and_of_the_samples_in_a_window_are_equally_likely(window: int) -> None:
    num_epochs, shards = 10_000, np.array([0, 0, 1, 1, 2, 2])
    ids = ShardStream(shards, seed=1, window=window).sample_ids(np.arange(num_epochs * 6)).reshape(num_epochs, 6)
    _, counts = np.unique(ids @ (6 ** np.arange(6)), return_counts=True)
    # 3 pairs in a window of 4: 3! orders of the shards, of which 4 samples have 4! and 2 have 2! orders; each set of
    # two pairs comes in two orders of the shards
    num_orders = 720 if window == 6 else 3 * 24 * 2
    assert len(counts) == num_orders
    expected = num_epochs / num_orders
    assert abs(((counts - expected) ** 2 / expected).sum() - (num_orders - 1)) < 4 * math.sqrt(2 * (num_orders - 1))


def index_of_shards(shards: tuple[str, ...], numbers: list[int]) -> Index:
    num = max(2500, len(numbers))
    rows, sides = np.zeros(num, np.int64), np.ones(num, np.int32)
    index = Index("root", ("a",), tuple(map(str, range(num))), rows, sides, sides)
    if not shards:
        return index
    return replace(index, shards=shards, shard_numbers=np.array(numbers, np.int32), offsets=np.arange(len(numbers)))


def test_an_index_without_shards_has_blocks_of_1000_rows() -> None:
    recipe = DataRecipe(root="root", order="shards", shuffle_window=500)
    found = epoch(order_of(index_of_shards((), []), recipe, seed=0), 0)
    assert sorted(np.unique(found[:500] // 1000)) in ([0], [1], [2])
    assert np.array_equal(np.sort(found), np.arange(2500))


def test_a_part_of_the_samples_has_fewer_rows_of_each_shard() -> None:
    part = index_of_shards(("one", "two", "three"), [0] * 1000 + [1] * 1000 + [2] * 500).take(np.arange(0, 2000, 10))
    stream = order_of(part, DataRecipe(root="root", order="shards", shuffle_window=50), seed=0)
    assert np.array_equal(np.sort(epoch(stream, 3)), np.arange(200))
    assert [len(np.unique(window // 100)) for window in epoch(stream, 3).reshape(4, 50)] == [1] * 4


def test_the_order_is_that_of_the_recipe() -> None:
    index = index_of_shards(("one", "two"), [0, 1] * 1250)
    uniform = order_of(index, DataRecipe(root="root"), seed=7)
    assert np.array_equal(epoch(uniform, 1), epoch(Stream(2500, 7), 1))
    by_shard = order_of(index, DataRecipe(root="root", order="shards", shuffle_window=1250), seed=7)
    assert len(np.unique(epoch(by_shard, 0)[:1250] % 2)) == 1  # rows of one shard are all even, or all odd


def test_a_stream_of_shards_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        ShardStream(np.zeros(0, np.int64), seed=0, window=1)


# --- how well an order mixes classes

LABELS = np.repeat(np.arange(20), 100)
OF_100 = np.arange(2000) // 100


@pytest.mark.parametrize("batch_size", [1, 64, 200])
def test_uniform_batches_and_batches_of_shuffled_shards_are_as_random_ones(batch_size: int) -> None:
    labels = np.random.default_rng(0).permutation(LABELS)
    assert unevenness(Stream(2000, 0), LABELS, batch_size) == pytest.approx(1, abs=0.15)
    assert unevenness(ShardStream(OF_100, 0, 200), labels, batch_size) == pytest.approx(1, abs=0.15)


def test_batches_of_one_class_are_as_uneven_as_possible() -> None:
    # one class has all 50, the others none: a variance of 50^2 (1 - 1/20), where random batches have 50 / 20 (1 - 1/20)
    found = unevenness(ShardStream(OF_100, 0, 100), LABELS, 50)
    assert found == pytest.approx(math.sqrt(50 * 0.95 / 0.95 / (1950 / 1999)), rel=1e-6)


def test_batches_as_long_as_an_epoch_and_a_single_class_have_nothing_to_be_uneven() -> None:
    assert unevenness(ShardStream(OF_100, 0, 100), LABELS, 1500) == 1
    assert unevenness(ShardStream(OF_100, 0, 100), np.zeros(2000, np.int64), 50) == 1


def test_shards_sorted_by_class_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_classes(Stream(2000, 0), LABELS, 50)
    warn_of_classes(ShardStream(OF_100, 0, 2000), LABELS, 50)
    assert caplog.text == ""
    warn_of_classes(ShardStream(OF_100, 0, 100), LABELS, 50)
    assert "varies 7.2 times as much from batch to batch as in random batches" in caplog.text
