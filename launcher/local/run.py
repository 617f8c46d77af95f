"""A run without Ray: in this process, or in the processes that torchrun started."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, HashStore

from launcher.checks.finding import require
from launcher.checks.network import INTERFACE_VARIABLE, select_interface
from launcher.config import load as configs
from launcher.config.schema import Ranks, RunConfig, Workers, ranks, under_torchrun
from launcher.console import Progress
from launcher.errors import CollectiveFault, UsageError
from launcher.exit_codes import ExitCode
from launcher.formatting import count
from launcher.local.beside import LocalEvaluations
from launcher.recovery import resume, root_cause
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.recovery.faults import rule_for
from launcher.recovery.history import read_skips
from launcher.recovery.portable import message_of
from launcher.run.directory import RunDirectory
from launcher.run.lease import Claim
from launcher.run.progress import newest_step, recorded_num_micro_batches
from launcher.signals import StopSignals
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import train_worker
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.recipe.schema import BatchNormRecipe
from resnet_dist.training.survivor import MemoryState

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"  # the interface for workers that are all on this machine

_JOIN_POLL_S = 0.02  # how often a worker looks whether the others have joined


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Parent:
    """A process that started this one and the other workers: it records failures and starts the next attempt.

    `rendezvous`: the path of the file through which several workers find each other. `memory`: what the attempt starts
    from in place of a checkpoint. `keep` takes the state after the last completed step of a failed attempt. `abandoned`
    says whether the attempt has failed on another worker.
    """

    num_micro_batches: int | None
    on_begin: Callable[[AttemptSpec], None]
    ranks: Ranks = field(default_factory=Ranks)
    rendezvous: str = ""
    memory: MemoryState | None = None
    keep: Callable[[CheckpointContent], None] | None = None
    abandoned: Callable[[], bool] = _never


def run_local(
    config: RunConfig,
    run: RunDirectory,
    mode: ResumeMode,
    progress: Progress,
    stop: StopSignals,
    *,
    watched: bool = False,
    claim: Claim | None = None,
    parent: Parent | None = None,
) -> tuple[ExitCode, AttemptResult]:
    """Train in this process; returns the exit code and the result. Errors are raised, and recorded without a `parent`.

    A signal of `stop` ends the training at the next step, or before it begins if this is the only worker. The world
    size of the environment overrides `workers`, with a message. `watched`: this process belongs to the run, and a
    watchdog may end it after a hang. `claim` is that of the run's lease.
    """
    own = ranks() if parent is None else parent.ranks
    rank, world_size, local_rank, local_world_size = dataclasses.astuple(own)
    if stop.stopped and world_size == 1:
        return stop.exit_code, AttemptResult(newest_step(run), finished=False, trained=False)
    if rank == 0 and world_size > 1:
        progress.stage(f"joining the process group of {count(world_size, 'worker')}")
    use_gpu, store = config.resources.gpus_per_worker > 0, None
    if parent is not None and parent.rendezvous:
        if use_gpu:
            _require_gpus(world_size)
        store = _joined(parent)
    with _process_group(use_gpu, own, store):
        spec, batch_norm = run_on_rank_0(
            lambda: _begin(config, run, mode, progress, world_size, parent), rank, world_size, errors=Exception
        )
        # Each process keeps its own paths and claim.
        spec = dataclasses.replace(spec, claim=claim)
        config = dataclasses.replace(config, batch_norm=batch_norm)
        if parent is not None:
            parent.on_begin(spec)
        supervised = parent is not None
        assignment = Assignment(
            spec, rank, world_size, local_rank, local_world_size, watched=watched, supervised=supervised
        )
        supervisor = FileSupervisor(
            run.logs(spec.number),
            rank,
            notice_file=config.preemption.notice_file,
            signalled=lambda: stop.stopped,
            listener=_listener(config, progress, world_size),
        )
        try:
            beside = functools.partial(LocalEvaluations, config, run, run.logs(spec.number), local_world_size)
            memory, keep, abandoned = None, None, _never
            if parent is not None:
                memory, keep, abandoned = parent.memory, parent.keep, parent.abandoned
            result = train_worker(config, assignment, supervisor, beside, memory=memory, keep=keep, abandoned=abandoned)
        except BaseException as error:
            cause = error
            if world_size > 1 and parent is None and isinstance(error, Exception):
                cause = root_cause.find_root_cause(run, error)
            if rank == 0 and parent is None and not isinstance(error, KeyboardInterrupt):
                code = rule_for(cause).exit_code if isinstance(cause, Exception) else ExitCode.INTERRUPTED
                run.end_attempt(spec.number, code, f"{type(cause).__name__}: {message_of(cause)}", None)
            if cause is not error:
                cause.skip_shutdown = getattr(error, "skip_shutdown", False)  # type: ignore[attr-defined]
                raise cause from error
            raise
        code = ExitCode.OK if result.finished else stop.exit_code if stop.stopped else ExitCode.STOPPED
        if rank == 0:
            cause_of_end = "finished" if result.finished else "stopped on request"
            run.end_attempt(spec.number, code, cause_of_end, result.step)
        return code, result


def _begin(
    config: RunConfig,
    run: RunDirectory,
    mode: ResumeMode,
    progress: Progress,
    world_size: int,
    parent: Parent | None,
) -> tuple[AttemptSpec, BatchNormRecipe]:
    """Record the start of an attempt, on rank 0; returns its spec, and the batch norm settings that the run keeps."""
    start = resume.choose(config, run, mode)
    memory = None if parent is None or parent.memory is None else (parent.memory.step, parent.memory.rank)
    if memory is not None:
        start = start.from_memory(run, *memory)
    run.write_config(configs.to_yaml(start.config))
    num_micro_batches = parent.num_micro_batches if parent is not None else None
    num_micro_batches = num_micro_batches or recorded_num_micro_batches(run)
    facts: dict[str, object] = {
        "place": "local",
        "workers": world_size,
        "from_step": start.step,
        "num_micro_batches": num_micro_batches,
    }
    if memory is not None:
        facts["from_memory_of_rank"] = memory[1]
    if start.changes:
        facts["notes"] = start.changes
    number, skips = run.begin_attempt(facts), read_skips(run)
    spec = AttemptSpec(number, start.step, start.checkpoint, skips, num_micro_batches, memory=memory)
    for line in start.notes:
        progress.print(line)
    return spec, start.config.batch_norm


def _listener(config: RunConfig, progress: Progress, world_size: int) -> Callable[[Mapping[str, object]], None]:
    """Shows records, and first of all a world size that the config does not have."""
    here = config.resources.local_workers
    workers = Workers(here, here) if here > 1 else config.workers
    if workers.least <= world_size <= workers.most:
        return progress.record
    note = f"{count(world_size, 'worker')} here (the config has {workers}): same losses up to rounding"

    def listen(record: Mapping[str, object]) -> None:
        if record.get("event") == "started":  # not earlier: the config may still turn out to be invalid
            progress.print(note)
        progress.record(record)

    return listen


def _require_gpus(num: int) -> None:
    """Raise UsageError if this machine shows fewer GPUs than workers."""
    visible = torch.cuda.device_count()
    if visible < num:
        raise UsageError(
            f"resources.local_workers: {num} workers need a GPU each, and {count(visible, 'GPU')} is visible here. "
            f"Allowed: at most {visible}, or resources.gpus_per_worker: 0; CUDA_VISIBLE_DEVICES may hide some"
        )


def _joined(parent: Parent) -> FileStore:
    """The store of the workers of this machine, once all of them are there: some may still import PyTorch.

    Raises CollectiveFault if one of them has ended. It polls, since a wait of the store could not be interrupted.
    """
    num = parent.ranks.world_size
    store = FileStore(parent.rendezvous, num)
    store.add("joined", 1)
    while store.add("joined", 0) < num:
        if parent.abandoned():
            raise CollectiveFault("another worker has ended before all had joined the process group")
        time.sleep(_JOIN_POLL_S)
    return store


@contextlib.contextmanager
def _process_group(use_gpu: bool, own: Ranks, store: FileStore | None) -> Iterator[None]:
    """The process group during the block; an existing one, of a notebook, is used and kept."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if use_gpu else "gloo"
    if use_gpu and own.world_size > 1:  # NCCL broadcasts objects through the current device
        torch.cuda.set_device(own.local_rank % torch.cuda.device_count())
    if store is not None:
        os.environ.setdefault(INTERFACE_VARIABLE, _LOOPBACK)
        # An aborted collective must not end the process: it takes part in the next attempt (2: CleanUpOnly).
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        dist.init_process_group(backend, store=store, rank=own.rank, world_size=own.world_size)
    elif under_torchrun():
        if own.world_size > own.local_world_size:
            require([select_interface(os.environ.get("MASTER_ADDR", ""))])
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    hangs = False
    try:
        yield
    except BaseException as error:
        hangs = getattr(error, "skip_shutdown", False)  # destroying the group would wait for a hanging collective
        if store is not None and use_gpu and dist.is_initialized():
            dist.distributed_c10d._abort_process_group()  # so would it without a lost worker
        raise
    finally:
        if not hangs and dist.is_initialized():
            dist.destroy_process_group()
