"""A few training steps of a model on generated images. `check_model` compares their results."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_dist.engines.ddp import DdpEngine, DdpSettings
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.models import build_model
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.optim import build_optimizer
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import ModelRecipe, OptimizerRecipe
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training.device import seed_generators
from resnet_dist.training.evaluate import evaluate

CPU = torch.device("cpu")
PEAK_LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-3
SEED = 1
TIMEOUT_S = 300.0
AFTER_A_FAILURE_S = 10.0  # time limit for the other workers
HUNG = 3  # exit code of the parent process of the workers


@dataclass(frozen=True)
class Trial:
    """The settings of a trial."""

    model: str  # package.module:function
    arguments: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    resolution: int = 32
    batch_size: int = 10
    span: int | None = None  # samples; None: the whole micro-batch
    num_steps: int = 4
    workers: int = 1
    num_micro_batches: int = 1
    engine: str = "ddp"  # or zero-0, zero-1, zero-2, whose weights are float32
    compile_backend: str | None = None  # of torch.compile; None: not compiled
    evaluates: bool = False  # after every step
    resumes_after: int | None = None  # steps; a new model with the saved state does the rest


@dataclass(frozen=True)
class Result:
    """The result of a trial on one worker."""

    losses: list[float]
    state: dict[str, Tensor]  # of the model, at the end
    evaluation: float  # loss on other images, at the end


def batch(trial: Trial, step: int, positions: range) -> MicroBatch:
    """Images and labels at `positions` of a step's batch: functions of the step and the position."""
    dtype = torch.float64 if trial.engine == "ddp" else torch.float32
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (trial.batch_size, 3, trial.resolution, trial.resolution)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    # means and deviations depend on the position, so that statistics of the wrong samples change the result
    spread = torch.linspace(0.5, 1.5, trial.batch_size, dtype=torch.float64).view(-1, 1, 1, 1)
    images = images * spread + spread
    labels = torch.randint(trial.num_classes, (trial.batch_size,), generator=generator)
    own = slice(positions.start, positions.stop)
    return MicroBatch(images[own].to(dtype), labels[own])


