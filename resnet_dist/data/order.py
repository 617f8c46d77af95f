"""The order of the samples in the endless stream of epochs.

Epoch e is positions [eN, (e+1)N), a permutation of the N samples that depends on (seed, e). Each position is computed
by itself: permutations are never stored or sent, and any step is reached in O(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.random_bits import Purpose, element, states

# Each round mixes one coordinate with a hash of the other. 4 rounds are enough for large grids (Luby and Rackoff 1988);
# small grids need more until all N! permutations are equally likely. In a chi-square test over 400,000 epochs of 7
# samples, 12 and 16 rounds fail, 20 and more pass.
_ROUNDS = 24


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
        """Rows of the index, int64 [n], at `positions` int64 [n] (0 is the first sample of the run).

        The positions may be in any order and in several epochs.

        A Feistel network permutes a grid of height × width cells, slightly more than N. A result outside [0, N) is
        permuted again until it is inside, which keeps the map a permutation (cycle walking: Black and Rogaway, Ciphers
        with Arbitrary Finite Domains, CT-RSA 2002).
        """
        epochs, offsets = np.divmod(positions, self.num_samples)
        keys = states(self.seed, epochs, Purpose.ORDER)
        ids = self._permute(offsets.astype(np.uint64), keys)
        while (outside := np.flatnonzero(ids >= self.num_samples)).size:
            ids[outside] = self._permute(ids[outside], keys[outside])
        return ids.astype(np.int64)

    def _permute(self, numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Apply the network once: a permutation of [0, height × width) for each key."""
        rows = math.isqrt(self.num_samples - 1) + 1  # ceil(sqrt(N))
        rows += rows % 2  # if both sides were odd, every epoch would be an even permutation
        height, width = np.uint64(rows), np.uint64(-(-self.num_samples // rows))
        row, column = np.divmod(numbers, width)
        for round_number in range(_ROUNDS):
            counter = np.uint64(round_number) << np.uint64(32)  # rows and columns are below 2^32
            if round_number % 2 == 0:
                row = (row + element(keys, counter + column) % height) % height
            else:
                column = (column + element(keys, counter + row) % width) % width
        return row * width + column
