"""Every position of the batch belongs to one worker, and cuts do not move with the number of workers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.recipe.batch_layout import BatchLayout, allowed_spans, automatic_span, split

layouts = st.builds(
    lambda num_micro_batches, world_size, extra, unit: BatchLayout(
        size=num_micro_batches * (world_size + extra) * unit,
        num_micro_batches=num_micro_batches,
        world_size=world_size,
        unit=unit,
    ),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 40),
    st.sampled_from([1, 2]),
)


@given(st.integers(0, 10_000), st.integers(1, 200))
@settings(deadline=None)
def test_a_split_covers_every_position_once_in_pieces_that_differ_by_at_most_one(total: int, parts: int) -> None:
    ranges = [split(total, parts, part) for part in range(parts)]
    assert [position for part in ranges for position in part] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(layouts)
@settings(deadline=None)
def test_all_workers_together_take_the_whole_batch(layout: BatchLayout) -> None:
    taken = sorted(
        position for rank in range(layout.world_size) for own in layout.worker_micro_batches(rank) for position in own
    )
    assert taken == list(range(layout.size))


@given(layouts)
@settings(deadline=None)
def test_micro_batches_are_slices_of_the_global_batch_whatever_the_number_of_workers(layout: BatchLayout) -> None:
    size = layout.size // layout.num_micro_batches
    expected = [range(m * size, (m + 1) * size) for m in range(layout.num_micro_batches)]
    for rank in range(layout.world_size):
        own = list(layout.worker_micro_batches(rank))
        assert len(own) == len(expected)
        assert all(part and set(part) <= set(whole) for part, whole in zip(own, expected, strict=True))


@given(layouts)
@settings(deadline=None)
def test_units_stay_together_and_parts_differ_by_at_most_one_of_them(layout: BatchLayout) -> None:
    sizes = set()
    for rank in range(layout.world_size):
        for own in layout.worker_micro_batches(rank):
            assert own.start % layout.unit == own.stop % layout.unit == 0
            sizes.add(len(own))
    assert max(sizes) - min(sizes) in (0, layout.unit)
    assert layout.smallest_part == min(sizes)


@given(layouts)
@settings(deadline=None)
def test_boundaries_are_where_a_workers_part_begins(layout: BatchLayout) -> None:
    starts = [layout.worker_micro_batch(0, rank).start for rank in range(1, layout.world_size)]
    assert list(layout.boundaries()) == starts


@given(layouts, st.data())
@settings(deadline=None)
def test_a_span_crosses_workers_exactly_when_two_workers_hold_samples_of_it(
    layout: BatchLayout, data: st.DataObject
) -> None:
    span = data.draw(st.sampled_from(allowed_spans(layout.micro_batch_size)))
    spans_of = [
        {position // span for position in layout.worker_micro_batch(0, rank)} for rank in range(layout.world_size)
    ]
    shared = any(spans_of[rank] & spans_of[other] for rank in range(layout.world_size) for other in range(rank))
    assert layout.spans_cross_workers(span) == shared


@given(st.integers(1, 20_000))
@settings(deadline=None)
def test_allowed_spans_are_all_divisors_ascending(micro_batch_size: int) -> None:
    assert allowed_spans(micro_batch_size) == [n for n in range(1, micro_batch_size + 1) if micro_batch_size % n == 0]


@given(micro_batch_size=st.integers(1, 10_000))
def test_the_automatic_span_is_the_allowed_one_nearest_64_or_global(micro_batch_size: int) -> None:
    allowed = [span for span in allowed_spans(micro_batch_size) if 32 <= span <= 128]
    found = automatic_span(micro_batch_size)
    if found == "global":
        assert allowed == []
    else:
        assert found in allowed
        assert all(abs(found - 64) <= abs(span - 64) for span in allowed)


@pytest.mark.parametrize(("micro_batch_size", "span"), [(988, 52), (1020, 60)])
def test_of_two_spans_as_near_as_each_other_the_smaller_one_is_chosen(micro_batch_size: int, span: object) -> None:
    assert automatic_span(micro_batch_size) == span


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="3 micro-batches do not divide a batch of 10"):
        BatchLayout(size=10, num_micro_batches=3)


def test_a_worker_without_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a micro-batch of 4 is too small for 5 workers"):
        BatchLayout(size=8, num_micro_batches=2, world_size=5)


def test_a_worker_without_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="a micro-batch of 8 is too small for 5 workers"):
        BatchLayout(size=16, num_micro_batches=2, world_size=5, unit=2)


def test_an_odd_number_of_samples_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="a micro-batch of 5 cannot be split into units of 2"):
        BatchLayout(size=10, num_micro_batches=2, unit=2)
