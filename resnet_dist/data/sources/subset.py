"""A stratified part of the training split: `data.subset`."""

from __future__ import annotations

import heapq
import logging

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.table import Index
from resnet_dist.data.names import some
from resnet_dist.data.random_bits import Purpose, element, states
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import DataRecipe

_log = logging.getLogger(__name__)


def trained_on(data: DataRecipe, seed: int, train: Index, rank: int) -> Index:
    """The images of the training split that a run trains on: all of them, or `data.subset`.

    Rank 0 logs which classes have none. Raises RecipeError as `subset_of` does.
    """
    num = data.num_trained(len(train))
    if data.subset is None or num is None:
        return train
    part = subset_of(train, num, seed)
    without = [train.classes[label] for label in np.setdiff1d(train.labels, part.labels).tolist()]
    if without and rank == 0:
        names = some(without)
        found = "data.subset: the %d images for training have none of %d of %d classes: %s"
        _log.warning(found, num, len(without), len(train.classes), names)
    return part


def subset_of(index: Index, num: int, seed: int) -> Index:
    """`num` images of `index`, in its order: of each class in proportion to its size, chosen by a hash.

    An image is chosen by (seed, class, number within the class) alone, and class counts never fall as `num` grows, so a
    smaller subset is contained in a larger one. A count differs from the exact proportion by less than 1.

    Raises RecipeError if the index has fewer images.
    """
    if not 1 <= num <= len(index):
        found = f"asks for {num:,} images, and the training split in {index.root} has {len(index):,}"
        raise RecipeError("data.subset", found, f"at most {len(index)}, or leave it out")
    counts = proportional_counts(np.bincount(index.labels, minlength=len(index.classes)), num)
    rows = [
        _of_class(np.flatnonzero(index.labels == label), num_of_class, label, seed)
        for label, num_of_class in enumerate(counts.tolist())
        if num_of_class
    ]
    chosen = np.sort(np.concatenate(rows))
    return index.take(chosen)


def proportional_counts(sizes: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """How many of `num` images come from each class of `sizes` images: int64 [classes], with the sum `num`.

    A count differs from size × num / sum by less than 1, and never falls as `num` grows. Rounding the proportions
    (largest remainder) would not have the second property: the Alabama paradox.

    Images are handed out one by one. The k-th image of a class comes neither before the count would exceed the
    proportion by 1 or more (its release), nor after it would fall behind by 1 or more (its deadline). Earliest deadline
    first keeps all deadlines, because an order that does exists (Tijdeman 1980, The chairman assignment problem).

    >>> proportional_counts(np.array([60, 30, 10]), 20).tolist()
    [12, 6, 2]
    """
    total, numbers = int(sizes.sum()), sizes.tolist()
    counts = [0] * len(numbers)
    waiting = [(1, label) for label, size in enumerate(numbers) if size]  # (release, class), a heap
    ready: list[tuple[int, int]] = []  # (deadline, class), a heap
    for place in range(1, num + 1):
        while waiting and waiting[0][0] <= place:
            _, label = heapq.heappop(waiting)
            deadline = -(-(counts[label] + 1) * total // numbers[label])
            heapq.heappush(ready, (deadline, label))
        _, label = heapq.heappop(ready)
        counts[label] += 1
        if counts[label] < numbers[label]:
            heapq.heappush(waiting, (counts[label] * total // numbers[label] + 1, label))
    return np.array(counts, dtype=np.int64)


def _of_class(rows: NDArray[np.int64], num: int, label: int, seed: int) -> NDArray[np.int64]:
    """`num` of the rows of one class: those with the smallest hashes."""
    state = states(seed, np.array([label]), Purpose.SUBSET)
    words = element(state, np.arange(len(rows), dtype=np.uint64))
    return rows[np.argsort(words, kind="stable")[:num]]
