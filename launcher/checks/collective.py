"""An all-reduce between processes of several hosts: whether the sum is right, and how fast it is.

`python -m launcher.checks.collective JSON` is one of the processes; `reduce_here` starts those of one host.
"""

from __future__ import annotations

import datetime
import json
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from launcher.checks.children import Answer, Child, run_children
from launcher.checks.network import select_interface

# The elements of the sum are integers below 2^24, where float32 is exact, for up to 2 million processes.
_PERIOD = 8
_REPEATS = 3
_START_S = 30  # assumption: importing torch and creating a CUDA context take less


def reduce_here(*, first_rank: int, processes: int, gpus: bool, seconds: float, **common: object) -> Answer:
    """Run this host's `processes` of an all-reduce: ranks `first_rank` and up, each with a GPU if `gpus`.

    The collective itself may take `seconds`; `common` are the other arguments of `reduce_once`. Answers {"problems":
    [text], "wrong": elements, "bus_bytes_per_s": of the slowest process}.
    """
    ranks = [{"rank": first_rank + local, "gpu": local if gpus else None} for local in range(processes)]
    children = [Child("launcher.checks.collective", {**common, "seconds": seconds, **rank}) for rank in ranks]
    answers = run_children(children, seconds + _START_S)
    good = [answer for answer in answers if not isinstance(answer, str)]
    return {
        "problems": [answer for answer in answers if isinstance(answer, str)],
        "wrong": sum(answer["wrong"] for answer in good),
        "bus_bytes_per_s": min((answer["bus_bytes_per_s"] for answer in good), default=0.0),
    }


def contribution(rank: int, count: int, device: torch.device) -> Tensor:
    """The addend of `rank`: float32 [count], element i is (i + rank) mod 8."""
    return ((torch.arange(count, device=device) + rank) % _PERIOD).float()


def expected(world_size: int, count: int, device: torch.device) -> Tensor:
    """The sum of all contributions, float32 [count], exact."""
    table = [float(sum((start + rank) % _PERIOD for rank in range(world_size))) for start in range(_PERIOD)]
    return torch.tensor(table, device=device).repeat(-(-count // _PERIOD))[:count]


def bus_bytes_per_s(num_bytes: int, seconds: float, world_size: int) -> float:
    """The bandwidth that a ring needs on each link: 2 (n - 1) / n × bytes / seconds (nccl-tests, PERFORMANCE.md).

    >>> bus_bytes_per_s(1000, 2.0, 2)
    500.0
    """
    return 2 * (world_size - 1) / world_size * num_bytes / seconds


def reduce_once(
    rank: int, world_size: int, address: str, port: int, num_bytes: int, seconds: float, gpu: int | None
) -> Answer:
    """Take part as `rank`; answers {"wrong": elements, "bus_bytes_per_s"}. RuntimeError if other ranks are missing."""
    device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
    if gpu is not None:
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=seconds)
    select_interface(address)
    store = TCPStore(address, port, world_size, is_master=rank == 0, timeout=limit)
    backend = "gloo" if gpu is None else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    own = contribution(rank, num_bytes // 4, device)
    right = expected(world_size, len(own), device)
    wrong, best_s = 0, float("inf")
    for _ in range(_REPEATS):
        summed = own.clone()
        _synchronize(device)
        started = time.perf_counter()
        dist.all_reduce(summed)
        _synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
        wrong = max(wrong, int((summed != right).sum()))
    dist.destroy_process_group()
    return {"wrong": wrong, "bus_bytes_per_s": bus_bytes_per_s(num_bytes, best_s, world_size)}


def _synchronize(device: torch.device) -> None:
    """Wait for all processes, and for the device."""
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(reduce_once(**json.loads(sys.argv[1]))), flush=True)
