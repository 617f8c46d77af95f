"""A run without Ray: this process alone, or one of the processes that torchrun started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from launcher.config import load as configs
from launcher.config.schema import RunConfig, under_torchrun
from launcher.console import Progress
from launcher.exit_codes import ExitCode
from launcher.recovery import resume
from launcher.recovery import root_cause as fatal
from launcher.recovery.faults import rule_for
from launcher.recovery.history import read_skips
from launcher.recovery.policy import Skip
from launcher.run.directory import RunDirectory
from launcher.run.lease import Claim
from launcher.run.progress import micro_batches_before
from launcher.signals import StopSignals
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import notice_supervisor
from launcher.worker.train import train_worker


def run_local(
    config: RunConfig,
    run: RunDirectory,
    mode: resume.ResumeMode,
    progress: Progress,
    *,
    signals: StopSignals | None = None,
    watched: bool = False,
    records_failure: bool = True,
    skips: tuple[Skip, ...] = (),
    num_micro_batches: int | None = None,
    claim: Claim | None = None,
    on_begin: Callable[[int, resume.Start], None] = lambda attempt, start: None,
) -> tuple[ExitCode, dict[str, Any]]:
    """Train in this process; returns the exit code and the outcome. Errors are raised, after they are recorded.

    The environment's world size wins over `workers`, and the run says so. `watched`: a hang may end this process.
    `claim` is that of the run's lease. `records_failure`: whether attempts.jsonl is told of one here, or by whoever
    started this process. `on_begin` is told of the attempt's number and where it goes on, on rank 0.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not under_torchrun():
        rank, world_size, local_rank = 0, 1, 0
    other = ""
    if rank == 0 and not config.workers.least <= world_size <= config.workers.most:
        here = f"{world_size} worker{'s' * (world_size > 1)} here"
        other = f"{here} (the config asks for {config.workers}): same losses up to rounding"

    def listen(record: Mapping[str, Any]) -> None:
        if other and record.get("event") == "started":  # the recipe fits the data: no error makes this line idle
            progress.say(other)
        progress.record(record)

    stop = StopSignals() if signals is None else nullcontext(signals)
    with _process_group(config, rank, world_size), stop as signals:
        begun = _begin(config, run, mode, progress, rank, world_size, skips, num_micro_batches)
        start, attempt = begun.start, begun.attempt
        # Paths stay those of each process: only batch norm is what rank 0 has found of the run.
        config = dataclasses.replace(config, batch_norm=start.config.batch_norm)
        if rank == 0:
            on_begin(attempt, start)
        assignment = Assignment(
            rank,
            world_size,
            local_rank,
            attempt,
            start.checkpoint,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if under_torchrun() else 1,
            watched=watched,
            skips=begun.skips,
            num_micro_batches=begun.num_micro_batches,
            claim=claim,
        )
        stopped = signals
        supervisor = notice_supervisor(
            config,
            run,
            rank,
            attempt,
            stop_file=run.logs(attempt).stop_request if rank == 0 else None,
            stopped=lambda: stopped.stopped,
            listener=listen,
        )
        try:
            outcome = train_worker(config, assignment, supervisor)
        except BaseException as error:
            cause = fatal.true_cause(run, error) if world_size > 1 and isinstance(error, Exception) else error
            if rank == 0 and records_failure:
                code = rule_for(cause).exit_code if isinstance(cause, Exception) else ExitCode.INTERRUPTED
                run.end_attempt(attempt, code, f"{type(cause).__name__}: {cause}", None)
            if cause is not error:
                cause.gone = getattr(error, "gone", False)  # type: ignore[attr-defined]
                raise cause from error
            raise
        code = ExitCode.OK if outcome["finished"] else stopped.exit_code if stopped.stopped else ExitCode.STOPPED
        if rank == 0:
            how = "finished" if outcome["finished"] else "stopped on request"
            run.end_attempt(attempt, code, how, outcome["step"])
        return code, outcome


@dataclass(frozen=True)
class _Begun:
    """What rank 0 has found and begun."""

    start: resume.Start
    attempt: int
    skips: tuple[Skip, ...]
    num_micro_batches: int | None


def _begin(
    config: RunConfig,
    run: RunDirectory,
    mode: resume.ResumeMode,
    progress: Progress,
    rank: int,
    world_size: int,
    skips: tuple[Skip, ...],
    num_micro_batches: int | None,
) -> _Begun:
    """Rank 0 looks at the run directory and tells the others what it found, an error too.

    Where nobody restarts this process (torchrun), what earlier attempts skipped and learned is read here.
    """
    found: list[Any] = [None]
    if rank == 0:
        try:
            start = resume.choose(config, run, mode)
            run.write_config(configs.to_yaml(start.config))
            skips = skips or read_skips(run)
            num_micro_batches = num_micro_batches or micro_batches_before(run)
            facts = {"place": "local", "workers": world_size, "from_step": start.step}
            facts |= {"num_micro_batches": num_micro_batches}
            found = [_Begun(start, run.begin_attempt(facts), skips, num_micro_batches)]
            for line in start.notes:
                progress.say(line)
        except Exception as error:
            found = [error]
            if world_size == 1:
                raise
    if world_size > 1:
        dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    begun: _Begun = found[0]
    return begun


def _process_group(config: RunConfig, rank: int, world_size: int) -> Any:
    """The process group while it is entered; one that is up already (a notebook's) is left alone."""
    if dist.is_initialized():
        return nullcontext()
    return _Group("nccl" if config.resources.gpus_per_worker else "gloo", rank, world_size)


class _Group:
    def __init__(self, backend: str, rank: int, world_size: int) -> None:
        self._backend, self._rank, self._world_size = backend, rank, world_size

    def __enter__(self) -> None:
        if under_torchrun():
            if self._backend == "nccl":  # whose collectives of objects go through the current device
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            dist.init_process_group(self._backend)
        else:
            dist.init_process_group(self._backend, store=HashStore(), rank=0, world_size=1)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not getattr(error, "gone", False):  # the end of a group waits for a collective that hangs in it
            dist.destroy_process_group()
