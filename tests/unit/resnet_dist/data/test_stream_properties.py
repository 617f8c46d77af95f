"""What a run consumes, whoever consumes it: position, sample, window, flip and bytes of every step.

The expected table is computed without loader, layout, restarts and sources: from the images as they were made, and the
definition of the stream. The bytes are read from each source.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import jpeg, write_parquet, write_tar

from launcher.prepare.packing import Options, pack
from resnet_dist.data import BatchRequest, Index, index_of
from resnet_dist.data.crops import flips, training_windows
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.ledger import Tallies, added, tallies_of
from resnet_dist.data.loader import training_batches
from resnet_dist.data.order import Order, ShardStream, Stream, order_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe

Row = tuple[int, int, int, tuple[int, ...], bool, int]  # step, position, sample, window, flip, hash of the bytes

NUM, LABELS = 60, [number // 20 for number in range(60)]
SIZES = [(200 + number % 7, 240 + number % 5) for number in range(NUM)]  # height and width
IMAGES = [jpeg(number, 200, width) for number, (_, width) in enumerate(SIZES)]  # noise: 3 packed shards of 1 MB
SOURCES = ("imagefolder", "webdataset", "parquet", "packed")


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Index]:
    """The images in each source. Tar and parquet shards are of unequal sizes; packed shards are in random order."""
    folder, parts = tmp_path_factory.mktemp("sources"), [range(7), range(7, 27), range(27, 40), range(40, NUM)]
    for split, shards in (("train", parts), ("val", [range(1)])):
        for number in (number for shard in shards for number in shard):
            file = folder / f"imagefolder/{split}/c{LABELS[number]}/{number:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(IMAGES[number])
        for name, shard in enumerate(shards):
            members = [
                member
                for number in shard
                for member in ((f"{number:04}.jpg", IMAGES[number]), (f"{number:04}.cls", str(LABELS[number]).encode()))
            ]
            write_tar(folder / f"webdataset/{split}-{name}.tar", members)
            images, labels = ([values[number] for number in shard] for values in (IMAGES, LABELS))
            write_parquet(folder / f"parquet/{split}-{name}.parquet", images, labels, rows=3)
    for number in (1, 2):
        (folder / f"imagefolder/val/c{number}").mkdir()
        (folder / f"imagefolder/val/c{number}/0.jpg").write_bytes(IMAGES[0])
    options = Options(shard_mb=1, shuffle=True, threads=1)
    list(pack(DataRecipe(root=str(folder / "imagefolder")), folder / "packed", options))
    return {source: index_of(DataRecipe(root=str(folder / source), source=source), "train") for source in SOURCES}


@dataclass(frozen=True)
class Input:
    """The first images of a source, and a recipe for them."""

    index: Index
    recipe: DataRecipe
    seed: int
    batch_size: int
    num_steps: int

    def order(self) -> Order:
        """Under `uniform`, the definition knows of no source."""
        if self.recipe.order == "uniform":
            return Stream(len(self.index), self.seed)
        return order_of(self.index, self.recipe, self.seed)


@dataclass(frozen=True)
class Attempt:
    """A part of a run: the steps before `end` that were not done before."""

    end: int
    layout: BatchLayout
    ahead: int  # requests that the decoder reads ahead


@dataclass(frozen=True)
class ReadsAhead:
    """A decoder that reads the images and decodes nothing, some requests ahead of its consumer."""

    ahead: int

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        waiting: list[BatchRequest] = []
        for request in requests:
            waiting.append(request)
            if len(waiting) > self.ahead:
                yield self.decoded(waiting.pop(0))
        yield from map(self.decoded, waiting)

    def decoded(self, request: BatchRequest) -> Decoded:
        hashes = [zlib.crc32(request.files.read(number)) for number in request.sample_ids.tolist()]
        rows = [request.sample_ids, request.flips, hashes, *request.windows.T]  # in the place of pixels
        return Decoded(request, torch.from_numpy(np.stack(rows, axis=1).astype(np.int64)))


@st.composite
def inputs(draw: st.DrawFn, indices: dict[str, Index]) -> Input:
    recipe = DataRecipe(
        root="root",
        order=draw(st.sampled_from(["uniform", "shards"])),
        shuffle_window=draw(st.integers(1, 70)),
        flip=draw(st.booleans()),
    )
    num, seed, source = draw(st.integers(1, NUM)), draw(st.integers(0, 2**32)), draw(st.sampled_from(SOURCES))
    # 36: 9 workers in each of 2 micro-batches, in units of pairs
    size, num_steps = draw(st.sampled_from([36, 37, 72])), draw(st.integers(1, 6))
    return Input(indices[source].take(np.arange(num)), recipe, seed, size, num_steps)


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
    """Every row of the run, from the definitions and the images."""
    size, recipe = given.batch_size, given.recipe
    positions = np.arange(given.num_steps * size)
    ids = given.order().sample_ids(positions[::-1])[::-1]
    heights, widths = np.array(SIZES, np.int32)[ids].T
    windows = training_windows(heights, widths, positions, given.seed, recipe.crop_area, recipe.crop_aspect)
    flipped = flips(positions, given.seed) & recipe.flip
    rows = zip(positions.tolist(), ids.tolist(), windows.tolist(), flipped.tolist(), strict=True)
    return [
        (position // size, position, sample, tuple(window), flip, zlib.crc32(IMAGES[sample]))
        for position, sample, window, flip in rows
    ]


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
                    rows.append((step, position, row[0], tuple(row[3:]), bool(row[1]), row[2]))
                tallies = added(tallies, batch.tallies)
        first = part.end
    return sorted(rows), tallies


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_workers_shares_micro_batches_restarts_and_sources_change_nothing_of_what_is_consumed(
    indices: dict[str, Index], data: st.DataObject
) -> None:
    given = data.draw(inputs(indices))
    wanted = expected(given)
    rows, tallies = consumed(given, data.draw(attempts(given)))
    assert rows == wanted
    ids, positions = (np.array([row[column] for row in wanted]) for column in (2, 1))
    assert tallies == tallies_of(ids, positions, len(given.index))


def test_under_uniform_it_does_not_matter_where_the_samples_are_stored(indices: dict[str, Index]) -> None:
    """Every source in turn, so that none is left out by chance."""
    recipe, parts = (
        DataRecipe(root="root"),
        [Attempt(2, BatchLayout(24, 1, 3), 2), Attempt(4, BatchLayout(24, 2, 2), 0)],
    )
    one, *others = (consumed(Input(index, recipe, 7, 24, 4), parts)[0] for index in indices.values())
    assert len({row[5] for row in one}) == NUM
    for other in others:
        assert other == one


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 2**32), st.integers(1, 90))
def test_positions_near_each_other_are_in_few_shards(sizes: list[int], seed: int, window: int) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    found = shards[ShardStream(shards, seed, window).sample_ids(np.arange(len(shards)))]
    for start in range(0, len(shards), window):
        assert len(np.unique(found[start : start + window])) <= (window - 2) // min(sizes) + 2


def test_the_two_orders_differ(indices: dict[str, Index]) -> None:
    """Otherwise the tests above would test one order twice."""
    index, positions = indices["webdataset"], np.arange(60)
    by_shard = order_of(index, DataRecipe(root="root", order="shards", shuffle_window=10), 0)
    assert isinstance(by_shard, ShardStream)
    assert not np.array_equal(by_shard.sample_ids(positions), Stream(60, 0).sample_ids(positions))
