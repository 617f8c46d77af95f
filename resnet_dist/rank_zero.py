"""Do something on rank 0 for all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from resnet_dist.errors import TrainingError

T = TypeVar("T")


def run_on_rank_0(work: Callable[[], T], rank: int, world_size: int, errors: type[Exception] = TrainingError) -> T:
    """Call `work` on rank 0 and return its result on every worker. A collective.

    If `work` raises one of `errors`, every worker raises it, so that none waits for rank 0. Results and errors are
    pickled.
    """
    if world_size == 1:
        return work()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if rank == 0:
        try:
            outcome = [(work(), None)]
        except errors as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return cast(T, result)
