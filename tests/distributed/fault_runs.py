"""A run whose steps last as long as a test says, and that a test may strike at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import restore
from resnet_dist.telemetry.metrics_file import read_metrics

PACED = Path(__file__).parents[2] / "benchmarks"  # where the model paced:build is
STEPS = 60
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "fault_run",
    "place": "local",
    "duration": f"{STEPS} steps",
    "model": {"name": "paced:build", "num_classes": 10},
    "data": {"resolution": 16, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 37},
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "lr_in_momentum": False},
    "schedule": {"peak_lr": 0.5, "warmup": "5 steps", "decay": "cosine"},
    "evaluate": {"every": "20 steps"},
    "checkpoint": {"every": "10 steps"},
    "faults": {"hang_timeout_s": 15},
    "log": {"every_steps": 1, "tensorboard": False},
    "precision": "float64",
}


def environment() -> dict[str, str]:
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return {**kept, "PYTHONPATH": str(PACED)}


class FaultRun:
    """A run as its tormentor sees it."""

    def __init__(self, folder: Path, root: Path, **more: Any) -> None:
        self.directory = RunDirectory(folder / "runs", "fault_run")
        self.run = self.directory.path
        self.pace_file = folder / "pace.json"
        config = {**CONFIG, "storage": str(folder / "runs"), "data": {**CONFIG["data"], "root": str(root)}, **more}
        config["model"] = {**config["model"], "arguments": {"pace": str(self.pace_file)}}
        self.file = folder / "fault_run.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self.folder = folder  # also on PYTHONPATH: for code of a user
        self._log = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *overrides: str, processes: int = 1, output: int | None = None) -> None:
        """Start the main job, in a session of its own; more than one process through torchrun.

        `output` is a descriptor in place of a file for what it prints.
        """
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launch, "-m", "launcher.train", str(self.file), *overrides]
        paths = {"PYTHONPATH": f"{PACED}:{self.folder}"}
        with self._log.open("ab") as log:
            stream = log if output is None else output
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**environment(), **paths}, start_new_session=True
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def end(self, code: int = 0, timeout_s: float = 180) -> str:
        """Wait for the end, which must come with `code`; what the run has printed."""
        self.process.wait(timeout_s)
        output = self._log.read_text()
        assert self.process.returncode == code, output
        return output

    def until(self, true: Callable[[], Any], timeout_s: float = 120) -> Any:
        """Wait, as short as can be, until `true` gives something; that."""
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.002)
        return found

    def output(self) -> str:
        """What the run has printed so far."""
        return self._log.read_text()

    def pause(self, seconds: float) -> None:
        """Wait, or until the run has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def has_written(self, text: str) -> bool:
        """Whether metrics.jsonl holds `text`."""
        return self.directory.metrics.exists() and text in self.directory.metrics.read_text()

    def wait_for_step(self, step: int) -> None:
        self.until(lambda: self.has_written(f'"train", "step": {step},'))

    def pace(self, **seconds: float) -> None:
        self.pace_file.write_text(json.dumps(seconds))

    def pid(self, rank: int = 0, attempt: int = 1) -> int:
        """The process that trains."""
        beats = self.until(lambda: heartbeats.read(self.directory.logs(attempt)).get(rank))
        return int(beats.pid)

    def child(self) -> int:
        """The child of the main job's process, as soon as there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(self.until(lambda: children.read_text().split())[0])

    def losses(self) -> dict[int, float]:
        return {r["step"]: r["loss"] for r in read_metrics(self.directory.metrics) if r["kind"] == "train"}

    def weights(self) -> dict[str, Any]:
        checkpoint = restore.newest(self.directory.checkpoints)
        assert checkpoint is not None
        assert checkpoint.step == STEPS
        return checkpoint.model()

    def failures(self) -> list[tuple[str, int]]:
        """(class of the error, steps done again) of every attempt that failed."""
        facts = [attempt.end_facts for attempt in self.directory.attempts()]
        return [(fact["class"], fact["steps_redone"]) for fact in facts if "class" in fact]

    def incident(self, attempt: int = 1) -> str:
        return (self.directory.incident(attempt) / "summary.txt").read_text()


USERS_CODE = """
import threading
from torch import nn


class TwoArgumentsError(Exception):
    \"\"\"It can neither be pickled nor unpickled, nor shown.\"\"\"

    def __init__(self, first, second):
        super().__init__(first, second)
        self.lock = threading.Lock()

    def __str__(self):
        raise self


class Model(nn.Module):
    def __init__(self, num_classes, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(3, num_classes), kind

    def forward(self, images):
        if self.kind == "exits":
            raise SystemExit(3)
        raise TwoArgumentsError(1, 2)


def build(num_classes, pace, kind):
    return Model(num_classes, kind)
"""


def assert_same_bits(found: FaultRun, expected: FaultRun) -> None:
    assert found.losses() == expected.losses()
    weights, others = found.weights(), expected.weights()
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(tensor) for name, tensor in others.items())


def assert_nothing_is_left(run: FaultRun) -> None:
    """No process of the run, no half-written checkpoint, no lease."""
    left = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and _names(pid, str(run.run))]
    assert left == []
    assert [path.name for path in run.directory.checkpoints.iterdir() if path.name.startswith(".")] == []
    assert [path.suffix for path in run.directory.lease.iterdir() if path.suffix not in (".json", ".released")] == []


def _names(process: Path, folder: str) -> bool:
    try:
        return any(str(link.readlink()).startswith(folder) for link in (process / "fd").iterdir())
    except OSError:
        return False


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
