from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnet_dist.models.span_slices import SpanSlice, span_slices
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout, allowed_spans, span_groups

CPU = torch.device("cpu")


@st.composite
def layouts_with_spans(draw: st.DrawFn) -> tuple[BatchLayout, int]:
    world_size = draw(st.integers(1, 9))
    micro_batch_size = draw(st.integers(world_size, 60))
    num_micro_batches = draw(st.integers(1, 3))
    span = draw(st.sampled_from(allowed_spans(micro_batch_size)))
    unit = draw(st.sampled_from([1, 2] if micro_batch_size % 2 == 0 and world_size <= micro_batch_size // 2 else [1]))
    return BatchLayout(micro_batch_size * num_micro_batches, num_micro_batches, world_size, unit), span


@given(layouts_with_spans())
def test_teams_are_the_smallest_runs_of_workers_that_share_no_span(case: tuple[BatchLayout, int]) -> None:
    layout, span = case
    found = span_groups(layout, span)

    assert [rank for team in found for rank in team.ranks] == list(range(layout.world_size))
    assert [p for team in found for p in team.positions] == list(range(layout.micro_batch_size))
    for team in found:
        owned = [layout.worker_micro_batch(0, rank) for rank in team.ranks]
        assert team.positions == range(owned[0].start, owned[-1].stop)
        assert team.positions.start % span == 0
        assert team.positions.stop % span == 0
        assert all(own.start % span for own in owned[1:]), "a team that could be cut further"


@given(layouts_with_spans())
def test_pieces_put_every_sample_in_the_row_of_its_span(case: tuple[BatchLayout, int]) -> None:
    layout, span = case
    for team in span_groups(layout, span):
        for rank in team.ranks:
            own = layout.worker_micro_batch(0, rank)
            rows = [piece.row for piece in span_slices(own, span, team.positions.start) for _ in range(piece.size)]
            assert rows == [(position - team.positions.start) // span for position in own]


@given(layouts_with_spans())
def test_exactly_one_worker_speaks_for_each_span(case: tuple[BatchLayout, int]) -> None:
    layout, span = case
    for team in span_groups(layout, span):
        spoken_for = [
            piece.row
            for rank in team.ranks
            for piece in span_slices(layout.worker_micro_batch(0, rank), span, team.positions.start)
            if piece.owned
        ]
        assert spoken_for == list(range(len(team.positions) // span))


def test_pieces_of_a_share_inside_one_span_are_the_share() -> None:
    assert span_slices(range(10, 13), span=8, origin=8) == (SpanSlice(0, 0, 3, owned=False),)


def test_spans_on_one_worker_need_no_group() -> None:
    spans = Spans(BatchLayout(12, num_micro_batches=2), rank=0, span=3)
    assert spans.group is None
    assert (spans.num_samples, spans.span_size, spans.smallest) == (6, 3, 3)
    assert spans.slices == (SpanSlice(0, 0, 3, owned=True), SpanSlice(1, 3, 6, owned=True))


def test_aligned_spans_on_several_workers_need_no_group() -> None:
    spans = Spans(BatchLayout(12, world_size=3), rank=1, span=2)  # positions 4 to 7
    assert spans.group is None
    assert (spans.num_samples, spans.smallest) == (4, 2)
    assert spans.slices == (SpanSlice(0, 0, 2, owned=True), SpanSlice(1, 2, 4, owned=True))


def test_a_global_span_is_the_micro_batch() -> None:
    spans = Spans(BatchLayout(12, num_micro_batches=2), rank=0, span="global")
    assert spans.span_size == 6
    assert spans.slices == (SpanSlice(0, 0, 6, owned=True),)


@pytest.mark.parametrize(("rank", "share"), [(0, 3), (1, 3), (2, 4)])
def test_a_worker_span_is_the_share_whatever_its_size(rank: int, share: int) -> None:
    spans = Spans(BatchLayout(10, world_size=3), rank, span="worker")
    assert spans.group is None
    assert spans.span_size == share
    assert spans.slices == (SpanSlice(0, 0, share, owned=True),)


@given(layouts_with_spans(), st.randoms(use_true_random=False))
def test_every_worker_knows_what_is_left_of_its_spans(case: tuple[BatchLayout, int], random: Random) -> None:
    layout, span = case
    good = np.array([random.random() < 0.6 for _ in range(layout.micro_batch_size)])
    for team in span_groups(layout, span):
        for rank in team.ranks:
            own = layout.worker_micro_batch(0, rank)
            spans = Spans(layout, rank, "worker")  # without process groups
            spans.span_size = span
            spans.join(team, object() if len(team.ranks) > 1 else None, layout, rank)  # type: ignore[arg-type]
            whole, counts = spans.slices, dict(spans._own)
            spans.leave_out(good, CPU)
            if good.all():
                continue
            assert spans.num_samples == good[own.start : own.stop].sum()
            assert [part.start for part in spans.slices[1:]] == [part.stop for part in spans.slices[:-1]]
            assert spans.counts is not None
            for number, (part, before) in enumerate(zip(spans.slices, whole, strict=True)):
                start = team.positions.start + part.row * span
                assert part.size == good[own.start + before.start : own.start + before.stop].sum()
                assert spans.counts[number] == good[start : start + span].sum()
                if number in spans._own:
                    assert spans._own[number][1].sum().item() == pytest.approx(spans.counts[number])
            spans.leave_out(None, CPU)
            assert (spans.slices, spans.counts, spans.num_values(3)) == (whole, None, 3 * span)
            assert all(spans._own[number] is kept for number, kept in counts.items())


def groups_of(
    layout: BatchLayout, span: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[object, object]]:
    """The arguments of all calls by which worker `rank` creates process groups."""
    calls: list[tuple[object, object]] = []

    def new_group(ranks: list[int], **options: object) -> object:
        calls.append((ranks, options))
        return object()

    monkeypatch.setattr("resnet_dist.models.spans.dist.new_group", new_group)
    Spans(layout, rank, span)
    return calls


@pytest.mark.parametrize("rank", [0, 17, 511])
def test_each_of_512_workers_creates_one_group(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own team, and waits for that only."""
    layout = BatchLayout(8192, world_size=512)  # teams of 4 workers of 16 samples
    first = rank // 4 * 4
    expected = (list(range(first, first + 4)), {"use_local_synchronization": True})
    assert groups_of(layout, 64, rank, monkeypatch) == [expected]


def test_all_workers_create_as_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is alone in its team: torch names later groups by the number of those before."""
    some = BatchLayout(8, world_size=3)  # boundaries 2 and 5, of which 2 is one of spans
    none = BatchLayout(12, world_size=3)
    assert [len(groups_of(some, 2, rank, monkeypatch)) for rank in range(3)] == [1, 1, 1]
    assert [len(groups_of(none, 2, rank, monkeypatch)) for rank in range(3)] == [0, 0, 0]
