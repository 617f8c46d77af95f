"""One process of a measurement of `launcher.commands.ablate`. torchrun starts it with the measurement's folder."""

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

from launcher.commands.ablate import Measurement
from resnet_dist.build import Bookkeeping, Worker, build
from resnet_dist.checkpoint.saver import Failed, Saved
from resnet_dist.data import HostBatch
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import EvaluateRecipe, Recipe, ScheduleRecipe
from resnet_dist.stop_request import Request
from resnet_dist.training.device import pin_to_cpus
from resnet_dist.training.evaluate import Evaluation
from resnet_dist.training.trainer import Parts, Trainer

_LEARNING_RATE = 1e-6  # no loss runs away; what is computed takes the same time
_NEVER = Duration(Fraction(10**9), "steps")
_NOTHING = Evaluation(top1=0.0, top5=0.0, loss=0.0, num_samples=1)


def main(folder: Path) -> None:
    """Measure, and let rank 0 write what was found to `folder`/found.json."""
    measurement: Measurement = pickle.loads((folder / "measurement").read_bytes())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if measurement.recipe.speed.cpu_affinity:
        pin_to_cpus(rank, world_size, measurement.num_threads)
    device = torch.device("cuda", rank) if measurement.on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if measurement.on_gpu else "gloo")
    try:
        found = measure(measurement, Worker(rank, world_size, device, measurement.num_threads), folder)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def measure(measurement: Measurement, worker: Worker, folder: Path) -> dict[str, Any]:
    """Images a second over all workers, and rank 0's verdict. The process group must be up where there are several."""
    first, last = measurement.warm_up, measurement.warm_up + measurement.steps
    recipe = _for_speed(measurement.recipe, steps=last + 1)
    bookkeeping = Bookkeeping(
        checkpoints=folder / "checkpoints",
        index=folder / "index",
        checkpoint_every=_NEVER,
        keep=1,
        log_every=max(1, measurement.steps // 4),
    )
    records = _Records()
    built = build(recipe, worker, bookkeeping, records, _Unasked())
    num_parts = recipe.batch.parts
    watch = _Watch(first * num_parts, last * num_parts, _waiting_for(worker.device))
    if measurement.kind == "loader":
        with closing(built.parts.batches_from(0)) as batches:
            for batch in itertools.islice(watch.over(batches), last * num_parts + 1):
                built.parts.to_device(batch)
        built.parts.checkpoints.close(patient=False)
    else:
        _train(built, watch, replay=measurement.kind == "synthetic")
    images_per_s = measurement.steps * recipe.batch.size / watch.seconds
    return {"images_per_s": images_per_s, "verdict": records.verdict if measurement.kind == "whole" else ""}


def _train(built: Trainer, watch: _Watch, *, replay: bool) -> None:
    """Run the trainer as it was built, but for its evaluation, its checkpoints, and with `replay` its input."""
    parts: Parts = built.parts
    built.parts.checkpoints.close(patient=False)

    def batches_from(step: int) -> Generator[HostBatch, None, None]:
        with closing(parts.batches_from(step)) as batches:
            if replay:
                yield from watch.over(itertools.cycle(list(itertools.islice(batches, built.num_micro_batches))))
            else:
                yield from watch.over(batches)

    timed = replace(parts, batches_from=batches_from, evaluate=lambda: _NOTHING, checkpoints=_Unsaved())
    Trainer(timed, built.timetable, built.num_micro_batches).fit()


def _for_speed(recipe: Recipe, steps: int) -> Recipe:
    return replace(
        recipe,
        duration=Duration(Fraction(steps), "steps"),
        schedule=ScheduleRecipe(peak_lr=_LEARNING_RATE, decay="constant"),
        evaluate=EvaluateRecipe(every=_NEVER, batch_size=recipe.evaluate.batch_size),
    )


class _Watch:
    """The time from the demand for micro-batch number `first` to that for number `last`."""

    def __init__(self, first: int, last: int, wait: Callable[[], object]) -> None:
        self._marks, self._wait = (first, last), wait
        self._times: list[float] = []

    def over(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """Pass on `batches`."""
        for number in itertools.count():
            if number in self._marks:
                self._wait()
                self._times.append(time.perf_counter())
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @property
    def seconds(self) -> float:
        """Between the two."""
        started, ended = self._times
        return ended - started


def _waiting_for(device: torch.device) -> Callable[[], object]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


class _Records:
    """A sink that remembers the verdict."""

    def __init__(self) -> None:
        self.verdict = ""

    def write(self, record: Mapping[str, Any]) -> None:
        if record.get("event") == "verdict":
            self.verdict = record["detail"]["text"]

    def close(self) -> None: ...


class _Unsaved:
    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None: ...

    def poll(self) -> list[Saved | Failed]:
        return []

    def close(self, *, patient: bool = True) -> None: ...


class _Unasked:
    def request(self) -> Request:
        return Request.CONTINUE

    def checkpoint(self, path: str, step: int) -> None: ...

    def metrics(self, record: Mapping[str, Any]) -> None: ...


if __name__ == "__main__":
    main(Path(sys.argv[1]))
