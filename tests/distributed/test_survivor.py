"""A worker that survives another one goes on from memory with the bits of a run that nobody disturbed.

This file, as a script, runs two workers and kills one of them with SIGKILL at a stated moment of a step. What the other
one keeps must be the undisturbed run's checkpoint of that step, or nothing; the run is then finished from it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torch import Tensor

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.recovery.attempt import AttemptSpec
from launcher.run.directory import RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import train_worker
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.saver import Saver
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.telemetry.metrics_file import read_metrics
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.survivor import MemoryState
from resnet_dist.training.trainer import Trainer
from tests.distributed.forked import run_script

STEPS = 9
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "run",
    "place": "local",
    "duration": f"{STEPS} steps",
    "model": {"name": "resnet20", "num_classes": 2},
    "data": {"resolution": 8, "flip": True, "crop_area": [0.7, 1.0]},
    "batch": {"size": 20, "num_micro_batches": 2},  # an epoch ends in steps 3, 6 and 8
    "batch_norm": {"span": 10},  # over both workers
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "lr_in_momentum": False},
    "schedule": {"peak_lr": 0.5, "warmup": "3 steps", "decay": "cosine"},
    "regularization": {"mixup": 0.2, "dropout": 0.1},
    "ema": {"decay": 0.9},
    "evaluate": {"every": "3 steps"},
    "checkpoint": {"every": "3 steps", "keep": 100},
    "faults": {"preflight": False},
    "log": {"every_steps": 1, "layers_every_steps": 2, "tensorboard": False},
    "resources": {"cpus_per_worker": 1},
}
KEPT_TIMEOUT_S = 60.0


def write_images(root: Path) -> Path:
    """Two classes of noisy images: 52 to train with, 10 to evaluate."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 26), ("val", 5)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(num):
                Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


# --- moments of a step


@dataclass(frozen=True)
class Moment:
    """Where the worker dies: at a call number of a function, before or after it."""

    owner: type | object
    name: str
    after: bool = False

    def __str__(self) -> str:
        place = self.owner.__name__ if hasattr(self.owner, "__name__") else type(self.owner).__name__
        return f"{'after' if self.after else 'before'} {place}.{self.name}"


MOMENTS = [
    Moment(owner, name, after)
    for owner, name in (
        (Trainer, "_gradients"),
        (DdpEngine, "_run"),
        (DdpEngine, "_forward_backward"),
        (DdpEngine, "_norms"),
        (DdpEngine, "update"),
        (StepExchange, "finish"),
        (RunningStatistics, "sums"),
        (RunningStatistics, "_pooled"),
        (RunningStatistics, "clear"),
        (WeightAverage, "update"),
        (Trainer, "_end_step"),
        (Trainer, "_record"),
        (Trainer, "_evaluate"),
        (Trainer, "_save"),
        (Saver, "save"),
        (Saver, "_write"),
        (dist, "all_reduce"),
    )
    for after in (False, True)
]


@contextlib.contextmanager
def dying(moment: Moment, call: int) -> Iterator[None]:
    """Kill this process at call number `call` of the moment's function."""
    function, calls = getattr(moment.owner, moment.name), 0

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        dies = calls == call
        if dies and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with patch.object(moment.owner, moment.name, wrapped):
        yield


@contextlib.contextmanager
def delayed(seed: int) -> Iterator[None]:
    """Let some of the functions between which a worker may be hit take a little longer."""
    drawn = random.Random(seed)
    with contextlib.ExitStack() as stack:
        for owner, name in {(moment.owner, moment.name) for moment in MOMENTS if moment.owner is not dist}:
            function, seconds = getattr(owner, name), drawn.choice((0.0, 0.0, 0.002, 0.01))

            def wrapped(*arguments: Any, _function: Any = function, _s: float = seconds, **named: Any) -> Any:
                time.sleep(_s)
                return _function(*arguments, **named)

            stack.enter_context(patch.object(owner, name, functools.wraps(function)(wrapped)))
        yield


# --- cases


@dataclass(frozen=True)
class Case:
    moment: Moment
    call: int
    victim: int  # rank
    seed: int  # of the delays
    new_process: bool  # replaces the victim; else the other worker goes on alone

    @classmethod
    def drawn(cls, moment: Moment, draws: random.Random) -> Case:
        only_rank_0 = moment.owner is Saver
        calls = 3 if moment.name in ("_evaluate", "_save", "save", "_write") else STEPS
        victim = 0 if only_rank_0 else draws.randrange(2)
        return cls(moment, draws.randint(1, calls), victim, draws.randrange(1000), draws.random() < 0.8)


