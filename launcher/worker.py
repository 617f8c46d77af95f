"""One worker's attempt at a run, wherever it was started: the process group is up, the rest happens here."""

from __future__ import annotations

import logging
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory, environment
from resnet_dist.build import Bookkeeping, Worker, build
from resnet_dist.sink import MetricsFile, NoSink, Sink
from resnet_dist.supervisor import Request


@dataclass(frozen=True)
class Assignment:
    """Which worker this is, in which attempt, and where it goes on."""

    rank: int
    world_size: int
    local_rank: int
    attempt: int
    checkpoint: Path | None


class FileSupervisor:
    """Obeys a stop file that a driver writes, and this process's own signals; passes metrics to `listener`."""

    def __init__(
        self,
        stop_file: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
        listener: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self._stop_file, self._stopped, self._listener = stop_file, stopped, listener

    def request(self) -> Request:
        """Stop, once a signal came or the file is there."""
        asked = self._stopped() or (self._stop_file is not None and self._stop_file.exists())
        return Request.STOP if asked else Request.CONTINUE

    def checkpoint(self, path: str, step: int) -> None:
        """The checkpoint is on the shared storage, where the next attempt looks for it."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Hand a record to whoever shows it."""
        self._listener(record)


class _Told:
    """A sink that also tells the supervisor."""

    def __init__(self, sink: Sink, supervisor: FileSupervisor) -> None:
        self._sink, self._supervisor = sink, supervisor

    def write(self, record: Mapping[str, Any]) -> None:
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


def stop_file(run: RunDirectory, attempt: int) -> Path:
    """The file whose existence asks an attempt to save and stop."""
    return run.logs(attempt) / "stop"


def train_worker(config: RunConfig, assignment: Assignment, supervisor: FileSupervisor) -> dict[str, Any]:
    """Train until the end or until asked to stop; returns the outcome as plain data.

    Keys: step, finished, time_s, and where the last step was evaluated top1, top5, loss, num_samples. The attempt's log
    of this rank gets everything that is logged, and the traceback of what is raised.
    """
    run = RunDirectory(Path(config.storage), config.name)
    handler = _log_to(run.log(assignment.attempt, assignment.rank))
    log = logging.getLogger(__name__)
    log.info("rank %d of %d on %s", assignment.rank, assignment.world_size, socket.gethostname())
    try:
        return _train(config, assignment, supervisor, run)
    except BaseException:
        log.error("ended by\n%s", traceback.format_exc())
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _train(config: RunConfig, assignment: Assignment, supervisor: FileSupervisor, run: RunDirectory) -> dict[str, Any]:
    started = time.perf_counter()
    sink: Sink = NoSink()
    if assignment.rank == 0:
        run.write_environment(environment())
        sink = _Told(MetricsFile(run.metrics, run.tensorboard if config.log.tensorboard else None), supervisor)
    # The CPUs of all workers together stay what the config says, however many workers share them.
    num_threads = max(1, config.resources.cpus_per_worker * config.workers // assignment.world_size)
    worker = Worker(assignment.rank, assignment.world_size, device_of(config, assignment.local_rank), num_threads)
    bookkeeping = Bookkeeping(
        checkpoints=run.checkpoints,
        index=run.index,
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        log_every=config.log.every_steps,
    )
    try:
        trainer = build(config.recipe(), worker, bookkeeping, sink, supervisor, assignment.checkpoint)
        outcome = trainer.fit()
    finally:
        sink.close()
    result: dict[str, Any] = {"step": outcome.step, "finished": outcome.finished}
    result["time_s"] = time.perf_counter() - started
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        result |= {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
        result["num_samples"] = evaluation.num_samples
    return result


def _log_to(file: Path) -> logging.Handler:
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
