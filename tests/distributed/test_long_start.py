"""A start that takes long: an index of many images. The others wait, and a start after a kill goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from resnet_dist import rank_zero
from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index
from resnet_dist.data.index import parts as index_parts
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.data.storage import parallel
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe
from tests.distributed.forked import run_forked, run_script

GROUP_TIMEOUT_S = 3.0
WORK_S = 2 * GROUP_TIMEOUT_S
NUM_IMAGES, CHUNK = 400, 20


def wait_for_rank_0(folder: str, rank: int) -> None:
    """Wait for work that takes longer than the time-out of the process group, and for work that fails."""
    rank_zero.TICK_S = 0.2
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    beats: list[None] = []

    def work() -> str:
        time.sleep(WORK_S)
        return "done"

    def fail() -> str:
        raise DataError("/data", "is empty")

    waited = partial(rank_zero.run_long_on_rank_0, done=time.monotonic, beat=lambda: beats.append(None))
    assert waited(work, rank, 2) == "done"
    assert len(beats) > WORK_S
    with pytest.raises(DataError, match="/data: is empty"):
        rank_zero.run_long_on_rank_0(fail, rank, 2)
    dist.destroy_process_group()


def make_index(folder: Path, pause_s: float) -> int:
    """Make the index of `folder` with a pause before each header; returns the number of headers read."""
    read: list[str] = []

    def slow(name: str, num_bytes: int, read_bytes: Callable[[int, int], bytes]) -> Header:
        read.append(name)
        time.sleep(pause_s)
        return header_of(name, num_bytes, read_bytes)

    vars(build_index)["header_of"] = slow
    index_parts._EVERY_S = 0.0
    parallel.CHUNK = CHUNK
    shared_indices(DataRecipe(root=str(folder)), 2, 0, 1, folder / "run", folder / "shared")
    return len(read)


def test_the_others_wait_longer_than_the_time_out_of_the_process_group(tmp_path: Path) -> None:
    done = run_script(__file__, "wait", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_start_after_a_kill_reads_the_rest_only(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8, 3), 128, np.uint8))
    for split, num in (("train", NUM_IMAGES), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
        for number in range(num):
            image.save(tmp_path / split / ("cat", "dog")[number % 2] / f"{number}.png")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, __file__, "index", str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while not (parts := list(tmp_path.glob("shared/*/.train.parts/[0-9]*"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert parts
    assert not list(tmp_path.glob("shared/*/train.safetensors"))
    assert list(tmp_path.glob("shared/*/.train.making"))
    rest = run_script(__file__, "count", str(tmp_path))
    assert rest.returncode == 0, rest.stderr
    assert 2 < int(rest.stdout) <= NUM_IMAGES + 2 - CHUNK
    assert sorted(file.name for file in tmp_path.glob("shared/*/*")) == ["train.safetensors", "val.safetensors"]


if __name__ == "__main__":
    if sys.argv[1] == "wait":
        assert run_forked(partial(wait_for_rank_0, sys.argv[2]), 2, 60) == [0, 0]
    else:
        print(make_index(Path(sys.argv[2]), 0.01 if sys.argv[1] == "index" else 0.0))
