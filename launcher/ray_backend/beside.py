"""Evaluation beside training in a Ray actor, on resources of its own: those of one worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from launcher import streams
from launcher.config.schema import RunConfig
from launcher.errors import WorkerLost
from launcher.formatting import printable_lines
from launcher.recovery.portable import portable
from launcher.run.directory import RunDirectory
from resnet_dist.training.beside import Unavailable


class RayEvaluations:
    """Evaluates in an actor, which Ray ends with the worker that started it.

    An actor that Ray does not place within `faults.start_timeout_s` is given up: `ended` returns Unavailable.
    """

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        self._config, self._run = config, run
        self._is_placed, self._is_lost, self._place_by = False, False, 0.0
        self._actor, self._ready, self._result = self._start()

    def start(self, step: int) -> None:
        """Evaluate the checkpoint of `step`, as soon as the actor is placed."""
        if self._is_lost:
            self._actor, self._ready, self._result = self._start()
        self._result = self._actor.evaluate.remote(step)

    def ended(self) -> Mapping[str, Any] | Exception | None:
        """The result of the newest step; None while it is computed, or the actor is not placed yet."""
        try:
            if not self._is_placed:
                self._is_placed = bool(ray.wait([self._ready], timeout=0)[0])
                if not self._is_placed and time.monotonic() > self._place_by:
                    needed = "CPUs" if self._config.resources.gpus_per_worker == 0 else "GPU"
                    return Unavailable(f"the Ray cluster has no {needed} beside those of the workers")
            if not ray.wait([self._result], timeout=0)[0]:
                return None
            result: Mapping[str, Any] | Exception = ray.get(self._result)
        except ray.exceptions.RayError as error:
            self._is_lost = True
            return WorkerLost("its node", 0, f"the evaluating actor is lost: {printable_lines(error)[0]}")
        return result

    def close(self) -> None:
        """End the actor at once."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._actor)

    def _start(self) -> tuple[Any, Any, Any]:
        """A new actor, and its answer once it is placed, twice."""
        resources = self._config.resources
        actor = ray.remote(_Evaluator).options(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            scheduling_strategy="DEFAULT",  # not in the placement group of the workers
            max_restarts=0,
        )
        started = actor.remote(str(self._run.path), resources.cpus_per_worker, resources.gpus_per_worker > 0)
        self._is_placed, self._is_lost = False, False
        self._place_by = time.monotonic() + self._config.faults.start_timeout_s
        ready = started.ready.remote()
        return started, ready, ready


class _Evaluator:
    """The actor."""

    def __init__(self, run: str, num_threads: int, on_gpu: bool) -> None:
        streams.protect()
        self._run, self._num_threads, self._on_gpu = RunDirectory.at(Path(run)), num_threads, on_gpu

    def ready(self) -> None:
        """Return once the actor is placed."""

    def evaluate(self, step: int) -> Mapping[str, Any] | Exception:
        """What an eval record says of the checkpoint of `step`, or the error."""
        import torch

        from launcher.inference.beside import evaluation_of

        device = torch.device("cuda", 0) if self._on_gpu else torch.device("cpu")  # Ray shows it one GPU
        try:
            return evaluation_of(self._run, step, num_threads=self._num_threads, device=device)
        except Exception as error:
            return portable(error)
