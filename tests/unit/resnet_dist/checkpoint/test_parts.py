"""A partitioned optimizer state: each process writes its part, and the checkpoint is complete or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.folders import new_writer
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.restore import load, newest
from resnet_dist.checkpoint.save import write, write_part
from resnet_dist.errors import CheckpointError, StorageError

WORKERS = 3

# Imports torch once; each line is [folder, writer, rank, steps, timeout, limit of a file's bytes or 0] and starts a
# worker, which saves parts of 1 MB at each step and reports "saved" or the error. With "kill" for the limit it is
# killed at its first write of a part.
WORKER = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from resnet_dist.checkpoint import tensors
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.errors import StorageError

torch.set_num_threads(1)
for line in sys.stdin:
    folder, writer, rank, steps, timeout_s, limit = json.loads(line)
    worker = os.fork()
    if worker:
        print(worker, flush=True)
        continue
    if limit == "kill":
        def kill(event, arguments):
            if event == "open" and str(arguments[0]).endswith(f"optimizer-{rank:05d}-of-00003.safetensors"):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
    elif limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    parts = PartFiles(rank, 3, writer, timeout_s)
    saver = Saver(CheckpointOptions(Path(folder), Retention(keep=2)), on_event=lambda *event: None, parts=parts)
    model = {"weight": torch.ones(3)} if rank == 0 else {}
    try:
        for step in steps:
            part = {f"layer{rank}.weight": {"momentum": torch.full((250_000,), float(step))}, f"layer{rank}.bias": {}}
            saver.save(CheckpointContent(step, model, part, {}), wait=True)
        result = "saved"
    except StorageError as error:
        result = str(error)
    saver.close()
    Path(folder, f"result-{rank}").write_text(result)
    os._exit(0)
"""

Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def forge() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def run(tmp_path: Path, forge: subprocess.Popen[str]) -> Run:
    """Have three workers save the steps; return the result of each. `limits` are by rank."""

    def workers(steps: list[int], timeout_s: float = 60, **limits: int | str) -> list[str]:
        host, _, random = new_writer().rsplit("-", 2)
        writer = f"{host}-{forge.pid}-{random}"
        assert forge.stdin is not None
        assert forge.stdout is not None
        started = []
        for rank in (1, 2, 0):
            line = [str(tmp_path), writer, rank, steps, timeout_s, limits.get(f"rank{rank}", 0)]
            forge.stdin.write(json.dumps(line) + "\n")
            forge.stdin.flush()
            started.append(int(forge.stdout.readline()))
        results = []
        for rank, pid in ((1, started[0]), (2, started[1]), (0, started[2])):
            file = tmp_path / f"result-{rank}"
            while not file.exists() or not file.read_text():
                status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if status == "Z" and not file.exists():
                    file.write_text("killed")
                time.sleep(0.01)
            results.append(file.read_text())
            file.unlink()
        return [results[2], results[0], results[1]]

    return workers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_worker_writes_its_part_and_the_whole_is_read_back(tmp_path: Path, run: Run) -> None:
    assert run([1, 2, 3]) == ["saved"] * WORKERS
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert names(tmp_path / "step-00000003") == [
        "manifest.json", "model.safetensors", *(f"optimizer-0000{rank}-of-00003.safetensors" for rank in range(3)),
        "state.json",
    ]  # fmt: skip
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 3
    optimizer = checkpoint.optimizer()
    assert sorted(optimizer) == sorted(f"layer{rank}.{kind}" for rank in range(3) for kind in ("weight", "bias"))
    for rank in range(3):
        assert torch.equal(optimizer[f"layer{rank}.weight"]["momentum"], torch.full((250_000,), 3.0))
        assert optimizer[f"layer{rank}.bias"] == {}


@pytest.mark.parametrize("rank", range(WORKERS))
def test_a_part_that_was_altered_is_found_by_name(tmp_path: Path, run: Run, rank: int) -> None:
    run([1, 2])
    part = tmp_path / "step-00000002" / format.part_name(rank, WORKERS)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=part.name):
        load(tmp_path / "step-00000002")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_a_part_that_cannot_be_written_leaves_no_checkpoint_and_says_whose_it_was(tmp_path: Path, run: Run) -> None:
    assert run([1]) == ["saved"] * WORKERS
    results = run([2], rank2=100_000)  # a real refusal: no file of this process may grow further
    assert "worker 2 could not write its part: the file exceeds the size limit" in results[0]
    assert results[1] == "saved"
    assert "the file exceeds the size limit" in results[2]
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert run([3]) == ["saved"] * WORKERS  # and the next one is not the worse for it
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_worker_that_is_killed_in_its_part_leaves_no_checkpoint(tmp_path: Path, run: Run) -> None:
    assert run([1]) == ["saved"] * WORKERS
    results = run([2], timeout_s=0.5, rank1="kill")
    assert results[0].endswith("worker 1 did not write its part within 0.5 s")
    assert results[1:] == ["killed", "saved"]
    assert names(tmp_path) == ["step-00000001"]


def test_a_manifest_must_list_all_parts(tmp_path: Path) -> None:
    writer = new_writer()
    for number in (1, 0):
        content = CheckpointContent(4, {}, {f"layer{number}": {"momentum": torch.ones(2)}}, {})
        (write if number == 0 else write_part)(tmp_path, content, PartFiles(number, 2, writer))
    manifest = tmp_path / "step-00000004" / format.MANIFEST
    listed = json.loads(manifest.read_text())
    del listed["files"][format.part_name(1, 2)]
    manifest.write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=r"or all parts of optimizer\.safetensors"):
        load(tmp_path / "step-00000004")


def test_a_tensor_in_two_parts_is_an_error(tmp_path: Path) -> None:
    writer = new_writer()
    for number in (1, 0):
        content = CheckpointContent(4, {}, {"layer": {"momentum": torch.ones(2)}}, {})
        (write if number == 0 else write_part)(tmp_path, content, PartFiles(number, 2, writer))
    with pytest.raises(CheckpointError, match="tensor 'layer/momentum' is in another part, too"):
        load(tmp_path / "step-00000004").optimizer()


def test_a_worker_may_be_a_checkpoint_ahead_of_rank_0(tmp_path: Path) -> None:
    writer = new_writer()
    for step in (4, 5):
        write_part(
            tmp_path, CheckpointContent(step, {}, {"b": {"momentum": torch.ones(2)}}, {}), PartFiles(1, 2, writer)
        )
    for step in (4, 5):
        write(tmp_path, CheckpointContent(step, {}, {"a": {"momentum": torch.ones(2)}}, {}), PartFiles(0, 2, writer))
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    assert sorted(load(tmp_path / "step-00000005").optimizer()) == ["a", "b"]


def test_a_part_that_cannot_be_announced_is_an_error_of_its_worker_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Not a directory"):
        write_part(tmp_path / "file", CheckpointContent(4, {}, {}, {}), PartFiles(1, 2, new_writer()))