class Trainee:
    """A model, its engine and its exchange, on one worker."""

    def __init__(self, trial: Trial, rank: int) -> None:
        self.trial, self.rank = trial, rank
        self.layout = BatchLayout(trial.batch_size, trial.num_micro_batches, trial.workers)
        spans = Spans(self.layout, rank, "global" if trial.span is None else trial.span)
        recipe = ModelRecipe(name=trial.model, num_classes=trial.num_classes, arguments=trial.arguments)
        self.model = use_spans(build_model(recipe, SEED), spans)
        self.model.to(torch.float64 if trial.engine == "ddp" else torch.float32)
        self.exchange = StepExchange(RunningStatistics(self.model), CPU, trial.batch_size)
        self.engine: Engine | None = None

    def load(self, model: Mapping[str, Tensor], optimizer: Any) -> None:
        """Continue from a saved state."""
        self.model.load_state_dict(model)
        self._engine().load_optimizer_state(optimizer)

    def step(self, step: int) -> float:
        """Step number `step`, 0 the first; returns its loss."""
        seed_generators(SEED, step, self.rank, CPU)
        micro_batches = (
            batch(self.trial, step, positions) for positions in self.layout.worker_micro_batches(self.rank)
        )
        sums = self._engine().step(micro_batches, PEAK_LR)
        return self.exchange.finish(step + 1, sums).read().loss

    def evaluate(self) -> float:
        """The loss on other images, split over the workers."""
        layout = BatchLayout(self.trial.batch_size, 1, self.trial.workers)
        batches = [batch(self.trial, -1, layout.worker_micro_batch(0, self.rank))]
        return evaluate(self.model, batches, self.trial.batch_size, CPU).loss

    def _engine(self) -> Engine:
        if self.engine is None:
            trial = self.trial
            recipe = OptimizerRecipe(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
            optimizer = build_optimizer(recipe, self.model)
            make: Callable[..., Engine]
            make = partial(DdpEngine, settings=DdpSettings(compile_backend=trial.compile_backend))
            if trial.engine != "ddp":
                from resnet_dist.engines.zero import ZeroEngine

                make = partial(ZeroEngine, stage=int(trial.engine.removeprefix("zero-")))
            self.engine = make(
                self.model,
                optimizer,
                cross_entropy_sum,
                batch_size=trial.batch_size,
                num_micro_batches=trial.num_micro_batches,
            )
        return self.engine


def train(trial: Trial, rank: int = 0) -> Result:
    """Run `trial` on this worker. A collective; several workers need a process group."""
    trainee = Trainee(trial, rank)
    losses = []
    for step in range(trial.num_steps):
        if step == trial.resumes_after:
            before, trainee = trainee, Trainee(trial, rank)
            assert before.engine is not None  # created by the first step
            saved = {name: tensor.clone() for name, tensor in before.model.state_dict().items()}
            state = before.engine.optimizer_state()
            trainee.load(saved, {name: {key: t.clone() for key, t in own.items()} for name, own in state.items()})
        losses.append(trainee.step(step))
        if trial.evaluates:
            trainee.evaluate()
    evaluation = trainee.evaluate()
    end = {name: tensor.detach().clone() for name, tensor in trainee.model.state_dict().items()}
    return Result(losses, end, evaluation)


def run(trials: Sequence[Trial]) -> list[list[Result] | str]:
    """The results of each trial by rank, or the error messages of its workers if it failed.

    Trials on one worker run in this process, unless one of them uses ZeRO, which needs a process group. Others run in
    child processes, which get this process's `sys.path` to import the models. Trials with the same number of workers
    use the same processes, one after another.
    """
    results: list[list[Result] | str] = [""] * len(trials)
    for workers in sorted({trial.workers for trial in trials}):
        numbers = [number for number, trial in enumerate(trials) if trial.workers == workers]
        if workers == 1 and all(trials[number].engine == "ddp" for number in numbers):
            for number in numbers:
                results[number] = _in_this_process(trials[number])
        else:
            for number, result in zip(numbers, _in_processes([trials[n] for n in numbers], workers), strict=True):
                results[number] = result
    return results


def _in_this_process(trial: Trial) -> list[Result] | str:
    try:
        return [train(trial)]
    except Exception as error:
        return _line(error)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _in_processes(trials: Sequence[Trial], workers: int) -> Iterator[list[Result] | str]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "trials.json").write_text(json.dumps([asdict(trial) for trial in trials]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", "from resnet_dist.testing.trial import main; main()", str(folder)]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            hung = process.wait() == HUNG
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        why = "deadlock: the workers wait for each other" if hung else "not run: an earlier trial failed"
        for number in range(len(trials)):
            files = [folder / f"{number}-{rank}.pt" for rank in range(workers)]
            errors = [file for rank in range(workers) if (file := folder / f"{number}-{rank}.error").exists()]
            if all(file.exists() for file in files):
                yield [Result(**torch.load(file, weights_only=True)) for file in files]
            else:
                yield "; ".join(dict.fromkeys(file.read_text() for file in errors)) or why


def main() -> None:
    """Start the workers of the trials in FOLDER and wait for them. Exits with HUNG if some do not end.

    On Linux the workers are forks of this process, which has one thread, so torch is imported only once.
    """
    folder = Path(sys.argv[1])
    trials = [Trial(**content) for content in json.loads((folder / "trials.json").read_text())]
    if any(trial.engine != "ddp" for trial in trials):
        import resnet_dist.engines.zero  # noqa: F401 # imports DeepSpeed, which takes seconds, once for all workers
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=_work, args=(folder, trials, rank)) for rank in range(trials[0].workers)]
    for process in processes:
        process.start()
    end_by = time.monotonic() + TIMEOUT_S
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            end_by = min(end_by, time.monotonic() + AFTER_A_FAILURE_S)  # others may wait for the failed one
        if time.monotonic() > end_by:
            os._exit(HUNG)  # the process that started this one kills the workers
        time.sleep(0.02)


def _work(folder: Path, trials: Sequence[Trial], rank: int) -> None:
    """Run as one worker: the trials one after another, up to the first that fails."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=trials[0].workers)
    for number, trial in enumerate(trials):
        try:
            result = train(trial, rank)
        except Exception as error:
            (folder / f"{number}-{rank}.error").write_text(_line(error))
            os._exit(1)  # destroying the group would wait for workers that still use it
        unfinished = folder / f"{number}-{rank}.unfinished"
        torch.save(asdict(result), unfinished)
        unfinished.rename(folder / f"{number}-{rank}.pt")
    dist.destroy_process_group()
