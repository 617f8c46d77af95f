"""The time from a killed worker to the next new step: through Ray beside Ray Train alone, and under our supervisor.

    python -m benchmarks.recovery --kills 4

All train ResNet-20 on the digits with gloo on this machine, and save a checkpoint every 10 steps. A worker is killed
with SIGKILL after --pause seconds of training, and the time is measured until a step completes for the first time.
Through Ray, two workers train; Ray Train alone uses its own retries. Turns alternate, so that other load affects all
equally, and ratios are computed kill by kill. The supervisor restarts one process, and two local workers. Prints the
table, with the longest stages of our restarts where a goal is missed, and writes results/recovery.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import notes_of, order, table_of, time_row, write
from benchmarks.soak import CHECKPOINT_EVERY, Soak
from benchmarks.starts import longest, stages_of
from launcher.prepare.digits import write_digits

PLAIN = """
import json, os, sys, tempfile, time
from pathlib import Path
import ray, ray.train, torch, torch.nn.functional as F
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
folder, every, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def train(_):
    from resnet_dist.models import MODELS, ResNet
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(ResNet(MODELS["resnet20"], 10))
    optimizer, first = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as where:
            state = torch.load(Path(where) / "state.pt")
        model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); first = state["step"]
    rank = ray.train.get_context().get_world_rank()
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    for step in range(first + 1, steps + 1):
        images, labels = torch.randn(19, 3, 16, 16), torch.randint(10, (19,))
        F.cross_entropy(model(images), labels).backward()
        optimizer.step(); optimizer.zero_grad()
        if rank == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{step}\\n")
        if step % every == 0:
            with tempfile.TemporaryDirectory() as where:
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(state, Path(where) / "state.pt")
                ray.train.report({}, checkpoint=Checkpoint.from_directory(where) if rank == 0 else None)
        time.sleep(0.05)

ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, log_to_driver=False)
TorchTrainer(train, train_loop_config={}, scaling_config=ScalingConfig(num_workers=2),
             torch_config=TorchConfig(backend="gloo"),
             run_config=RunConfig(name="plain", storage_path=str(folder / "storage"),
                                  failure_config=FailureConfig(max_failures=100))).fit()
"""


class Plain:
    """Ray Train with its own retries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "plain.py").write_text(PLAIN)
        # Ray has the same settings as ours, except for the retries.
        environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_USAGE_STATS_ENABLED": "0"}
        with (folder / "output").open("w") as output:
            command = [sys.executable, str(folder / "plain.py"), str(folder), str(CHECKPOINT_EVERY), "100000"]
            self.process = subprocess.Popen(
                command, env={**environment, "RAY_AUTH_MODE": "disabled"}, stdout=output, stderr=output
            )

    def done(self) -> int:
        """The newest step that was ever completed."""
        try:
            return max(map(int, (self.folder / "steps").read_text().split()), default=0)
        except FileNotFoundError:
            return 0

    def kill(self) -> None:
        """Kill one worker."""
        os.kill(int((self.folder / f"pid-{random.randint(0, 1)}").read_text()), signal.SIGKILL)

    def output(self) -> str:
        """What the run has printed; the stages of a restart are not known."""
        return ""


class Ours:
    """Our launcher with `workers` workers, through Ray or under the local supervisor."""

    def __init__(self, folder: Path, workers: int, *, ray: bool = False) -> None:
        folder.mkdir()
        write_digits(folder / "digits")
        (folder / "pace.json").write_text('{"all": 0.05}')
        self.soak = Soak(folder, "ours", 100_000, workers=workers, ray=ray)
        self.soak.start()
        assert self.soak.process is not None
        self.process: subprocess.Popen[bytes] = self.soak.process

    def done(self) -> int:
        """The newest step that was ever completed."""
        return self.soak.done()

    def kill(self) -> None:
        """Kill one worker. Raises IndexError if none has a heartbeat, ProcessLookupError if it has ended already."""
        os.kill(random.choice(list(self.soak.workers_now().values())), signal.SIGKILL)

    def output(self) -> str:
        """What the run has printed."""
        return (self.soak.folder / f"{self.soak.name}.output").read_text(errors="replace")


