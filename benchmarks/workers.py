"""Run a function in several worker processes of this machine, with gloo."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_workers(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)` on rank 0, converted to JSON and back.

    The function must be importable and its arguments picklable. It runs with one thread, inside a process group.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (number, function, arguments, folder), nprocs=number)
        return json.loads(_result(folder).read_text())


def _worker(rank: int, number: int, function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # deepspeed.initialize reads it
    store = dist.FileStore(f"{folder}/store", number)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=number)
    try:
        found = function(*arguments)
        if rank == 0:
            _result(folder).write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _result(folder: str) -> Path:
    return Path(folder) / "result.json"