# --- workers


@dataclass(frozen=True)
class Attempt:
    """One attempt of the run in `folder`: a process group of its own."""

    config: RunConfig
    folder: Path
    number: int
    world_size: int
    memory: tuple[int, int] | None = None  # step and rank

    def train(self, rank: int, kept: CheckpointContent | None) -> CheckpointContent | None:
        """Train on this worker; returns None at the end of the run, else what it keeps. Raises what training raises."""
        store = dist.FileStore(str(self.folder / f"store-{self.number}"), self.world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=self.world_size)
        run = RunDirectory(Path(self.config.storage), self.config.name)
        saved = restore.newest(run.checkpoints) if self.memory is None else None
        memory = None if self.memory is None else MemoryState(*self.memory, kept if rank == self.memory[1] else None)
        first = self.memory[0] if self.memory else saved.step if saved else 0
        spec = AttemptSpec(self.number, first, None if saved is None else saved.path, memory=self.memory)
        states: list[CheckpointContent] = []
        try:
            assignment = Assignment(spec, rank, self.world_size, rank, self.world_size, watched=False)
            supervisor = FileSupervisor(run.logs(self.number), rank)
            train_worker(self.config, assignment, supervisor, memory=memory, keep=states.append)
        except Exception as error:
            print(f"attempt {self.number}, rank {rank}: {type(error).__name__}", flush=True)
            torch.save(states, self.folder / f"kept-{self.number}-{rank}")
            return states[0] if states else None
        finally:
            dist.destroy_process_group()
        os._exit(0)

    def finish(self, rank: int, kept: CheckpointContent | None) -> None:
        """As `train`; an error is one of the test."""
        self.train(rank, kept)
        os._exit(1)


def forked(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(workers: list[multiprocessing.process.BaseProcess]) -> None:
    """Wait for workers that must reach the end of the run."""
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def waited(path: Path, *processes: multiprocessing.process.BaseProcess) -> bool:
    """Wait for a file; False if all processes end before."""
    deadline = time.monotonic() + KEPT_TIMEOUT_S
    while not path.exists():
        if all(process.exitcode is not None for process in processes):
            return path.exists()
        assert time.monotonic() < deadline, path
        time.sleep(0.005)
    return True


def config_of(folder: Path, root: Path, **more: Any) -> RunConfig:
    file = folder / "config.yaml"
    content = {**CONFIG, "storage": str(folder / "runs"), "data": {**CONFIG["data"], "root": str(root)}, **more}
    file.write_text(yaml.safe_dump(content))
    return configs.load(file)


def undisturbed(folder: Path, root: Path, **more: Any) -> RunDirectory:
    """The run that nobody disturbs, with a checkpoint of every step."""
    folder.mkdir()
    config = config_of(folder, root, **{**more, "checkpoint": {"every": "1 steps", "keep": 100}})
    attempt = Attempt(config, folder, 1, 2)
    finish([forked(functools.partial(attempt.finish, rank, None)) for rank in range(2)])
    return RunDirectory(folder / "runs", "run")


def disturbed(folder: Path, root: Path, case: Case, **more: Any) -> tuple[RunDirectory, int | None]:
    """A run whose worker is killed; the other one goes on, with a new worker or alone.

    Returns the run and the step from which it has gone on in memory; None: from a checkpoint, or nothing was killed.
    """
    folder.mkdir()
    config = config_of(folder, root, **more)
    victim, survivor = case.victim, 1 - case.victim
    first, go = Attempt(config, folder, 1, 2), folder / "go"

    def die() -> None:
        with dying(case.moment, case.call):
            first.train(victim, None)

    def survive() -> None:
        with delayed(case.seed):
            kept = first.train(survivor, None)
        (folder / "ended").touch()
        while not go.exists():
            time.sleep(0.005)
        step = json.loads(go.read_text())
        rank, world_size = (survivor, 2) if case.new_process else (0, 1)
        Attempt(config, folder, 2, world_size, None if step is None else (step, rank)).finish(rank, kept)

    dead, alive = forked(die), forked(survive)
    if not waited(folder / "ended", alive):
        dead.join()  # the moment never came, or after the end of the other worker
        assert alive.exitcode == 0
        assert dead.exitcode in (0, -signal.SIGKILL)
        return RunDirectory(folder / "runs", "run"), None
    dead.join()
    assert dead.exitcode == -signal.SIGKILL
    states = torch.load(folder / f"kept-1-{survivor}", weights_only=False)
    step = states[0].step if states else None
    (folder / "go.new").write_text(json.dumps(step))
    (folder / "go.new").rename(go)
    second = Attempt(config, folder, 2, 2, None if step is None else (step, survivor))
    finish([alive, *([forked(functools.partial(second.finish, victim, None))] if case.new_process else [])])
    return RunDirectory(folder / "runs", "run"), step


# --- what must be equal


def assert_is_checkpoint(state: CheckpointContent, of: RunDirectory) -> None:
    """What a worker keeps is the checkpoint of that step, bit for bit."""
    checkpoint = restore.load(of.checkpoints / f"step-{state.step:08d}").content()
    assert_same_tensors(state.model, checkpoint.model)
    assert_same_tensors(state.flat_optimizer(), checkpoint.flat_optimizer())
    assert_same_tensors(state.ema or {}, checkpoint.ema or {})
    facts = {key: value for key, value in json.loads(state.state_json()).items() if key != "unfinished"}
    found, expected = plain(facts), plain(checkpoint.state)
    assert {**found, "metrics": None} == {**expected, "metrics": None}
    if "metrics" in found:
        assert found["metrics"] == expected["metrics"]


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(state)))


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert different == []


