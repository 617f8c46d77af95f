"""Pools of threads in which an operation of torch runs on one thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_threads(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of `num_threads` threads. In each, torch uses that thread alone, not a team of threads for each of them.

    The sums of an image then have one order. torch.set_num_threads sets a number of the calling thread and others of
    the process; the latter are restored.
    """
    before = torch.get_num_threads()
    all_started = threading.Barrier(num_threads)

    def start(_: int) -> None:
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
    list(pool.map(start, range(num_threads)))
    torch.set_num_threads(before)
    return pool
