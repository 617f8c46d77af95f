"""The mirror on an S3 server (moto's, on this machine's loopback), through the library that production uses."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moto.server import ThreadedMotoServer

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.mirror import complete_steps, fetch, fetch_newest
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.errors import CheckpointError, StorageError

URL = "s3://bucket/runs/one/checkpoints"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, where the client looks for it as in production: by the environment."""
    import s3fs

    for variable, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if files.exists("bucket"):
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    return files


def run(folder: Path, steps: list[int], retention: Retention) -> list[tuple[int, str, dict[str, Any]]]:
    """Save `steps` with a mirror, and return the events."""
    events: list[tuple[int, str, dict[str, Any]]] = []
    options = CheckpointOptions(folder, retention, mirror=URL, max_failures=1)
    saver = Saver(options, on_event=lambda *event: events.append(event))
    for step in steps:
        weight = torch.full((1000,), float(step))
        state = {"weight": {"momentum": weight + 1}}
        content = CheckpointContent(step, {"weight": weight}, state, {"metrics": {"top1": 1 / step}})
        saver.save(content, wait=False)
        while not any(event[0] == step and event[1].startswith("mirror") for event in events):
            saver.poll()
    saver.close()
    return events


def test_a_run_whose_directory_is_gone_goes_on_from_the_mirror(tmp_path: Path, bucket: Any) -> None:
    events = run(tmp_path / "lost", [1, 2, 3, 4], Retention(keep=2, keep_best=1))
    assert [event[:2] for event in events] == [
        (step, event) for step in (1, 2, 3, 4) for event in ("checkpoint", "mirrored")
    ]
    assert complete_steps(URL) == [4, 3, 1]
    shutil.rmtree(tmp_path / "lost")
    checkpoint = fetch_newest(URL, tmp_path / "new")
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert torch.equal(checkpoint.model()["weight"], torch.full((1000,), 4.0))
    assert torch.equal(checkpoint.optimizer()["weight"]["momentum"], torch.full((1000,), 5.0))
    assert sorted(bucket.find("bucket")) == [
        f"bucket/runs/one/checkpoints/step-0000000{step}/{name}"
        for step in (1, 3, 4)
        for name in sorted((*format.FILES, format.MANIFEST))
    ]


def test_without_its_manifest_a_checkpoint_there_is_none(tmp_path: Path, bucket: Any) -> None:
    run(tmp_path / "run", [1, 2], Retention())
    bucket.rm_file(f"{URL}/step-00000002/manifest.json")
    assert complete_steps(URL)[0] == 1


def test_a_copy_that_was_altered_is_found_by_its_hash(tmp_path: Path, bucket: Any) -> None:
    run(tmp_path / "run", [1, 2], Retention())
    file = f"{URL}/step-00000002/model.safetensors"
    content = bytearray(bucket.cat_file(file))
    content[-1] ^= 1
    bucket.pipe_file(file, bytes(content))
    with pytest.raises(CheckpointError, match=r"step-00000002/model.safetensors: was altered"):
        fetch(URL, 2, tmp_path / "new")
    checkpoint = fetch_newest(URL, tmp_path / "new")
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_a_bucket_that_is_not_there_is_told_of_and_not_made(tmp_path: Path, bucket: Any) -> None:
    bucket.rm("bucket", recursive=True)
    events = run(tmp_path / "run", [1, 2], Retention())
    assert [event[:2] for event in events] == [
        (step, event) for step in (1, 2) for event in ("checkpoint", "mirror_failed")
    ]
    assert "bucket does not exist" in events[1][2]["problem"]
    assert not bucket.exists("bucket")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_server_that_is_gone_is_told_of(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    events = run(tmp_path / "run", [1], Retention())
    assert [event[:2] for event in events] == [(1, "checkpoint"), (1, "mirror_failed")]
    assert "Could not connect" in events[1][2]["problem"]
    with pytest.raises(StorageError, match="Could not connect"):
        complete_steps(URL)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
