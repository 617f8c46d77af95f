"""Parameters that are sharded over workers: where the shards are, and norms of whole parameters.

ZeRO concatenates the parameters of a group to a flat tensor and gives every worker an equal part of it, its partition.
An optimizer that computes norms over a partition trains differently, without an error. Here it gets the shards of
single parameters, and norms that are summed over workers with one small all-reduce per group. Needs torch only.
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
    """One worker's partition of a group: splits flat tensors into shards, and sums norms over workers."""

    def __init__(self, table: PartitionTable, all_reduce: AllReduce) -> None:
        self.table = table
        self._all_reduce = all_reduce
        self._owners: Tensor | None = None

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of `flat` [partition_size], one per shard."""
        return [flat[shard.in_partition] for shard in self.table.shards]

    def squared_norms(self, *flats: Tensor) -> Tensor:
        """Return the sums of squares of the whole parameters, float64 [len(flats), parameters]. A collective.

        Each of `flats` is [partition_size]: weights, gradients, or other tensors that an optimizer takes norms of.
        """
        sums = torch.zeros((len(flats), len(self.table.numels)), dtype=torch.float64, device=flats[0].device)
        if self.table.shards:
            own = squared_norms([shard for flat in flats for shard in self.split(flat)])
            sums[:, self._owners_on(sums.device)] = own.view(len(flats), -1)
        self._all_reduce(sums)
        return sums

    def per_shard(self, values: Tensor) -> Tensor:
        """Return, of `values` [parameters], the one of each shard's parameter: [shards]."""
        return values[self._owners_on(values.device)]

    def _owners_on(self, device: torch.device) -> Tensor:
        # cached: otherwise it would be copied from the host at every step
        if self._owners is None or self._owners.device != device:
            owners = [shard.parameter for shard in self.table.shards]
            self._owners = torch.tensor(owners, dtype=torch.int64, device=device)
        return self._owners


class PartitionedLars(Lars):
    """LARS on flat partitions: every group has one parameter, this worker's partition, bound to its `Partition`.

    The arithmetic is that of `Lars`, on shards. A step is a collective: one all-reduce of two numbers per parameter for
    each group with `decay`, none for the others. Groups may be stepped one by one.
    """

    def __init__(self, optimizer: Lars) -> None:
        """Take over the groups and hyperparameters of `optimizer`, which has not made a step yet."""
        assert not optimizer.state
        super().__init__([dict(group) for group in optimizer.param_groups])
        self._partitions: dict[Tensor, Partition] = {}

    def bind(self, flat: Tensor, partition: Partition) -> None:
        """Set the partition of `flat`, a group's only parameter. Required for every group before the first step."""
        assert flat.numel() == partition.table.partition_size
        self._partitions[flat] = partition

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        [flat] = weights
        assert flat.grad is not None
        partition = self._partitions[flat]
        ratios = None
        if group["decay"]:
            norms = partition.squared_norms(flat.detach(), flat.grad).sqrt()
            ratios = partition.per_shard(
                trust_ratios(
                    norms[0],
                    norms[1],
                    weight_decay=group["weight_decay"],
                    trust_coefficient=group["trust_coefficient"],
                    epsilon=group["epsilon"],
                )
            )
        momentum = self._momentum_of(flat)  # even if all elements are padding: every worker has the same states
        if not partition.table.shards:
            return
        update_weights(
            partition.split(flat),
            partition.split(flat.grad),
            partition.split(momentum),
            ratios,
            learning_rate=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"] if group["decay"] else 0.0,
            lr_in_momentum=group["lr_in_momentum"],
        )


def for_partitions(optimizer: torch.optim.Optimizer, *, warn: bool) -> torch.optim.Optimizer:
    """Return an optimizer that is correct on flat partitions: LARS in its partitioned form, others as they are.

    Raises RecipeError for optimizers that are known not to be; a user's own is named in a warning.
    """
    if type(optimizer) is Lars:
        return PartitionedLars(optimizer)
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(optimizer, Lars) or any(kind is getattr(torch.optim, refused, None) for refused in _REFUSED):
        raise RecipeError(
            "optimizer.name",
            f"{name} needs whole tensors, or is replaced by DeepSpeed with its own",
            "with engine zero: lars, sgd, or an optimizer of yours that is elementwise; or engine ddp",
        )
    if warn and not any(kind is getattr(torch.optim, known) for known in _ELEMENTWISE):
        log.warning(
            "%s works on flat shards of the parameters under ZeRO: the result is the same only if it is elementwise, "
            "without norms or shapes of tensors",
            name,
        )
    return optimizer