Start = Callable[[Path], Plain | Ours]
RUNS: dict[str, Start] = {
    "ray": lambda folder: Ours(folder, 2, ray=True),
    "plain": Plain,
    "local, 1 process": lambda folder: Ours(folder, 1),
    "local, 2 workers": lambda folder: Ours(folder, 2),
}
GOAL, GOAL_S = 0.8, 4.0  # of the ratio through Ray, and of the seconds under the supervisor


def wait(run: Plain | Ours, step: int) -> None:
    """Wait until `step` is complete."""
    deadline = time.monotonic() + 300
    while run.done() < step:
        if run.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{type(run).__name__} did not reach step {step}")
        time.sleep(0.02)


def turn(start: Start, folder: Path, kills: int, pause_s: float) -> tuple[list[float], list[tuple[str, float]]]:
    """Seconds of `kills` recoveries in one run, and those of the stages of the restarts by name.

    Two runs at once would affect each other.
    """
    run, seconds, printed = start(folder), [], 0
    try:
        wait(run, CHECKPOINT_EVERY + 3)
        printed = len(run.output())
        for _ in range(kills):
            time.sleep(pause_s)
            started, reached = time.monotonic(), run.done()
            run.kill()
            time.sleep(0.5)  # a step may have been in progress
            reached = max(reached, run.done())
            wait(run, reached + 1)
            seconds.append(time.monotonic() - started)
    finally:
        run.process.send_signal(signal.SIGTERM)
        try:
            run.process.wait(60)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
    return seconds, stages_of(run.output()[printed:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it; 0 if the goals are reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=4, help="per turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--pause", type=float, default=20.0, help="seconds of training before each kill")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="nothing is written then")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    found: dict[str, list[float]] = {name: [] for name in given.only}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in given.only}
    try:
        for number, name in order(given.only, given.turns):
            seconds, taken = turn(RUNS[name], folder / f"{name}-{number}", given.kills, given.pause)
            found[name] += seconds
            for stage, value in taken:
                stages[name].setdefault(stage, []).append(value)
            print(f"turn {number + 1}, {name}: {', '.join(f'{s:.1f}' for s in found[name])} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    causes = {name: f"the longest stages of a restart, by their medians: {_longest(stages[name])}" for name in stages}
    rows: list[dict[str, Any]] = []
    if {"ray", "plain"} <= found.keys():
        what = "SIGKILL to new step, Ray"
        rows.append(time_row(what, "Ray Train", found["ray"], found["plain"], GOAL, cause=causes["ray"]).record())
        print(table_of(rows))
        print("\n".join(notes_of(rows)))
    local = [_local_row(name, found[name], causes[name]) for name in found if name.startswith("local")]
    for one in local:
        print(f"{one['what']}: median {one['median_s']:.1f} s, worst {one['worst_s']:.1f} s, goal {GOAL_S:g} s")
    print("\n".join(notes_of(local)))
    if given.only == list(RUNS):
        content = {"pause_s": given.pause, "rows": rows, "local": local, "seconds": found}
        write("recovery", content)
    return 0 if all(one["reached"] for one in [*rows, *local]) else 1


def _local_row(name: str, seconds: list[float], cause: str) -> dict[str, Any]:
    """A row of restarts under the local supervisor, which has no peer."""
    median = statistics.median(seconds)
    reached = median <= GOAL_S
    times = {"median_s": median, "worst_s": max(seconds), "goal_s": GOAL_S}
    return {"what": name, **times, "reached": reached, "note": "", "cause": "" if reached else cause}


def _longest(stages: Mapping[str, Sequence[float]]) -> str:
    return longest({name: statistics.median(seconds) for name, seconds in stages.items()})


if __name__ == "__main__":
    sys.exit(main())
