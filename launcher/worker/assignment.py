"""The place of a worker in an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.recovery.attempt import AttemptSpec


@dataclass(frozen=True)
class Assignment:
    """One worker of an attempt."""

    attempt: AttemptSpec
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int = 1  # workers of this run on this node
    node_id: str | None = None  # Ray's id of the node
    supervised: bool = False  # whether a parent on this host watches all workers: none ends itself for another one
    watched: bool = True  # whether a watchdog may end this process after a hang: not in a notebook
