"""Parameters that are sharded over workers: where the shards are, and norms of whole parameters.

ZeRO concatenates the parameters of a group to a flat tensor and gives every worker an equal part of it, its partition.
An optimizer that computes norms over a partition trains differently, without an error. Here LARS and LAMB get the
shards of single parameters, and norms that are summed over workers with one small all-reduce per group. Needs torch
only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.optim.lamb import Lamb
from resnet_dist.optim.lars import Lars
from resnet_dist.optim.layerwise import LayerwiseOptimizer, squared_norms

log = logging.getLogger(__name__)

# Optimizers of torch whose update of an element depends on no other element, so that they work on shards ...
_ELEMENTWISE = ("Adadelta", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
# ... and those that do not. Adagrad does, but DeepSpeed replaces it with its own, which ignores parameter groups.
_REFUSED = ("Adafactor", "Adagrad", "LBFGS", "Muon", "SparseAdam")

AllReduce = Callable[[Tensor], object]  # sums its argument over the workers, in place


class PartitionError(ValueError):
    """Shards that do not make up the parameters."""


@dataclass(frozen=True)
class ParameterShard:
    """Consecutive elements of one parameter, and where a worker's flat partition holds them."""

    parameter: int  # its number in the group
    in_partition: slice
    in_parameter: slice  # of the flattened parameter


@dataclass(frozen=True)
class PartitionTable:
    """Which elements of which parameters one worker's partition of a group holds. Other elements are padding."""

    numels: tuple[int, ...]  # of the group's parameters
    offsets: tuple[int, ...]  # of the parameters in the group's whole flat tensor
    partition_size: int  # elements, the same on every worker
    shards: tuple[ParameterShard, ...]  # at most one per parameter


def partition_table(numels: Sequence[int], offsets: Sequence[int], partition_size: int, rank: int) -> PartitionTable:
    """Return the table of worker `rank`, whose partition begins at element rank × partition_size of the flat tensor.

    >>> for shard in partition_table(numels=[5, 3], offsets=[0, 5], partition_size=6, rank=1).shards:
    ...     print(shard.parameter, shard.in_partition, shard.in_parameter)
    1 slice(0, 2, None) slice(1, 3, None)
    """
    low, shards = rank * partition_size, []
    for number, (numel, offset) in enumerate(zip(numels, offsets, strict=True)):
        start, stop = max(offset, low), min(offset + numel, low + partition_size)
        if start < stop:
            shards.append(ParameterShard(number, slice(start - low, stop - low), slice(start - offset, stop - offset)))
    return PartitionTable(tuple(numels), tuple(offsets), partition_size, tuple(shards))


def check_covered(tables: Sequence[PartitionTable]) -> None:
    """Raise PartitionError unless the workers' `tables`, by rank, hold every element of every parameter once."""
    if len({(table.numels, table.offsets, table.partition_size) for table in tables}) > 1:
        raise PartitionError("the workers do not agree on the order and sizes of the parameters")
    table, end = tables[0], 0
    for number, (offset, numel) in enumerate(zip(table.offsets, table.numels, strict=True)):
        if offset < end:
            raise PartitionError(f"parameter {number} begins at element {offset}, but the one before ends at {end}")
        end = offset + numel
    if end > len(tables) * table.partition_size:
        partitions = f"{len(tables)} partitions of {table.partition_size}"
        raise PartitionError(f"the parameters end at element {end}, beyond the {partitions} elements")


class Partition:
    """One worker's partition of a group: splits flat tensors into shards, and sums norms over workers.

    The `resnet_dist.optim.layerwise.Layers` of a flat partition.
    """

    def __init__(self, table: PartitionTable, all_reduce: AllReduce) -> None:
        self.table = table
        self._all_reduce = all_reduce
        self._owners: Tensor | None = None

    def split(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return views of the only tensor in `tensors`, [partition_size], one per shard."""
        [flat] = tensors
        return [flat.detach()[shard.in_partition] for shard in self.table.shards]

    def squared_norms(self, *tensors: list[Tensor]) -> Tensor:
        """Return the sums of squares of the whole parameters, float64 [len(tensors), parameters]. A collective.

        Each of `tensors` holds one tensor, [partition_size]: weights, gradients, or others that an optimizer takes
        norms of.
        """
        sums = torch.zeros((len(tensors), len(self.table.numels)), dtype=torch.float64, device=tensors[0][0].device)
        if self.table.shards:
            own = squared_norms([shard for of_one_kind in tensors for shard in self.split(of_one_kind)])
            sums[:, self._owners_on(sums.device)] = own.view(len(tensors), -1)
        self._all_reduce(sums)
        return sums

    def per_piece(self, values: Tensor) -> Tensor:
        """Return, of `values` [parameters], the one of each shard's parameter: [shards]."""
        return values[self._owners_on(values.device)]

    def _owners_on(self, device: torch.device) -> Tensor:
        # cached: otherwise it would be copied from the host at every step
        if self._owners is None or self._owners.device != device:
            owners = [shard.parameter for shard in self.table.shards]
            self._owners = torch.tensor(owners, dtype=torch.int64, device=device)
        return self._owners


def check_partitionable(optimizer: torch.optim.Optimizer, *, warn: bool) -> None:
    """Check that an optimizer is correct on flat partitions. LARS and LAMB are once they are bound to a `Partition`.

    Raises RecipeError for optimizers that are known not to be; a user's own is named in a warning.
    """
    kind = type(optimizer)
    if kind in (Lars, Lamb):
        return
    name = f"{kind.__module__}.{kind.__qualname__}"
    is_refused = any(kind is getattr(torch.optim, refused, None) for refused in _REFUSED)
    if isinstance(optimizer, LayerwiseOptimizer) or is_refused:
        raise RecipeError(
            "optimizer.name",
            f"{name} needs whole tensors, or is replaced by DeepSpeed with its own",
            "with engine zero: sgd, lars, lamb, adamw, or an optimizer of yours that is elementwise; or engine ddp",
        )
    if warn and not any(kind is getattr(torch.optim, known) for known in _ELEMENTWISE):
        log.warning(
            "%s works on flat shards of the parameters under ZeRO: the result is the same only if it is elementwise, "
            "without norms or shapes of tensors",
            name,
        )
