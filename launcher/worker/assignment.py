"""Which worker a process is, and where it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.recovery.policy import Skip
from launcher.run.lease import Claim


@dataclass(frozen=True)
class Assignment:
    """Which worker this is, in which attempt, and where it goes on."""

    rank: int
    world_size: int
    local_rank: int
    attempt: int
    checkpoint: Path | None
    node_id: str | None = None  # Ray's name of the node
    watched: bool = True  # whether a hang may end this process: not where it is somebody's notebook
    local_world_size: int = 1  # workers of this run on this node
    skips: tuple[Skip, ...] = ()
    num_micro_batches: int | None = None  # instead of the config's
    claim: Claim | None = None  # on the run directory: looked at before a checkpoint gets its name
