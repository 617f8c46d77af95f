"""Training in one worker of an attempt, the same under Ray, torchrun and in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from launcher.checks.network import INTERFACE_VARIABLE
from launcher.config.schema import RunConfig, mirror_address, with_micro_batches
from launcher.errors import CollectiveFault
from launcher.recovery.attempt import AttemptResult
from launcher.recovery.faults import translate_error
from launcher.recovery.policy import Skip
from launcher.recovery.portable import portable, traceback_of
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.preflight import check_attempt
from launcher.worker.sinks import sink_of
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.watchdog import Watchdog
from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.recipe.batch_layout import stream_step
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.telemetry.metrics_file import NoSink, Sink
from resnet_dist.telemetry.sinks import closing
from resnet_dist.telemetry.stages import NoStages, Stages
from resnet_dist.training.beside import BesideOptions, EvaluationHost
from resnet_dist.training.survivor import MemoryState

log = logging.getLogger(__name__)


class _AbandonableLiveness(Liveness):
    """Raises CollectiveFault at a report of progress once the attempt has failed on another worker.

    In a step, the collectives fail. An evaluation has none before its end, and may last longer than a parent waits.
    """

    def __init__(self, abandoned: Callable[[], bool]) -> None:
        super().__init__()
        self._abandoned = abandoned

    def beat(self) -> None:
        super().beat()
        if self._abandoned():
            raise CollectiveFault("the attempt has failed on another worker")


def device_of(config: RunConfig, local_rank: int) -> torch.device:
    """The device of a worker: its own GPU, or the CPU."""
    if config.resources.gpus_per_worker == 0:
        return torch.device("cpu")
    # Ray shows each worker its own GPU only; torchrun shows all of them.
    return torch.device("cuda", local_rank % max(torch.cuda.device_count(), 1))


def train_worker(
    config: RunConfig,
    assignment: Assignment,
    supervisor: FileSupervisor,
    beside: Callable[[], EvaluationHost] | None = None,
    memory: MemoryState | None = None,
    keep: Callable[[CheckpointContent], None] | None = None,
    abandoned: Callable[[], bool] = lambda: False,
) -> AttemptResult:
    """Train until all steps are done, or until asked to stop. The process group must be initialized.

    `beside` starts what evaluates beside training, on rank 0 and under `evaluate.beside`. With `memory`, the same on
    every worker but for its content, the attempt starts from it and not from its checkpoint. If training fails, `keep`
    gets the state after the last completed step before the error is raised, unless this worker does not have it whole.
    `abandoned`: whether the attempt has failed on another worker.

    The log of this rank receives all log records and the traceback of an error. Hardware faults are raised as
    DeviceFault or CollectiveFault. If this process belongs to the run, all errors are `portable`: others become
    UserCodeError.
    """
    config = with_micro_batches(config, assignment.attempt.num_micro_batches)
    run = RunDirectory(Path(config.storage), config.name)
    handler = _log_to(run.logs(assignment.attempt.number).log(assignment.rank))
    host, liveness = socket.gethostname(), _AbandonableLiveness(abandoned)
    stages = Stages(supervisor.metrics, assignment.attempt.first_step) if assignment.rank == 0 else NoStages()
    log.info("rank %d of %d on %s", assignment.rank, assignment.world_size, host)
    if interface := os.environ.get(INTERFACE_VARIABLE):
        log.info("gloo uses the network interface %s (%s)", interface, INTERFACE_VARIABLE)
    try:
        if config.faults.preflight:
            stages.begin("checking the workers")
            check_attempt(config, assignment, device_of(config, assignment.local_rank))
        with _watchdog(config.faults.hang_timeout_s, assignment, run, liveness):
            return _train(config, assignment, supervisor, run, liveness, stages, beside, memory, keep)
    except BaseException as error:
        log.error("failed with\n%s", traceback_of(error))
        translated = translate_error(error, assignment.rank, host)
        if assignment.watched:
            translated = portable(translated)
        if translated is error:
            raise
        raise translated from error
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _watchdog(
    hang_timeout_s: float, assignment: Assignment, run: RunDirectory, liveness: Liveness
) -> contextlib.AbstractContextManager[object]:
    if not assignment.watched:
        return contextlib.nullcontext()
    number = assignment.attempt.number
    return Watchdog(
        liveness,
        run.logs(number),
        assignment.rank,
        hang_timeout_s=hang_timeout_s,
        next_logs=run.logs(number + 1),
        node_id=assignment.node_id,
        monitors=not assignment.supervised,
    )


def _train(
    config: RunConfig,
    assignment: Assignment,
    supervisor: FileSupervisor,
    run: RunDirectory,
    liveness: Liveness,
    stages: Stages,
    beside: Callable[[], EvaluationHost] | None,
    memory: MemoryState | None,
    keep: Callable[[CheckpointContent], None] | None,
) -> AttemptResult:
    started, attempt = time.perf_counter(), assignment.attempt
    sink: Sink = NoSink()
    show_images = None
    if assignment.rank == 0:
        sink, show_images = sink_of(config, run, attempt.number, supervisor)
        stages.write_to(sink.write)
    # The total number of CPUs stays what the config requests, however many workers share them.
    num_threads = max(1, config.resources.cpus_per_worker * config.workers.most // assignment.world_size)
    worker = Worker(
        assignment.rank,
        assignment.world_size,
        device_of(config, assignment.local_rank),
        num_threads,
        config.workers.most,
    )
    saving, patience_s = config.checkpoint, heartbeats.LONG * config.faults.hang_timeout_s
    options = RunOptions(
        checkpoint=CheckpointOptions(
            folder=run.checkpoints,
            retention=Retention(saving.keep, saving.keep_best, keep_every=saving.keep_every),
            mirror=mirror_address(config),
            max_failures=saving.max_failures,
            check_lease=(lambda: None) if attempt.claim is None else attempt.claim.check,
        ),
        index=run.index,
        shared_index=run.shared_index,
        checkpoint_every=saving.every,
        log_every=config.log.every_steps,
        layers_every=config.log.layers_every_steps,
        skipped=skipped_steps(attempt.skips, config.batch.size),
        metrics=run.metrics,
        profile=config.log.profiled_steps(),
        profiles=run.profile(attempt.number),
        num_images=config.log.tensorboard_images,
        show_images=show_images,
        beside=None if beside is None else BesideOptions(beside, run.pending_evaluations, patience_s),
    )
    with closing(sink):
        resume = attempt.checkpoint if memory is None else memory
        trainer = build(config.recipe(), worker, options, sink, supervisor, resume, liveness, stages)
        try:
            outcome = trainer.fit()
        except Exception:
            if keep is not None and (state := trainer.state()) is not None:
                log.info("keeps the state after step %d in memory", state.step)
                keep(state)
            raise
    measured: dict[str, Any] = {"time_s": time.perf_counter() - started}
    if outcome.times is not None:
        measured |= dataclasses.asdict(outcome.times)
    if outcome.evaluation is not None:
        values = outcome.evaluation.record()
        measured |= {name: value for name, value in values.items() if name != "weights"}
    if trainer.parts.bad is not None:
        measured |= trainer.parts.bad.summary()
    if outcome.reached is not None:
        epoch = outcome.step * trainer.timetable.batch_size / trainer.timetable.num_samples
        measured |= {"target_reached": outcome.reached, "epoch": epoch}
    return AttemptResult(outcome.step, outcome.finished, measured)


def skipped_steps(skips: Sequence[Skip], batch_size: int) -> tuple[tuple[int, int], ...]:
    """The skipped steps of the stream as ascending [first, end) pairs; `skips` are in chronological order.

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
        handler = _RankLog(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    if root.level > logging.INFO or root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler


class _RankLog(logging.FileHandler):
    """The log of a rank. What a full disk does not accept is missing in it; the first such error is reported."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - a method of logging
        """Report the first error."""
        if not self._failed:
            self._failed = True
            with contextlib.suppress(OSError, ValueError):
                print(f"warning: cannot write {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            super().close()
