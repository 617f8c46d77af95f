"""Real errors of a disk: full, at a limit, without permission, and working again afterwards."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.restore import newest
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.errors import StorageError

# Saves steps 1 to 5 of a 1 MB model, with a fault from step 2 to 3. As an ordinary user: root ignores permissions.
SCRIPT = """
import json, os, resource, sys
from pathlib import Path
import torch
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver

folder, fault = Path(sys.argv[1]), sys.argv[2]
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, hard))

take, give = {
    "permission": (lambda: folder.chmod(0o555), lambda: folder.chmod(0o755)),
    "limit": (lambda: limit(500_000), lambda: limit(hard)),
}[fault]
events = []
saver = Saver(CheckpointOptions(folder, Retention(keep=1)), on_event=lambda *event: events.append(event))
for step in range(1, 6):
    if step == 2: take()
    if step == 4: give()
    saver.save(CheckpointContent(step, {"weight": torch.full((250_000,), float(step))}, {}, {}), wait=False)
    while len(events) < step:
        saver.poll()
saver.close()
print(json.dumps(events))
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("permission", "no permission; run as the folder's owner, or choose another storage"),
        ("limit", "the file exceeds the size limit of this process (ulimit -f) or of the file system; raise the limit"),
    ],
)
def test_saves_succeed_again_after_the_fault_is_gone(fault: str, message: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        Path(scratch).chmod(0o777)
        folder = Path(scratch) / "checkpoints"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), fault], stdout=subprocess.PIPE, check=True, env=environment
        )
        events: list[tuple[int, str, dict[str, Any]]] = json.loads(done.stdout)
        assert [(step, event) for step, event, _ in events] == [
            (1, "checkpoint"), (2, "checkpoint_failed"), (3, "checkpoint_failed"), (4, "checkpoint"), (5, "checkpoint"),
        ]  # fmt: skip
        assert events[1][2]["problem"].endswith(message)
        assert str(folder) in events[1][2]["problem"]
        assert [path.name for path in folder.iterdir()] == ["step-00000005"]
        checkpoint = newest(folder)
        assert checkpoint is not None
        assert torch.equal(checkpoint.model()["weight"], torch.full((250_000,), 5.0))


@pytest.mark.parametrize("name", [*format.FILES, format.MANIFEST])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path,
    model: Callable[[int], dict[str, Tensor]],
    optimizer: Callable[[int], dict[str, dict[str, Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    events: list[str] = []
    saver = Saver(CheckpointOptions(tmp_path, Retention(keep=1)), on_event=lambda *event: events.append(event[1]))
    saver.save(CheckpointContent(1, model(1), optimizer(1), {}), wait=True)
    opened = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name == name and mode == "xb":  # the kernel answers each write to this device with ENOSPC
            return io.open("/dev/full", "wb", *arguments, **options)  # noqa: UP020 - Path.open is replaced
        return opened(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match=r"the disk is full; free some space, or lower checkpoint\.keep"):
            saver.save(CheckpointContent(2, model(2), optimizer(2), {}), wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert torch.equal(checkpoint.model()["fc.weight"], model(1)["fc.weight"])
    saver.save(CheckpointContent(3, model(3), optimizer(3), {}), wait=True)
    saver.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert events == ["checkpoint", "checkpoint_failed", "checkpoint"]
