from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_dist.data.ledger import Ledger, Tally, added, tallies_of
from resnet_dist.data.order import Order, ShardStream, Stream
from resnet_dist.errors import LedgerError
from resnet_dist.recipe.batch_layout import BatchLayout, stream_step

Ids = NDArray[np.int64]
Records = list[dict[str, int]]
SKIPPED = ((2, 4), (5, 6))


def run(
    ledger: Ledger,
    order: Order,
    batch_size: int,
    steps: range,
    world_size: int = 1,
    skipped: Sequence[tuple[int, int]] = (),
    consumed: Callable[[int, Ids], Ids] = lambda step, ids: ids,
) -> Records:
    """The records of `steps` (1 is the first); `consumed` may change the samples of a step of the stream."""
    records: Records = []
    layout = BatchLayout(batch_size, world_size=world_size)
    for step in steps:
        of_stream = stream_step(step - 1, [range(*part) for part in skipped])
        positions = of_stream * batch_size + np.arange(batch_size, dtype=np.int64)
        ids = consumed(of_stream, order.sample_ids(positions))
        sums = np.zeros(ledger.num_sums)
        for rank in range(world_size):
            own = slice(layout.worker_micro_batch(0, rank).start, layout.worker_micro_batch(0, rank).stop)
            sums += ledger.sums(step, tallies_of(ids[own], positions[own], order.num_samples))
        records += ledger.add(step, sums.tolist())
    return records


