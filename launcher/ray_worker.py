"""What runs in each of Ray Train's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.train

from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory
from launcher.worker import Assignment, FileSupervisor, stop_file, train_worker


def train_function(job: dict[str, Any]) -> dict[str, Any]:
    """One attempt on one worker; `job` holds config, attempt and checkpoint (a path or None)."""
    config: RunConfig = job["config"]
    context = ray.train.get_context()
    run = RunDirectory(Path(config.storage), config.name)
    assignment = Assignment(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        attempt=job["attempt"],
        checkpoint=job["checkpoint"],
    )
    # Rank 0 alone looks at the shared storage: one worker's wish is enough.
    watched = stop_file(run, job["attempt"]) if assignment.rank == 0 else None
    return train_worker(config, assignment, FileSupervisor(watched))
