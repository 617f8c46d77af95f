"""Parameters that are cut over workers: where the pieces lie, and per-parameter norms in spite of the cuts.

ZeRO lays the parameters of a group one after another in a flat tensor and gives every worker an equal stretch of it.
An optimizer that takes its norms from such a stretch trains something else, without a word. Here it gets the pieces
of single parameters, and norms that are added up over workers: one small all-reduce a group. Torch only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.optim.lars import Lars, squared_norms, trust_ratios, update_weights

log = logging.getLogger(__name__)

# Optimizers of torch that treat every element alone, so that a cut through a tensor changes nothing ...
_ELEMENTWISE = ("Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
# ... and those that do not; Adagrad does, but DeepSpeed puts another one in its place, without its groups.
_REFUSED = ("Adafactor", "Adagrad", "LBFGS", "Muon", "SparseAdam")

AllReduce = Callable[[Tensor], object]  # sums its argument over the workers, in place


class PartitionError(ValueError):
    """Pieces that do not make up the parameters they should."""


@dataclass(frozen=True)
class Piece:
    """A run of one parameter's elements, and the run of the worker's flat partition that holds them."""

    parameter: int  # its number in the group
    start: int  # in the partition
    stop: int
    offset: int  # in the parameter, flattened

    @property
    def in_partition(self) -> slice:
        """The elements of the partition."""
        return slice(self.start, self.stop)

    @property
    def in_parameter(self) -> slice:
        """The elements of the flattened parameter."""
        return slice(self.offset, self.offset + self.stop - self.start)


@dataclass(frozen=True)
class PartitionTable:
    """Which elements of which parameters one worker's partition of a group holds; the rest of it is padding."""

    numels: tuple[int, ...]  # of the group's parameters
    offsets: tuple[int, ...]  # where each begins in the group's whole flat tensor
    partition_size: int  # elements, the same on every worker
    pieces: tuple[Piece, ...]  # at most one a parameter


def partition_table(numels: Sequence[int], offsets: Sequence[int], partition_size: int, rank: int) -> PartitionTable:
    """The table of worker `rank`, whose partition begins at element rank × partition_size of the flat tensor.

    >>> for piece in partition_table(numels=[5, 3], offsets=[0, 5], partition_size=6, rank=1).pieces:
    ...     print(piece.parameter, piece.in_partition, piece.in_parameter)
    1 slice(0, 2, None) slice(1, 3, None)
    """
    low, pieces = rank * partition_size, []
    for number, (numel, offset) in enumerate(zip(numels, offsets, strict=True)):
        start, stop = max(offset, low), min(offset + numel, low + partition_size)
        if start < stop:
            pieces.append(Piece(number, start - low, stop - low, start - offset))
    return PartitionTable(tuple(numels), tuple(offsets), partition_size, tuple(pieces))


def check_covered(tables: Sequence[PartitionTable]) -> None:
    """Raise PartitionError unless the workers' `tables` hold every element of every parameter exactly once."""
    for table in tables:
        if (table.numels, table.offsets, table.partition_size) != (
            tables[0].numels,
            tables[0].offsets,
            tables[0].partition_size,
        ):
            raise PartitionError("the workers do not agree on the order and sizes of the parameters")
        _check_disjoint("of a partition", [piece.in_partition for piece in table.pieces])
    for number, numel in enumerate(tables[0].numels):
        runs = [piece.in_parameter for table in tables for piece in table.pieces if piece.parameter == number]
        _check_disjoint(f"of parameter {number}", runs)
        covered = sum(run.stop - run.start for run in runs)
        first, last = min((run.start for run in runs), default=0), max((run.stop for run in runs), default=0)
        if covered != numel or last > numel:
            held = f"{covered} of the {numel} elements of parameter {number}, from {first} to {last}"
            raise PartitionError(f"the workers hold {held}")


def _check_disjoint(of_what: str, runs: list[slice]) -> None:
    end = 0
    for run in sorted(runs, key=lambda run: run.start):
        if run.start < end:
            raise PartitionError(f"element {run.start} {of_what} belongs to two pieces")
        end = run.stop


