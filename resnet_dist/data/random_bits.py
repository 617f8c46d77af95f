"""Counter-based random numbers: a hash of (seed, purpose, position).

With a stateful generator, the crop of a sample would depend on the worker, the thread and the restart that drew it. A
hash gives the same number everywhere, and reaches any position in O(1).

The hash is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014), used as a
tree: element p of the sequence with state s is itself the state of a sequence. Seed, purpose, position and column are
the four levels of the tree.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: the odd integer nearest to 2^64 / golden ratio
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64's finaliser ("variant 13")
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_ONE = np.uint64(1)


class Purpose(enum.IntEnum):
    """The use of a sequence of numbers. Changing a value would change the results of every run."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MODEL = 3  # seeds of torch's generators, which modules of the user may use
    COLOR_JITTER = 4
    AUGMENTATION = 5  # the operations of a policy, or the numbers of a user's function
    ERASING = 6
    MIXING = 7  # at the first position of a pair
    SUBSET = 8  # the images of a class that data.subset takes
    DROPOUT = 9
    STOCHASTIC_DEPTH = 10
    ORDER_SHARDS = 11  # the shards of an epoch
    ORDER_WINDOW = 12  # the samples within a window of the sequence of shards
    SYNTHETIC = 13  # labels of data.source: synthetic
    STUDY = 100  # values that a study draws


def element(states: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Element number `counters` of the SplitMix64 sequences that start at `states`; the two broadcast.

    >>> state = np.array([1234567], dtype=np.uint64)
    >>> element(state, np.arange(2, dtype=np.uint64)).tolist()
    [6457827717110365317, 3203168211198807973]
    """
    # uint64 arrays wrap around on overflow, as SplitMix64 requires.
    word = states + (counters + _ONE) * _GOLDEN
    word = (word ^ (word >> _SHIFTS[0])) * _FACTORS[0]
    word = (word ^ (word >> _SHIFTS[1])) * _FACTORS[1]
    mixed: NDArray[np.uint64] = word ^ (word >> _SHIFTS[2])
    return mixed


def states(seed: int, positions: NDArray[np.int64], purpose: Purpose) -> NDArray[np.uint64]:
    """The states, uint64 [n], from which the numbers at `positions` int64 [n] are drawn for `purpose`."""
    return element(np.array([stream(seed, purpose)], dtype=np.uint64), positions.astype(np.uint64))


def stream(seed: int, purpose: Purpose) -> int:
    """The state, below 2^64, of which `states` are the elements at the positions."""
    root = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    return int(element(root, np.array([purpose], dtype=np.uint64))[0])


def uniform(seed: int, positions: NDArray[np.int64], purpose: Purpose, num: int) -> NDArray[np.float64]:
    """`num` independent uniform numbers for each position: float64 [n, num] in [0, 1), multiples of 2^-53."""
    columns = np.arange(num, dtype=np.uint64)
    words = element(states(seed, positions, purpose)[:, None], columns[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def checksum(sample_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> int:
    """A checksum of which sample is at which position: the sum of a hash below 2^32 of each pair.

    It is additive over workers and micro-batches. Equal checksums show that two runs had the same samples in the same
    order.

    >>> whole = checksum(np.array([7, 3, 5]), np.array([0, 1, 2]))
    >>> whole == checksum(np.array([7]), np.array([0])) + checksum(np.array([3, 5]), np.array([1, 2]))
    True
    >>> whole == checksum(np.array([3, 7, 5]), np.array([0, 1, 2]))
    False
    """
    return int(pair_hashes(sample_ids, positions).sum())


def pair_hashes(sample_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes below 2^32, uint64 [n], of the pairs of a sample and its position."""
    words = element(element(np.zeros(1, np.uint64), positions.astype(np.uint64)), sample_ids.astype(np.uint64))
    return words >> np.uint64(32)
