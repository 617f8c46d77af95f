"""The order of the samples in the endless stream of epochs.

Epoch e is positions [eN, (e+1)N), a permutation of the N samples that depends on (seed, e). Each position is computed
by itself: a permutation of samples is never stored or sent, and any step is reached in O(1), or in O(number of shards)
once for each epoch.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.table import Index
from resnet_dist.data.random_bits import Purpose, element, states
from resnet_dist.recipe.schema import DataRecipe

# Each round mixes one coordinate with a hash of the other. 4 rounds are enough for large grids (Luby and Rackoff 1988);
# small grids need more until all N! permutations are equally likely. In a chi-square test over 400,000 epochs of 7
# samples, 12 and 16 rounds fail, 20 and more pass.
_ROUNDS = 24
_BLOCK = 1_000  # consecutive rows of an index without shards that `order: shards` keeps together
_COUNTED = 200  # batches
_MOST_UNEVEN = 1.2  # without a warning; docs/benchmarks.md has the accuracy of small runs
_EPOCHS = 4  # whose order of shards is kept: of the steps that are read ahead

_log = logging.getLogger(__name__)


class Order(Protocol):
    """Which sample is at which position of the stream."""

    @property
    def num_samples(self) -> int:
        """The number of samples, N: of an epoch."""
        ...

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the index, int64 [n], at `positions` int64 [n] (0 is the first sample of the run).

        The positions may be in any order and in several epochs. May be called from several threads.
        """
        ...


def order_of(index: Index, data: DataRecipe, seed: int) -> Order:
    """The order that `data.order` names, of the samples of `index`.

    Without shards, `order: shards` takes blocks of 1,000 consecutive rows of the index in their place.
    """
    if data.order == "uniform":
        return Stream(len(index), seed)
    shards = index.shard_numbers if index.shards else np.arange(len(index)) // _BLOCK
    return ShardStream(shards, seed, data.shuffle_window)


