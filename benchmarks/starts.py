"""The time from the command to the first step: ours, and that of the smallest scripts of PyTorch and Ray Train.

    python -m benchmarks.starts --rounds 7

Everything trains ResNet-20 on images of 16 px, in one process or with two gloo workers through Ray on a cluster that is
started for the run. Our launcher does all that it does for a user: it checks the config, reads the images, writes the
run directory. A script makes one step with random numbers. Each round has one turn of every peer, every other round in
reverse order, and the ratios are computed round by round. Python may write its bytecode files. Prints the table and the
stages of our starts, and writes results/starts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import notes_of, order, table_of, time_row, write
from launcher.prepare.digits import write_digits
from launcher.run.directory import RunDirectory

POLL_S = 0.01
LONGEST = 3  # stages that explain why a goal is missed
MOST_S = 600.0  # for one start
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "start",
    "model": {"name": "resnet20", "num_classes": 10},
    "data": {"resolution": 16},
    "batch": {"size": 38},
    "duration": "1 steps",
    "schedule": {"peak_lr": 0.05, "decay": "constant"},
    "log": {"every_steps": 1},
}
# The model of the scripts, with the layers of our resnet20: nothing of this project is imported.
MODEL = """
import os, sys
from pathlib import Path
import torch, torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.stride, self.padding = stride, out - width

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)

def resnet20():
    blocks, width = [], 16
    for out in (16, 32, 64):
        for number in range(3):
            blocks.append(Block(width, out, 2 if number == 0 and out > 16 else 1))
            width = out
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def step(model, size):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    images, labels = torch.randn(size, 3, 16, 16), torch.randint(10, (size,))
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()
"""
ONE_PROCESS = """
step(resnet20(), 38)
Path(sys.argv[1]).write_text("done")
"""
RAY_TRAIN = """
import ray, ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

def train(config):
    step(prepare_model(resnet20()), 19)
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["done"]).write_text("done")

ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, log_to_driver=False)
TorchTrainer(train, train_loop_config={"done": sys.argv[1]}, scaling_config=ScalingConfig(num_workers=2),
             run_config=RunConfig(name="smallest", storage_path=str(Path(sys.argv[1]).parent / "storage"))).fit()
"""
GOALS = {"ray": 1.1, "one process": 1.3}


def ours(folder: Path, place: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds from our command to its first step, and those of its stages by name."""
    config = {**CONFIG, **place, "storage": str(folder / "runs"), "data": {**CONFIG["data"], "root": str(folder)}}
    (folder / "start.yaml").write_text(yaml.safe_dump(config))
    metrics = RunDirectory(folder / "runs", "start").metrics
    command = [sys.executable, "-m", "launcher.train", str(folder / "start.yaml")]
    seconds, output = start(command, lambda: metrics.exists() and '"kind": "train"' in metrics.read_text())
    return seconds, dict(stages_of(output))


def stages_of(output: str) -> list[tuple[str, float]]:
    """The stages that the launcher has printed, with their seconds."""
    found = re.findall(r"^(\S.*?) {2,}(\d+\.\d) s$", output, re.MULTILINE)
    return [(name, float(text)) for name, text in found]


def longest(stages: Mapping[str, float]) -> str:
    """The longest stages, as text."""
    names = sorted(stages, key=lambda name: -stages[name])[:LONGEST]
    return ", ".join(f"{name} {stages[name]:.1f} s" for name in names) or "none was printed"


def script(folder: Path, content: str) -> tuple[float, dict[str, float]]:
    """Seconds from the command of a script to its first step."""
    file, done = folder / "script.py", folder / "done"
    file.write_text(MODEL + content)
    return start([sys.executable, str(file), str(done)], done.exists)[0], {}


def start(command: Sequence[str], has_stepped: Callable[[], bool]) -> tuple[float, str]:
    """Run a command to its end; returns the seconds until `has_stepped()`, and its output."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while not has_stepped() and process.poll() is None and time.monotonic() - began < MOST_S:
            time.sleep(POLL_S)
        seconds = time.monotonic() - began
        stepped = has_stepped()
        try:
            process.wait(MOST_S)
        except subprocess.TimeoutExpired:
            process.kill()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if not stepped or process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{text[-3000:]}")
    return seconds, text


PEERS: dict[str, Callable[[Path], tuple[float, dict[str, float]]]] = {
    "one process": lambda folder: ours(folder, {"place": "local"}),
    "bare script": lambda folder: script(folder, ONE_PROCESS),
    "ray": lambda folder: ours(folder, {"place": "ray", "workers": 2}),
    "TorchTrainer": lambda folder: script(folder, RAY_TRAIN),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and write them; 0 if the goals are reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("ray", "one process"), help="one of the two rows")
    given = parser.parse_args(arguments)
    pairs = {"one process": "bare script", "ray": "TorchTrainer"}
    pairs = {name: peer for name, peer in pairs.items() if given.only in (None, name)}
    seconds: dict[str, list[float]] = {name: [] for pair in pairs.items() for name in pair}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in pairs}
    for number, name in order(list(seconds), given.rounds):
        folder = Path(tempfile.mkdtemp(prefix="starts-"))
        try:
            write_digits(folder)
            taken, by_stage = PEERS[name](folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds[name].append(taken)
        for stage, value in by_stage.items():
            stages[name].setdefault(stage, []).append(value)
        print(f"round {number + 1}: {name:<13} {taken:6.2f} s", flush=True)
    medians = {
        name: {stage: statistics.median(values) for stage, values in by_stage.items()}
        for name, by_stage in stages.items()
    }
    rows = []
    for name, peer in pairs.items():
        more = statistics.median(seconds[name]) - statistics.median(seconds[peer])
        cause = f"{more:.1f} s more than the peer; the longest stages of ours: {longest(medians[name])}"
        what = f"command to first step, {name}"
        rows.append(time_row(what, peer, seconds[name], seconds[peer], GOALS[name], cause=cause).record())
    print(table_of(rows))
    print("\n".join(notes_of(rows)))
    print(json.dumps(medians, indent=2))
    if given.only is None:
        write("starts", {"rounds": given.rounds, "rows": rows, "seconds": seconds, "stages": medians})
    return 0 if all(row["reached"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
