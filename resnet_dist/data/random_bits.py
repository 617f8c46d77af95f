"""Random numbers without state: a hash of (seed, purpose, position).

A generator that is advanced sample by sample would tie a sample's crop to the worker, the thread and the restart that
happened to draw it. Here every number is looked up instead: the same question has the same answer everywhere, and any
position is reached in O(1).

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
    """What a stream of numbers is for. A purpose never changes its value: that would change every run."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MODEL = 3  # torch's generators, which a user's modules draw from


def element(states: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Element number `counters` of the SplitMix64 sequences that start at `states`; the two broadcast.

    >>> state = np.array([1234567], dtype=np.uint64)
    >>> element(state, np.arange(2, dtype=np.uint64)).tolist()
    [6457827717110365317, 3203168211198807973]
    """
    # uint64 arrays wrap around silently, which is the arithmetic meant here.
    word = states + (counters + _ONE) * _GOLDEN
    word = (word ^ (word >> _SHIFTS[0])) * _FACTORS[0]
    word = (word ^ (word >> _SHIFTS[1])) * _FACTORS[1]
    mixed: NDArray[np.uint64] = word ^ (word >> _SHIFTS[2])
    return mixed


def states(seed: int, positions: NDArray[np.int64], purpose: Purpose) -> NDArray[np.uint64]:
    """The state uint64 [n] of each of `positions` int64 [n]: the root of all numbers drawn there for `purpose`."""
    root = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    stream = element(root, np.array([purpose], dtype=np.uint64))
    return element(stream, positions.astype(np.uint64))


def uniform(seed: int, positions: NDArray[np.int64], purpose: Purpose, num: int) -> NDArray[np.float64]:
    """`num` independent uniform numbers for each position: float64 [n, num] in [0, 1), multiples of 2^-53."""
    columns = np.arange(num, dtype=np.uint64)
    words = element(states(seed, positions, purpose)[:, None], columns[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def checksum(sample_ids: NDArray[np.int64], positions: NDArray[np.int64]) -> int:
    """A sum over samples of a number below 2^32 that depends on the sample and on its position.

    It adds up over workers and micro-batches, and tells whether two runs gave the same samples the same places.

    >>> whole = checksum(np.array([7, 3, 5]), np.array([0, 1, 2]))
    >>> whole == checksum(np.array([7]), np.array([0])) + checksum(np.array([3, 5]), np.array([1, 2]))
    True
    >>> whole == checksum(np.array([3, 7, 5]), np.array([0, 1, 2]))
    False
    """
    words = element(element(np.zeros(1, np.uint64), positions.astype(np.uint64)), sample_ids.astype(np.uint64))
    return int((words >> np.uint64(32)).sum())