@dataclass(frozen=True)
class Stream:
    """Endless epochs over `num_samples` samples, each in a different random order.

    >>> stream = Stream(num_samples=5, seed=0)
    >>> [sorted(stream.sample_ids(np.arange(5 * epoch, 5 * epoch + 5)).tolist()) for epoch in (0, 1)]
    [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """

    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"a stream needs at least 1 sample, not {self.num_samples}")

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Order.sample_ids`."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        return _permuted(offsets, states(self.seed, epochs, Purpose.ORDER), self.num_samples)


class ShardStream:
    """Endless epochs that read few shards at a time.

    In each epoch the shards come in a random order, and their samples are shuffled within windows of `window` places of
    that sequence. A window of W places reads the shards that overlap with it: about W / (samples per shard) + 1.

    >>> stream = ShardStream(np.array([0, 0, 0, 1, 1, 1]), seed=0, window=3)
    >>> [sorted(stream.sample_ids(np.arange(start, start + 3)).tolist()) for start in (0, 3, 6, 9)]
    [[3, 4, 5], [0, 1, 2], [3, 4, 5], [0, 1, 2]]
    """

    def __init__(self, shards: NDArray[np.integer], seed: int, window: int) -> None:
        """`shards`: the shard of each row of the index, [N], in any order."""
        self.num_samples = len(shards)
        if self.num_samples < 1:
            raise ValueError("a stream needs at least 1 sample, not 0")
        self._seed, self._window = seed, min(window, self.num_samples)
        self._rows = np.argsort(shards, kind="stable")  # shard after shard
        self._sizes = np.unique(shards, return_counts=True)[1]
        self._starts = np.cumsum(self._sizes) - self._sizes  # of the shards, in _rows
        self._shards = functools.lru_cache(maxsize=_EPOCHS)(self._shuffled)

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Order.sample_ids`."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        places, ids = self._shuffled_within_windows(epochs, offsets), np.empty_like(positions)
        in_turn = np.argsort(epochs, kind="stable")
        for own in np.split(in_turn, np.flatnonzero(np.diff(epochs[in_turn])) + 1):
            if not own.size:
                continue  # no position was asked for
            shards, starts = self._shards(int(epochs[own[0]]))
            turns = np.searchsorted(starts, places[own], side="right") - 1
            ids[own] = self._rows[self._starts[shards[turns]] + places[own] - starts[turns]]
        return ids

    def _shuffled(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards of an epoch in its order, and at which place of the epoch each of them begins."""
        state = states(self._seed, np.array([epoch]), Purpose.ORDER_SHARDS)
        shards = np.argsort(element(state, np.arange(len(self._sizes), dtype=np.uint64)), kind="stable")
        sizes = self._sizes[shards]
        return shards, np.cumsum(sizes) - sizes

    def _shuffled_within_windows(self, epochs: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        windows, inside = np.divmod(offsets, self._window)
        keys = element(states(self._seed, epochs, Purpose.ORDER_WINDOW), windows.astype(np.uint64))
        num_whole, length_of_last = divmod(self.num_samples, self._window)
        for own, length in ((windows < num_whole, self._window), (windows == num_whole, length_of_last)):
            inside[own] = _permuted(inside[own], keys[own], length)
        return windows * self._window + inside


def unevenness(order: Order, labels: NDArray[np.int64], batch_size: int) -> float:
    """The standard deviation of the number of samples of a class in a batch, relative to that of a random batch.

    About 1 for `uniform`; seen in at most 200 batches of the first epoch. 1 if an epoch is not longer than a batch.

    >>> sorted_by_class = np.repeat(np.arange(10), 100)
    >>> round(unevenness(Stream(1000, seed=0), sorted_by_class, batch_size=50), 1)
    1.0
    >>> round(unevenness(ShardStream(sorted_by_class, seed=0, window=100), sorted_by_class, batch_size=50), 1)
    7.3
    """
    num_batches = len(labels) // batch_size
    if num_batches < 2:
        return 1.0
    steps = np.linspace(0, num_batches - 1, min(num_batches, _COUNTED), dtype=np.int64)
    positions = steps[:, None] * batch_size + np.arange(batch_size)
    found = labels[order.sample_ids(positions.ravel())].reshape(positions.shape)
    shares = np.bincount(labels) / len(labels)
    counts = np.stack([np.bincount(batch, minlength=len(shares)) for batch in found])
    # drawing without replacement: the hypergeometric distribution
    expected = batch_size * (shares * (1 - shares)).sum() * (len(labels) - batch_size) / (len(labels) - 1)
    variance = ((counts - batch_size * shares) ** 2).sum(axis=1).mean()
    return math.sqrt(variance / expected) if expected else 1.0


def warn_of_classes(order: Order, labels: NDArray[np.int64], batch_size: int) -> None:
    """Log a warning if batches have far more of some classes than random batches would."""
    if not isinstance(order, ShardStream):
        return
    num_counts = min(len(labels) // batch_size, _COUNTED) * len(np.unique(labels))
    noise = 1 / math.sqrt(2 * max(num_counts, 1))  # the standard deviation of a standard deviation
    if (found := unevenness(order, labels, batch_size)) > _MOST_UNEVEN + 3 * noise:
        _log.warning(
            "data.order: shards: the number of images of a class varies %.1f times as much from batch to batch as in "
            "random batches: shards are sorted by class. Accuracy suffers. Write the shards in random order (launcher "
            "prepare pack --shuffle), or set a larger data.shuffle_window, or data.order: uniform",
            found,
        )


def _permuted(numbers: NDArray[np.int64], keys: NDArray[np.uint64], length: int) -> NDArray[np.int64]:
    """`numbers` int64 [n] after a permutation of [0, length) for each key, uint64 [n].

    A Feistel network permutes a grid of height × width cells, slightly more than `length`. A result outside is permuted
    again until it is inside, which keeps the map a permutation (cycle walking: Black and Rogaway, Ciphers with
    Arbitrary Finite Domains, CT-RSA 2002).
    """
    found = _network(numbers.astype(np.uint64), keys, length)
    while (outside := np.flatnonzero(found >= length)).size:
        found[outside] = _network(found[outside], keys[outside], length)
    return found.astype(np.int64)


def _network(numbers: NDArray[np.uint64], keys: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Apply the network once: a permutation of [0, height × width) for each key."""
    if not numbers.size:
        return numbers
    rows = math.isqrt(length - 1) + 1  # ceil(sqrt(length))
    rows += rows % 2  # if both sides were odd, every epoch would be an even permutation
    height, width = np.uint64(rows), np.uint64(-(-length // rows))
    row, column = np.divmod(numbers, width)
    for round_number in range(_ROUNDS):
        counter = np.uint64(round_number) << np.uint64(32)  # rows and columns are below 2^32
        if round_number % 2 == 0:
            row = (row + element(keys, counter + column) % height) % height
        else:
            column = (column + element(keys, counter + row) % width) % width
    return row * width + column
