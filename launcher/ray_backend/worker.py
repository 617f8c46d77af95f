"""What runs in each of Ray Train's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import ray.train

from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import notice_supervisor
from launcher.worker.train import train_worker


def train_function(job: dict[str, Any]) -> dict[str, Any]:
    """One attempt on one worker.

    `job` holds config and box, in which the driver has left the rest: attempt, checkpoint (a path or None), skips,
    num_micro_batches, claim. It leaves another one there before Ray starts the workers again.
    """
    config: RunConfig = job["config"]
    job = job["box"].get("job")
    context = ray.train.get_context()
    run = RunDirectory(Path(config.storage), config.name)
    assignment = Assignment(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        attempt=job["attempt"],
        checkpoint=job["checkpoint"],
        node_id=ray.get_runtime_context().get_node_id(),
        skips=job["skips"],
        num_micro_batches=job["num_micro_batches"],
        claim=job["claim"],
    )
    # Rank 0 alone looks at the shared storage: one worker's wish is enough.
    watched = run.logs(job["attempt"]).stop_request if assignment.rank == 0 else None
    supervisor = notice_supervisor(config, run, assignment.rank, job["attempt"], assignment.node_id, stop_file=watched)
    return train_worker(config, assignment, supervisor)
