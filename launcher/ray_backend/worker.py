"""The function that each of Ray Train's workers runs.

The driver imports this module, too: what needs torch is imported in the worker.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train

from launcher import streams
from launcher.config.schema import RunConfig
from launcher.ray_backend.handover import ATTEMPT, STAGE, Mailbox
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.portable import portable
from launcher.run.directory import RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import FileSupervisor


def train_function(loop_config: dict[str, Any]) -> AttemptResult:
    """Run one attempt on one worker. Raises `portable` errors.

    `loop_config` has the run's config and the mailbox, in which the driver leaves the attempt before Ray starts or
    restarts the workers.
    """
    streams.protect()
    try:
        return _train(loop_config)
    except BaseException as error:  # the user's code may raise SystemExit, too
        raise portable(error) from None


def _train(loop_config: dict[str, Any]) -> AttemptResult:
    from launcher.ray_backend.beside import RayEvaluations
    from launcher.worker.train import train_worker

    config: RunConfig = loop_config["config"]
    attempt: AttemptSpec = loop_config["box"].get(ATTEMPT)
    context = ray.train.get_context()
    assignment = Assignment(
        attempt,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        node_id=ray.get_runtime_context().get_node_id(),
    )
    supervisor = FileSupervisor(
        RunDirectory(Path(config.storage), config.name).logs(attempt.number),
        assignment.rank,
        node_id=assignment.node_id,
        notice_file=config.preemption.notice_file,
        listener=lambda record: _tell(loop_config["box"], record),
    )
    beside = functools.partial(RayEvaluations, config, RunDirectory(Path(config.storage), config.name))
    return train_worker(config, assignment, supervisor, beside)


def _tell(box: Mailbox, record: Mapping[str, Any]) -> None:
    """Leave the first stage of a worker for the driver, which reads the others in metrics.jsonl."""
    if record.get("event") == "stage" and "ended" not in record["detail"]:
        box.put(STAGE, record["detail"]["begins"])
