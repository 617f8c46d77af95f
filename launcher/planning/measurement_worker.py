"""One process of `launcher.planning.measurement`: `python -m launcher.planning.measurement_worker JSON`."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.checks.children import Answer
from launcher.planning.measurement import Measurement
from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data.loader import HostBatch
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import EvaluateRecipe, Recipe, ScheduleRecipe, StopAtRecipe
from resnet_dist.stop_request import Unattended
from resnet_dist.training.evaluate import Evaluation, evaluation_mode, forward
from resnet_dist.training.evaluator import Evaluator
from resnet_dist.training.trainer import Trainer

_LEARNING_RATE = 1e-6  # keeps the loss finite; the computation takes the same time
_NEVER = Duration(Fraction(10**9), "steps")
_ENDS = (0.75, 0.95)  # of training and of evaluation, as parts of the time
_LEAST_STEPS = 3  # that are trained even if the time is over
_NOTHING = Evaluation(top1=0.0, top5=0.0, loss=0.0, num_samples=1)


def main(folder: Path, started: float) -> Answer:
    """Measure as the rank that the environment names. `started`: when the processes were, in seconds of `time.time`."""
    measurement: Measurement = pickle.loads((folder / "measurement").read_bytes())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if measurement.on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if measurement.on_gpu else "gloo")
    try:
        return measure(measurement, Worker(rank, world_size, device, measurement.num_threads), folder, started)
    finally:
        dist.destroy_process_group()


def measure(measurement: Measurement, worker: Worker, folder: Path, started: float = 0.0) -> Answer:
    """The fields of `Speed`, where "bottleneck" is a text on rank 0. With several workers a collective."""
    first, last = measurement.warm_up, measurement.warm_up + measurement.steps
    options = RunOptions(
        checkpoint=CheckpointOptions(folder / "checkpoints"),
        index=folder / "index",
        checkpoint_every=_NEVER,
        log_every=max(1, measurement.steps // 4),
    )
    records, recipe = _Records(), measurement.recipe
    ends = [None if measurement.seconds is None else started + part * measurement.seconds for part in _ENDS]
    watch = _Stopwatch(recipe.batch.parts, (first, last), _synchronize(worker.device), ends[0])
    trainer = build(_for_speed(recipe, steps=last + 1), worker, options, records, watch)
    trainer.parts.checkpoints.close(patient=False)
    started_s = time.time() - started
    if measurement.kind == "loader":
        with closing(trainer.parts.batches_from(0)) as batches:
            for batch in itertools.islice(watch.over(batches), last * recipe.batch.parts + 1):
                trainer.parts.to_device(batch)
    else:
        _train(trainer, watch, replay=measurement.kind == "synthetic")
    times_s = watch.step_times_s
    evaluator, answer = trainer.parts.evaluate, {}
    if measurement.seconds is not None and isinstance(evaluator, Evaluator):
        answer = {
            "evaluation_s": _evaluation_s(evaluator, measurement.seconds / 4),
            "num_val": evaluator.val.num_samples,
        }
    return {
        "images_per_s": len(times_s) * recipe.batch.size / sum(times_s),
        "bottleneck": records.bottleneck if measurement.kind == "whole" else "",
        "step_times_s": times_s,
        "start_s": started_s,
        "num_samples": trainer.timetable.num_samples,
        **answer,
    }


def _evaluation_s(evaluator: Evaluator, until: float) -> float | None:
    """The time of an image in an evaluation, from the first images of this worker; None if it has none."""
    num, started = 0, time.perf_counter()
    with torch.no_grad(), evaluation_mode(evaluator.model):
        for batch in evaluator.val.batches():
            forward(evaluator.model, batch.images, evaluator.autocast, None).sum().item()
            num += len(batch.images)
            if time.time() > until:
                break
    return (time.perf_counter() - started) / num if num else None


def _train(trainer: Trainer, watch: _Stopwatch, *, replay: bool) -> None:
    """Train without evaluation and checkpoints, with `replay` on the same micro-batches again and again."""
    parts = trainer.parts

    def batches_from(step: int) -> Generator[HostBatch, None, None]:
        with closing(parts.batches_from(step)) as batches:
            if replay:
                yield from watch.over(itertools.cycle(list(itertools.islice(batches, trainer.num_micro_batches))))
            else:
                yield from watch.over(batches)

    timed = replace(parts, batches_from=batches_from, evaluate=lambda step: _NOTHING, checkpoints=_NoCheckpoints())
    if replay:
        timed = replace(timed, ledger=None)  # which would find that samples come twice
    Trainer(timed, trainer.timetable, trainer.num_micro_batches).fit()


def _for_speed(recipe: Recipe, steps: int) -> Recipe:
    """The recipe for a few steps; with progressive resizing, all at the largest resolution."""
    return replace(
        recipe,
        data=replace(recipe.data, resolution=max(recipe.data.training_resolutions), progressive={}),
        duration=Duration(Fraction(steps), "steps"),
        schedule=ScheduleRecipe(peak_lr=_LEARNING_RATE, decay="constant"),
        evaluate=EvaluateRecipe(every=_NEVER, batch_size=recipe.evaluate.batch_size),
        stop_at=StopAtRecipe(),
    )


class _Stopwatch(Unattended):
    """The times of the steps from number `first` to `last`; each begins with the request for its first micro-batch.

    As the supervisor, it ends the training at the time `until`, if it is given; half of the steps may then be warm-up.
    """

    def __init__(
        self,
        num_micro_batches: int,
        steps: tuple[int, int],
        synchronize: Callable[[], object],
        until: float | None = None,
    ) -> None:
        self._num_micro_batches, self._steps, self._synchronize = num_micro_batches, steps, synchronize
        self._until = until
        self._times: list[float] = []

    def over(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """`batches`, timed."""
        for number in itertools.count():
            step, micro_batch = divmod(number, self._num_micro_batches)
            if micro_batch == 0:
                if step in self._steps:
                    self._synchronize()
                self._times.append(time.perf_counter())
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def stop_requested(self) -> bool:
        """Whether the time is over."""
        return self._until is not None and len(self._times) > _LEAST_STEPS and time.time() > self._until

    @property
    def step_times_s(self) -> list[float]:
        """Of the steps after the warm-up."""
        first, last = self._steps
        times = self._times[: last + 1]
        return [after - before for before, after in pairwise(times[min(first, len(times) // 2) :])]


def _synchronize(device: torch.device) -> Callable[[], object]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


class _Records:
    """A sink that keeps the text of the bottleneck event."""

    bottleneck = ""

    def write(self, record: Mapping[str, Any]) -> None:
        if record.get("event") == "bottleneck":
            self.bottleneck = record["detail"]["text"]

    def close(self) -> None: ...


class _NoCheckpoints:
    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None: ...

    def poll(self) -> None: ...

    def close(self, *, patient: bool) -> None: ...


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(main(Path(given["folder"]), given["started"])))
