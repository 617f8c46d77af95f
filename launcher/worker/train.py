"""One worker's attempt at a run, wherever it was started: the process group is up, the rest happens here."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from launcher.config.schema import RunConfig, mirror_address, with_micro_batches
from launcher.recovery.faults import in_our_words
from launcher.recovery.policy import Skip
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.run.environment import environment
from launcher.worker.assignment import Assignment
from launcher.worker.preflight import check_attempt
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.watchdog import Watchdog
from resnet_dist.build import Bookkeeping, Worker, build
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.recipe.batch_layout import stream_step
from resnet_dist.telemetry.liveness import Pulse
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink, Sink
from resnet_dist.training.device import pin_to_cpus

log = logging.getLogger(__name__)


class _Told:
    """A sink that also tells the supervisor, and knows which hosts the ranks are on."""

    def __init__(self, sink: Sink, supervisor: FileSupervisor, logs: AttemptLogs) -> None:
        self._sink, self._supervisor, self._logs = sink, supervisor, logs

    def write(self, record: Mapping[str, Any]) -> None:
        if record.get("event") == "straggler":
            beat = heartbeats.read(self._logs).get(record["detail"]["rank"])
            node = {"host": beat.host, "node_id": beat.node_id} if beat else {"host": None, "node_id": None}
            record = {**record, "detail": {**record["detail"], **node}}
        self._sink.write(record)
        self._supervisor.metrics(record)

    def close(self) -> None:
        self._sink.close()


def device_of(config: RunConfig, local_rank: int) -> torch.device:
    """This worker's device: a GPU of its own, or the CPU."""
    if config.resources.gpus_per_worker == 0:
        return torch.device("cpu")
    # Ray shows each worker its own GPU only; torchrun shows all of them.
    return torch.device("cuda", local_rank % max(torch.cuda.device_count(), 1))


def train_worker(config: RunConfig, assignment: Assignment, supervisor: FileSupervisor) -> dict[str, Any]:
    """Train until the end or until asked to stop; returns the outcome as plain data.

    Keys: step, finished, time_s, and where the last step was evaluated top1, top5, loss, num_samples, num_nonfinite.
    The attempt's log of this rank gets everything that is logged, and the traceback of what is raised. A fault of the
    machines is raised as one of our errors.
    """
    config = with_micro_batches(config, assignment.num_micro_batches)
    run = RunDirectory(Path(config.storage), config.name)
    handler = _log_to(run.logs(assignment.attempt).log(assignment.rank))
    host, pulse = socket.gethostname(), Pulse()
    log.info("rank %d of %d on %s", assignment.rank, assignment.world_size, host)
    try:
        if config.faults.preflight:
            check_attempt(config, assignment, device_of(config, assignment.local_rank))
        with _watchdog(config, assignment, run, pulse):
            return _train(config, assignment, supervisor, run, pulse)
    except BaseException as error:
        log.error("ended by\n%s", traceback.format_exc())
        ours = in_our_words(error, assignment.rank, host)
        if ours is error:
            raise
        raise ours from error
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _watchdog(
    config: RunConfig, assignment: Assignment, run: RunDirectory, pulse: Pulse
) -> contextlib.AbstractContextManager[object]:
    if not assignment.watched:
        return contextlib.nullcontext()
    return Watchdog(
        pulse,
        run.logs(assignment.attempt),
        assignment.rank,
        hang_timeout_s=config.faults.hang_timeout_s,
        next_logs=run.logs(assignment.attempt + 1),
        node_id=assignment.node_id,
    )


def _train(
    config: RunConfig, assignment: Assignment, supervisor: FileSupervisor, run: RunDirectory, pulse: Pulse
) -> dict[str, Any]:
    started = time.perf_counter()
    sink: Sink = NoSink()
    if assignment.rank == 0:
        facts = environment()
        run.write_environment(facts)
        ours = run.logs(assignment.attempt).environment  # incidents compare attempts
        with storage_errors(ours):
            ours.write_text(json.dumps(facts))
        metrics = MetricsFile(run.metrics, run.tensorboard if config.log.tensorboard else None)
        sink = _Told(metrics, supervisor, run.logs(assignment.attempt))
    # The CPUs of all workers together stay what the config says, however many workers share them.
    num_threads = max(1, config.resources.cpus_per_worker * config.workers.most // assignment.world_size)
    if config.speed.cpu_affinity:
        cpus = pin_to_cpus(assignment.local_rank, assignment.local_world_size, num_threads)
        log.info("CPUs of this worker: %s", cpus)
    worker = Worker(
        assignment.rank,
        assignment.world_size,
        device_of(config, assignment.local_rank),
        num_threads,
        config.workers.most,
    )
    bookkeeping = Bookkeeping(
        checkpoints=run.checkpoints,
        index=run.index,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        log_every=config.log.every_steps,
        keep_best=config.checkpoint.keep_best,
        keep_every=config.checkpoint.keep_every,
        mirror=mirror_address(config),
        max_save_failures=config.checkpoint.max_failures,
        still_ours=(lambda: None) if assignment.claim is None else assignment.claim.check,
        skipped=skipped_steps(assignment.skips, config.batch.size),
        profile=config.log.profiled_steps(),
        profiles=run.profile(assignment.attempt),
    )
    try:
        trainer = build(config.recipe(), worker, bookkeeping, sink, supervisor, assignment.checkpoint, pulse)
        outcome = trainer.fit()
    finally:
        sink.close()
    result: dict[str, Any] = {"step": outcome.step, "finished": outcome.finished}
    result["time_s"] = time.perf_counter() - started
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        result |= {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
        result |= {"num_samples": evaluation.num_samples, "num_nonfinite": evaluation.num_nonfinite}
    return result


def skipped_steps(skips: Sequence[Skip], batch_size: int) -> tuple[tuple[int, int], ...]:
    """The steps of the stream that are left out, as [first, end), ascending; `skips` are in the order they came.

    >>> skipped_steps([Skip(step=4, samples=20), Skip(step=4, samples=10)], batch_size=10)
    ((4, 6), (6, 7))
    """
    runs: list[range] = []
    for skip in skips:
        start = stream_step(skip.step, runs)
        runs = sorted([*runs, range(start, start + skip.samples // batch_size)], key=lambda run: run.start)
    return tuple((run.start, run.stop) for run in runs)


def _log_to(file: Path) -> logging.Handler:
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    if root.level > logging.INFO or root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.stdout.flush()
    return handler
