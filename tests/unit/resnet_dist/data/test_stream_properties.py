"""What a run consumes, whoever consumes it: position, sample, window and flip of every step.

The expected table is computed without loader, layout and restarts: from the definition of the stream.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.data import BatchRequest, Index
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.ledger import Tallies, added, tallies_of
from resnet_dist.data.loader import training_batches
from resnet_dist.data.order import ShardStream, Stream, order_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe

Row = tuple[int, int, int, tuple[int, ...], bool]  # step, position, sample, window, flip


@dataclass(frozen=True)
class Input:
    """A data set, and a recipe for it."""

    index: Index
    recipe: DataRecipe
    seed: int
    batch_size: int
    num_steps: int


@dataclass(frozen=True)
class Attempt:
    """A part of a run: the steps before `end` that were not done before."""

    end: int
    layout: BatchLayout
    ahead: int  # requests that the decoder reads ahead


@dataclass(frozen=True)
class ReadsAhead:
    """A decoder that decodes nothing, some requests ahead of its consumer."""

    ahead: int

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        waiting: list[BatchRequest] = []
        for request in requests:
            waiting.append(request)
            if len(waiting) > self.ahead:
                yield self.decoded(waiting.pop(0))
        yield from map(self.decoded, waiting)

    def decoded(self, request: BatchRequest) -> Decoded:
        rows = [request.sample_ids, request.flips, *request.windows.T]  # in the place of pixels
        return Decoded(request, torch.from_numpy(np.stack(rows, axis=1).astype(np.int64)))


def index_of(num: int, seed: int, source: str) -> Index:
    """An index of `num` images of several sizes: loose files, tar files, or packed shards in another order."""
    random = np.random.default_rng(seed)
    heights, widths = (random.integers(8, 100, num).astype(np.int32) for _ in range(2))
    index = Index("root", ("a",), tuple(map(str, range(num))), np.zeros(num, np.int64), heights, widths)
    if source == "loose":
        return index
    numbers = np.sort(random.integers(0, 5, num)) if source == "tar" else random.integers(0, 5, num)
    return replace(index, shards=tuple("abcde"), shard_numbers=numbers.astype(np.int32), offsets=np.arange(num))


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    num, seed = draw(st.integers(1, 60)), draw(st.integers(0, 2**32))
    recipe = DataRecipe(
        root="root",
        order=draw(st.sampled_from(["uniform", "shards"])),
        shuffle_window=draw(st.integers(1, 70)),
        flip=draw(st.booleans()),
    )
    source = draw(st.sampled_from(["loose", "tar", "packed"]))
    # 36: 9 workers in each of 2 micro-batches, in units of pairs
    return Input(
        index_of(num, seed, source), recipe, seed, draw(st.sampled_from([36, 37, 72])), draw(st.integers(1, 6))
    )


def attempts(given: Input) -> st.SearchStrategy[list[Attempt]]:
    """Restarts at any steps, each with workers, shares and micro-batches of its own."""

    def attempt(end: int) -> st.SearchStrategy[Attempt]:
        whole = given.batch_size % 2 == 0
        parts = st.sampled_from([1, 2] if whole else [1])
        units = st.sampled_from([1, 2] if whole else [1])
        layouts = st.builds(BatchLayout, st.just(given.batch_size), parts, st.integers(1, 9), units)
        return st.builds(Attempt, st.just(end), layouts, st.integers(0, 4))

    restarts = st.sets(st.integers(1, given.num_steps)).map(lambda ends: sorted({*ends, given.num_steps}))
    return restarts.flatmap(lambda ends: st.tuples(*map(attempt, ends)).map(list))


def expected(given: Input) -> list[Row]:
    """Every row of the run, from the definitions."""
    size, index, recipe = given.batch_size, given.index, given.recipe
    positions = np.arange(given.num_steps * size)
    order = order_of(index, recipe, given.seed)
    ids = order.sample_ids(positions[::-1])[::-1]
    windows = training_windows(
        index.heights[ids], index.widths[ids], positions, given.seed, recipe.crop_area, recipe.crop_aspect
    )
    flipped = flips(positions, given.seed) & recipe.flip
    rows = zip(positions.tolist(), ids.tolist(), windows.tolist(), flipped.tolist(), strict=True)
    return [(position // size, position, sample, tuple(window), flip) for position, sample, window, flip in rows]


def consumed(given: Input, parts: list[Attempt]) -> tuple[list[Row], Tallies]:
    """Every row that the workers of the attempts get, sorted, and the sum of their tallies."""
    rows: list[Row] = []
    tallies: Tallies = {}
    first, index = 0, given.index
    for part in parts:
        for rank in range(part.layout.world_size):
            batches = training_batches(
                index,
                files_of(index),
                order_of(index, given.recipe, given.seed),
                part.layout,
                rank,
                given.recipe,
                given.seed,
                ReadsAhead(part.ahead),
                range(first, part.end),
            )
            for number, batch in enumerate(batches):
                step = first + number // part.layout.num_micro_batches
                for position, row in zip(batch.positions.tolist(), batch.images.tolist(), strict=True):
                    rows.append((step, position, row[0], tuple(row[2:]), bool(row[1])))
                tallies = added(tallies, batch.tallies)
        first = part.end
    return sorted(rows), tallies


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_workers_shares_micro_batches_and_restarts_change_nothing_of_what_is_consumed(data: st.DataObject) -> None:
    given = data.draw(inputs())
    wanted = expected(given)
    rows, tallies = consumed(given, data.draw(attempts(given)))
    assert rows == wanted
    ids, positions = (np.array([row[column] for row in wanted]) for column in (2, 1))
    assert tallies == tallies_of(ids, positions, len(given.index))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(1, 6))
def test_under_uniform_it_does_not_matter_where_the_samples_are_stored(num: int, seed: int, num_steps: int) -> None:
    recipe = DataRecipe(root="root")
    one, *others = (
        expected(Input(index_of(num, seed, source), recipe, seed, 12, num_steps))
        for source in ("loose", "tar", "packed")
    )
    for other in others:
        assert one == other


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 2**32), st.integers(1, 90))
def test_positions_near_each_other_are_in_few_shards(sizes: list[int], seed: int, window: int) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    found = shards[ShardStream(shards, seed, window).sample_ids(np.arange(len(shards)))]
    for start in range(0, len(shards), window):
        assert len(np.unique(found[start : start + window])) <= (window - 2) // min(sizes) + 2


def test_the_two_orders_differ() -> None:
    """Otherwise the tests above would test one order twice."""
    index, positions = index_of(60, 0, "tar"), np.arange(60)
    by_shard = order_of(index, DataRecipe(root="root", order="shards", shuffle_window=10), 0)
    assert isinstance(by_shard, ShardStream)
    assert not np.array_equal(by_shard.sample_ids(positions), Stream(60, 0).sample_ids(positions))