MEASURED = ("time_s", "images_per_s", "step_time_s", "data_wait_s", "time_left_s", "memory_bytes", "gpu_memory_bytes")


def records(run: RunDirectory, kinds: tuple[str, ...] = ("train", "eval", "layers", "epoch_complete")) -> list[Any]:
    """The records of steps, without what was measured, as readers get them."""
    return [
        {key: value for key, value in record.items() if key not in MEASURED}
        for record in read_metrics(run.metrics)
        if record["kind"] in kinds or record.get("event") in kinds
    ]


def assert_no_record_was_written_again(run: RunDirectory) -> None:
    """But those of the steps that an attempt repeats, and evaluations that were interrupted."""
    written: list[tuple[str, int]] = []
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        if record.get("event") == "started":
            written = [(kind, step) for kind, step in written if step <= record["step"]]
        elif record["kind"] in ("train", "layers") or record.get("event") == "epoch_complete":
            written.append((record.get("event", record["kind"]), record["step"]))
    assert len(written) == len(set(written))


def assert_same_curve(found: RunDirectory, expected: RunDirectory, precision: str) -> None:
    """On another number of workers, sums have another order."""
    curves = [{record["step"]: record["loss"] for record in records(run, ("train",))} for run in (found, expected)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-9 if precision == "float64" else 1e-3)
    assert list(curves[0]) == list(range(1, STEPS + 1))


def assert_same_run(found: RunDirectory, expected: RunDirectory) -> None:
    assert records(found) == records(expected)
    assert_no_record_was_written_again(found)
    steps = sorted(int(path.name.partition("-")[2]) for path in found.checkpoints.iterdir())
    assert steps[-1] == STEPS
    for step in steps:
        state = restore.load(found.checkpoints / f"step-{step:08d}").content()
        if state.state["world_size"] == 2:
            assert_is_checkpoint(state, expected)


# --- the script: `python test_survivor.py FOLDER NUM_CASES SEED PRECISION`


def run_cases(folder: Path, num_cases: int, seed: int, precision: str) -> None:
    torch.set_num_threads(1)
    root, draws, more = write_images(folder / "images"), random.Random(seed), {"precision": precision}
    expected = undisturbed(folder / "undisturbed", root, **more)
    moments = [one for _ in range(-(-num_cases // len(MOMENTS))) for one in draws.sample(MOMENTS, len(MOMENTS))]
    cases = [Case.drawn(moment, draws) for moment in moments[:num_cases]]
    kept = 0
    for number, case in enumerate(cases):
        print(f"{number}: {case}", flush=True)
        found, step = disturbed(folder / str(number), root, case, **more)
        for file in (folder / str(number)).glob("kept-*"):
            for state in torch.load(file, weights_only=False):
                assert_is_checkpoint(state, expected)
        if case.new_process:
            assert_same_run(found, expected)
        else:
            assert_same_curve(found, expected, precision)
        kept += step is not None
        print(f"    goes on from memory at step {step}" if step is not None else "    from a checkpoint", flush=True)
    print(f"{kept} of {len(cases)} went on from memory")


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_run_goes_on_from_the_memory_of_the_worker_that_was_not_killed(tmp_path: Path, precision: str) -> None:
    seed = int.from_bytes(os.urandom(2))  # printed with a failure: it can be had again
    done = run_script(__file__, str(tmp_path), "5", str(seed), precision)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
