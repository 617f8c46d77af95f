"""One process of a measurement of `launcher.commands.ablate`: `python -m launcher.commands.ablate_worker JSON`."""

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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.checks.children import Answer
from launcher.commands.ablate import Measurement
from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data.loader import HostBatch
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import EvaluateRecipe, Recipe, ScheduleRecipe
from resnet_dist.stop_request import Unattended
from resnet_dist.training.evaluate import Evaluation
from resnet_dist.training.trainer import Trainer

_LEARNING_RATE = 1e-6  # keeps the loss finite; the computation takes the same time
_NEVER = Duration(Fraction(10**9), "steps")
_NOTHING = Evaluation(top1=0.0, top5=0.0, loss=0.0, num_samples=1)


def main(folder: Path) -> Answer:
    """Measure as the rank that the environment names."""
    measurement: Measurement = pickle.loads((folder / "measurement").read_bytes())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if measurement.on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if measurement.on_gpu else "gloo")
    try:
        return measure(measurement, Worker(rank, world_size, device, measurement.num_threads), folder)
    finally:
        dist.destroy_process_group()


def measure(measurement: Measurement, worker: Worker, folder: Path) -> Answer:
    """{"images_per_s": over all workers, "bottleneck": text on rank 0}. With several workers a collective."""
    first, last = measurement.warm_up, measurement.warm_up + measurement.steps
    options = RunOptions(
        checkpoint=CheckpointOptions(folder / "checkpoints"),
        index=folder / "index",
        checkpoint_every=_NEVER,
        log_every=max(1, measurement.steps // 4),
    )
    records = _Records()
    trainer = build(_for_speed(measurement.recipe, steps=last + 1), worker, options, records, Unattended())
    trainer.parts.checkpoints.close(patient=False)
    num_micro_batches = trainer.num_micro_batches
    watch = _Stopwatch(first * num_micro_batches, last * num_micro_batches, _synchronize(worker.device))
    if measurement.kind == "loader":
        with closing(trainer.parts.batches_from(0)) as batches:
            for batch in itertools.islice(watch.over(batches), last * num_micro_batches + 1):
                trainer.parts.to_device(batch)
    else:
        _train(trainer, watch, replay=measurement.kind == "synthetic")
    images_per_s = measurement.steps * measurement.recipe.batch.size / watch.seconds
    return {"images_per_s": images_per_s, "bottleneck": records.bottleneck if measurement.kind == "whole" else ""}


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
    )


class _Stopwatch:
    """The time from the request for micro-batch number `first` to that for number `last`."""

    def __init__(self, first: int, last: int, synchronize: Callable[[], object]) -> None:
        self._marks, self._synchronize = (first, last), synchronize
        self._times: list[float] = []

    def over(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """`batches`, timed."""
        for number in itertools.count():
            if number in self._marks:
                self._synchronize()
                self._times.append(time.perf_counter())
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @property
    def seconds(self) -> float:
        """The time between the two requests."""
        started, ended = self._times
        return ended - started


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
    print(json.dumps(main(Path(json.loads(sys.argv[1])["folder"]))))
