"""An evaluation by several processes of this machine, or by those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, start_processes

from launcher.checks.finding import require
from launcher.checks.network import select_interface
from launcher.config.schema import Ranks, ranks
from launcher.errors import WorkerLost
from launcher.inference.evaluate import Evaluated, Progress, Request, device_here, evaluate_checkpoint
from launcher.inference.trained import Saved
from launcher.recovery.portable import portable

_RESULT, _ERROR = "result", "error-"
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def evaluate_with(saved: Saved, request: Request, num_workers: int, progress: Progress | None = None) -> Evaluated:
    """The evaluation of `saved` by `num_workers` processes: this one alone, or as many new ones.

    `progress` is pickled for the new ones. Raises what a worker raises, as `evaluate_checkpoint` does, and WorkerLost
    for one that was killed.
    """
    if num_workers == 1:
        return _evaluate(saved, request, progress)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = (num_workers, place, saved, request, progress)
        try:
            start_processes(_work, arguments, num_workers, start_method="spawn")
        except ProcessException as error:
            raise _failure(place, error) from error
        return cast(Evaluated, pickle.loads((place / _RESULT).read_bytes()))


def evaluate_under_torchrun(saved: Saved, request: Request, progress: Progress | None = None) -> Evaluated:
    """The evaluation by torchrun's processes, of which this is one."""
    own = ranks()
    if own.world_size > own.local_world_size:
        require([select_interface(os.environ.get("MASTER_ADDR", ""))])
    with _group(own, "env://"):
        return _evaluate(saved, request, progress)


def _work(rank: int, world_size: int, folder: Path, saved: Saved, request: Request, progress: Progress | None) -> None:
    """Worker `rank`: leaves the result, or its error, in `folder`."""
    own = Ranks(rank, world_size, rank, world_size)
    os.environ.update({name: str(getattr(own, name.lower())) for name in _VARIABLES})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # with these, `ranks` takes the variables for a group
    try:
        with _group(own, (folder / "store").as_uri()):
            found = _evaluate(saved, request, progress)
        if rank == 0:
            (folder / _RESULT).write_bytes(pickle.dumps(found))
    except Exception as error:
        _failed(folder, rank).write_bytes(pickle.dumps(portable(error)))
        raise


@contextlib.contextmanager
def _group(own: Ranks, address: str) -> Iterator[None]:
    """The process group during the block: NCCL with a GPU for each worker, else gloo."""
    device = device_here()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=own.rank, world_size=own.world_size)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _evaluate(saved: Saved, request: Request, progress: Progress | None) -> Evaluated:
    return evaluate_checkpoint(
        saved,
        data=request.data,
        resolution=request.resolution,
        flip=request.flip,
        weights=request.weights,
        progress=progress,
    )


def _failure(folder: Path, error: ProcessException) -> Exception:
    """The first error that a worker has left; WorkerLost if the one that ended first has left none."""
    if not _failed(folder, error.error_index).exists():
        return WorkerLost(socket.gethostname(), error.error_index, error.msg)
    first = min(folder.glob(f"{_ERROR}*"), key=lambda file: file.stat().st_mtime_ns)
    return cast(Exception, pickle.loads(first.read_bytes()))


def _failed(folder: Path, rank: int) -> Path:
    return folder / f"{_ERROR}{rank}"