def test_every_epoch_has_a_record_when_its_last_step_is_done() -> None:
    order = Stream(10, seed=0)
    ledger = Ledger(order, batch_size=4)
    assert run(ledger, order, 4, range(1, 3)) == []
    [first] = run(ledger, order, 4, range(3, 5))
    assert (first["epoch"], first["num_samples"], first["num_skipped"]) == (1, 10, 0)
    [second] = run(ledger, order, 4, range(5, 6))
    assert second["epoch"] == 2
    assert second["samples"] == first["samples"]  # the same samples
    assert second["pairs"] != first["pairs"]  # in another order


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 30),
    batch_size=st.integers(9, 70),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 99),
    skipped=st.sampled_from([(), SKIPPED]),
)
def test_workers_change_no_record(
    num_samples: int, batch_size: int, world_size: int, seed: int, skipped: tuple[tuple[int, int], ...]
) -> None:
    order, steps = Stream(num_samples, seed), range(1, 8)
    expected = run(Ledger(order, batch_size, skipped), order, batch_size, steps, 1, skipped)
    found = run(Ledger(order, batch_size, skipped), order, batch_size, steps, world_size, skipped)
    assert found == expected
    end = stream_step(7, [range(*part) for part in skipped]) * batch_size
    assert [record["epoch"] for record in found] == list(range(1, end // num_samples + 1))
    for record in found:
        assert record["num_samples"] + record["num_skipped"] == num_samples


@pytest.mark.parametrize("skipped", [(), SKIPPED])
@pytest.mark.parametrize("batch_size", [5, 13, 40])
def test_a_restart_at_any_step_changes_no_record(skipped: tuple[tuple[int, int], ...], batch_size: int) -> None:
    order = ShardStream(np.arange(13) // 4, seed=1, window=6)
    whole = run(Ledger(order, batch_size, skipped), order, batch_size, range(1, 13), 2, skipped)
    assert whole
    for last in range(1, 13):
        ledger = Ledger(order, batch_size, skipped)
        records = run(ledger, order, batch_size, range(1, last + 1), 3, skipped)
        saved = json.loads(json.dumps(ledger.state()))
        ledger = Ledger(order, batch_size, skipped, last, saved)
        records += run(ledger, order, batch_size, range(last + 1, 13), 4, skipped)
        assert records == whole


def test_steps_that_are_skipped_after_a_restart_are_not_expected() -> None:
    order, later = Stream(20, seed=0), ((4, 6),)
    ledger = Ledger(order, batch_size=4)
    run(ledger, order, 4, range(1, 5))
    ledger = Ledger(order, 4, later, 4, ledger.state())  # the next step of the stream is 6, in the second epoch
    [first, second] = run(ledger, order, 4, range(5, 9), skipped=later)
    assert (first["num_samples"], first["num_skipped"]) == (16, 4)
    assert (second["num_samples"], second["num_skipped"]) == (16, 4)


def test_without_a_state_it_begins_with_the_next_whole_epoch() -> None:
    order = Stream(10, seed=0)
    ledger = Ledger(order, batch_size=4, first_step=3)  # position 12
    records = run(ledger, order, 4, range(4, 9))
    assert [record["epoch"] for record in records] == [3]
    exact = Ledger(order, batch_size=4, first_step=5)  # position 20: the third epoch is whole
    assert [record["epoch"] for record in run(exact, order, 4, range(6, 9))] == [3]


def twice(step: int, ids: Ids) -> Ids:
    return np.where(ids == ids[1], ids[0], ids) if step == 1 else ids


def test_a_sample_that_comes_twice_in_the_place_of_another_is_found() -> None:
    order = Stream(10, seed=0)
    with pytest.raises(LedgerError, match="epoch 1 had 10 samples, but some twice and others never"):
        run(Ledger(order, 4), order, 4, range(1, 9), consumed=twice)


def test_samples_that_no_worker_had_are_found() -> None:
    order = Stream(10, seed=0)
    ledger = Ledger(order, batch_size=4)
    nothing: list[float] = [0.0] * ledger.num_sums
    run(ledger, order, 4, range(1, 2))
    assert list(ledger.add(2, nothing)) == []
    with pytest.raises(LedgerError, match=r"epoch 1 had 6 samples, not 10\. Please report this"):
        run(ledger, order, 4, range(3, 4))


@pytest.mark.parametrize("skipped", [(), SKIPPED])
def test_samples_at_each_others_positions_are_found(skipped: tuple[tuple[int, int], ...]) -> None:
    order = Stream(30, seed=0)
    run(Ledger(order, 4, skipped), order, 4, range(1, 9), 2, skipped)

    def exchanged(step: int, ids: Ids) -> Ids:
        return ids[[1, 0, 2, 3]] if step == 6 else ids

    with pytest.raises(LedgerError, match="epoch 1 had every sample, but some at the position of another"):
        run(Ledger(order, 4, skipped), order, 4, range(1, 9), 2, skipped, exchanged)


def test_samples_of_an_epoch_that_the_step_does_not_reach_are_an_error() -> None:
    order = Stream(10, seed=0)
    with pytest.raises(LedgerError, match="step 1 has samples of epoch 9, and should be in epoch 1"):
        Ledger(order, batch_size=4).sums(1, {8: Tally(1, 2, 3)})


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1, 50), batch_size=st.integers(1, 200), step=st.integers(1, 10**6))
def test_a_step_has_room_for_all_its_epochs(num_samples: int, batch_size: int, step: int) -> None:
    ledger = Ledger(Stream(num_samples, 0), batch_size)
    epochs = ((step - 1) * batch_size + np.array([0, batch_size - 1])) // num_samples
    ledger.sums(step, {int(epoch): Tally(1) for epoch in epochs})
    assert ledger.num_sums <= 3 * (batch_size // num_samples + 2)


def test_sums_of_hashes_stay_below_two_to_the_32() -> None:
    whole = tallies_of(np.arange(10_000), np.arange(10_000), num_samples=10_000)[0]
    assert max(whole.samples, whole.pairs) < 2**32
    parts: Any = {}
    for start in range(0, 10_000, 1000):
        numbers = np.arange(start, start + 1000)
        parts = added(parts, tallies_of(numbers, numbers, num_samples=10_000))
    assert parts == {0: whole}