class Partition:
    """One worker's part of a group: cuts flat tensors of the partition's layout, and adds up norms over workers."""

    def __init__(self, table: PartitionTable, all_reduce: AllReduce) -> None:
        self.table = table
        self._all_reduce = all_reduce
        self._owners: Tensor | None = None

    def cut(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat` [partition_size], one a piece."""
        return [flat[piece.in_partition] for piece in self.table.pieces]

    def squared_norms(self, *flats: Tensor) -> Tensor:
        """Sums of squares of the whole parameters, float64 [len(flats), parameters]; a collective.

        Each of `flats` is [partition_size]: weights, gradients, or whatever an optimizer takes norms of.
        """
        sums = torch.zeros((len(flats), len(self.table.numels)), dtype=torch.float64, device=flats[0].device)
        if self.table.pieces:
            own = squared_norms([piece for flat in flats for piece in self.cut(flat)])
            sums[:, self._owners_on(sums.device)] = own.view(len(flats), -1)
        self._all_reduce(sums)
        return sums

    def per_piece(self, values: Tensor) -> Tensor:
        """Of `values` [parameters], the one of each piece's parameter: [pieces]."""
        return values[self._owners_on(values.device)]

    def _owners_on(self, device: torch.device) -> Tensor:
        # kept: made anew, it would be a copy from the host at every step
        if self._owners is None or self._owners.device != device:
            owners = [piece.parameter for piece in self.table.pieces]
            self._owners = torch.tensor(owners, dtype=torch.int64, device=device)
        return self._owners


class PartitionedLars(Lars):
    """LARS on flat partitions: every group has one parameter, this worker's partition, bound to its `Partition`.

    The arithmetic is that of `Lars`, on pieces. A step is a collective: one all-reduce of two numbers a parameter for
    each group with `decay`, and none for the others. Nothing depends on all groups being stepped at once.
    """

    def __init__(self, optimizer: Lars) -> None:
        """Take over the groups and hyperparameters of `optimizer`, which has not made a step yet."""
        assert not optimizer.state
        super().__init__([dict(group) for group in optimizer.param_groups])
        self._partitions: dict[Tensor, Partition] = {}

    def bind(self, flat: Tensor, partition: Partition) -> None:
        """Say where the pieces of `flat`, a group's one parameter, lie; every group's must be known before a step."""
        assert flat.numel() == partition.table.partition_size
        self._partitions[flat] = partition

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        [flat] = weights
        assert flat.grad is not None
        partition = self._partitions[flat]
        ratios = None
        if group["decay"]:
            norms = partition.squared_norms(flat.detach(), flat.grad).sqrt()
            ratios = partition.per_piece(
                trust_ratios(
                    norms[0],
                    norms[1],
                    weight_decay=group["weight_decay"],
                    trust_coefficient=group["trust_coefficient"],
                    epsilon=group["epsilon"],
                )
            )
        momentum = self._momentum_of(flat)  # also where all is padding: every worker has the same states
        if not partition.table.pieces:
            return
        update_weights(
            partition.cut(flat),
            partition.cut(flat.grad),
            partition.cut(momentum),
            ratios,
            learning_rate=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"] if group["decay"] else 0.0,
            convention=group["convention"],
        )


def for_partitions(optimizer: torch.optim.Optimizer, *, warn: bool) -> torch.optim.Optimizer:
    """An optimizer that is right on flat partitions: LARS in its partitioned form, others as they are.

    Raises RecipeError for those of which it is known that they are not; a user's own is named in a warning.
    """
    if type(optimizer) is Lars:
        return PartitionedLars(optimizer)
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(optimizer, Lars) or any(kind is getattr(torch.optim, refused, None) for refused in _REFUSED):
        raise RecipeError(
            "optimizer.name",
            f"{name} needs whole tensors, or its own place in DeepSpeed",
            "with engine zero: lars, sgd, an optimizer of yours that treats every element alone; or engine ddp",
        )
    if warn and not any(kind is getattr(torch.optim, known) for known in _ELEMENTWISE):
        log.warning(
            "%s works on flat pieces of the parameters under ZeRO: that is the same only if it treats every element "
            "alone, without norms or shapes of tensors",
            name,
        )
    return optimizer
