"""The broken images of a run: named once, counted, and limited in number.

Only a run with `data.on_error: replace` or `data.known_bad` has them. Workers agree through the host, so that nothing
waits for a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from resnet_dist.data.index.table import Index
from resnet_dist.data.loader import BadImage, HostBatch
from resnet_dist.data.sources.known_bad import unlisted_broken
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe

_NAMED = 3  # images in a message

_log = logging.getLogger(__name__)

T = TypeVar("T")


class BadImages:
    """The broken images that a run has met, by name and the same on every worker; all workers call each method.

    `num_samples` counts the samples that were left out in training steps so far, repetitions and known images included.
    """

    def __init__(self, data: DataRecipe, splits: Sequence[Index], known: Iterable[str] = ()) -> None:
        """`splits`: training and val. Their broken images that are not `known` are the first that the run has met.

        Raises DataError if there are more than `data.max_bad_images`, and under `data.on_error: fail` for the first. A
        collective if there is a process group.
        """
        self._data, self._known = data, frozenset(known)
        self._limit = limit_of(data, len(splits[0]))
        self._problems: dict[str, str] = {}
        self._new: list[BadImage] = []
        self._own: list[BadImage] = []  # of this worker's part of an evaluation
        self._group = _host_group()
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self.num_samples = 0
        indexed = [BadImage(*found) for index in splits for found in unlisted_broken(index, self._known).items()]
        self._num_known = sum(len(unlisted_broken(index, ())) for index in splits) - len(indexed)
        if indexed and data.on_error == "fail":
            raise DataError(data.root, f"{_named(indexed)}. Repair or delete them, or list them in data.known_bad")
        if self._rank == 0:
            self.met(indexed)
        self.record(indexed)

    def __len__(self) -> int:
        return len(self._problems)

    def total(self, own: int) -> int:
        """The sum of a number over all workers. A collective."""
        if self._group is None:
            return own
        number = torch.tensor([own])
        dist.all_reduce(number, group=self._group)
        return int(number.item())

    def gather(self, own: list[T]) -> list[T]:
        """The items of all workers, in the order of ranks. A collective."""
        if self._group is None:
            return own
        lists: list[list[T]] = [[]] * dist.get_world_size()
        dist.all_gather_object(lists, own, group=self._group)
        return [item for items in lists for item in items]

    def met(self, own: Iterable[BadImage]) -> list[BadImage]:
        """Log the images that no worker has met before. Returns those of this worker, with its rank, for `record`."""
        own = [image._replace(rank=self._rank) for image in own]
        for image in self._unmet(own):
            _log.warning("%s %s: it is left out (data.on_error: replace)", image.name, image.problem)
        return own

    def record(self, found: Iterable[BadImage]) -> None:
        """Record the images that any worker has found. Raises DataError if the run has met too many."""
        new = self._unmet(found)
        self._new += new
        self._problems |= {image.name: image.problem for image in new}
        if len(self) > self._limit:
            images = [BadImage(name, problem) for name, problem in self._problems.items()]
            raise DataError(
                self._data.root,
                f"{_named(images)}. That is more than data.max_bad_images allows ({self._limit:,}). Repair them, list "
                "them in data.known_bad, or raise data.max_bad_images",
            )

    def noted(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
        """Yield the batches of an evaluation, and keep their broken images for `share`."""
        for batch in batches:
            self._own += self.met(batch.broken.values())
            yield batch

    def share(self) -> None:
        """Record what all workers have kept. A collective. Raises DataError as `record` does."""
        own, self._own = self._own, []
        self.record(self.gather(own))

    def take_new(self) -> list[dict[str, Any]]:
        """The images recorded since the last call, as details of events."""
        new, self._new = self._new, []
        return [{"path": image.name, "problem": image.problem, "rank": image.rank} for image in new]

    def summary(self) -> dict[str, int]:
        """What a run's summary says: the images found, those of `data.known_bad`, and the samples of training steps."""
        return {"num_bad_images": len(self), "num_known_bad": self._num_known, "num_left_out": self.num_samples}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"images": dict(self._problems), "num_samples": self.num_samples}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned, without images that are known now. Raises DataError as `record` does."""
        self.num_samples = int(state.get("num_samples", 0))
        before = {name: problem for name, problem in state.get("images", {}).items() if name not in self._known}
        self._new = [image for image in self._new if image.name not in before]
        self._problems = {**before, **self._problems}
        self.record([])

    def _unmet(self, images: Iterable[BadImage]) -> list[BadImage]:
        by_name = {image.name: image for image in images}
        return [image for name, image in by_name.items() if name not in self._problems and name not in self._known]


def limit_of(data: DataRecipe, num_samples: int) -> int:
    """The number of broken images that a run accepts; a fraction of the `num_samples` is rounded down, at least 1."""
    part = data.max_bad_images
    return part if isinstance(part, int) else max(1, int(part * num_samples))


def _named(images: Sequence[BadImage]) -> str:
    first = "; ".join(f"{image.name} {image.problem}" for image in images[:_NAMED])
    return f"{len(images):,} broken images, for example {first}"


def _host_group() -> dist.ProcessGroup | None:
    """A process group of all workers that exchanges host memory; None for one worker. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group
