"""What a checkpoint of a run holds, and who writes it.

Rank 0 writes what every worker holds. Where the optimizer's state is partitioned, every worker writes its own part
at the same time, and rank 0 ends the checkpoint once all parts are there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.checkpoint.parts import Parts, Writer
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import MIRROR_TIMEOUT_S, Failed, Saved, Saver
from resnet_dist.engines.protocol import Engine, HoldsPart
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import Recipe
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.training.ema import WeightAverage

_IMPATIENT_S = 5.0  # assumption: a scheduler that sends a signal waits half a minute before it kills


@dataclass(frozen=True)
class SavingPlan:
    """Where checkpoints go and which of them stay."""

    folder: Path
    retention: Retention
    mirror: str | None = None  # a URL of object storage
    max_failures: int = 3  # in a row, before the run ends for it
    still_ours: Callable[[], None] = lambda: None  # raises where another process has taken the run over


class RunCheckpoints:
    """Saves an engine's state as checkpoints of a run; every worker has one."""

    def __init__(
        self,
        plan: SavingPlan,
        engine: Engine,
        facts: Mapping[str, Any],
        rank: int,
        sink: Sink,
        average: WeightAverage | None = None,
    ) -> None:
        """`facts` is JSON that every checkpoint says of its run, with `batch_size` among it. A collective."""
        self._engine, self._facts, self._sink, self._average = engine, dict(facts), sink, average
        self._is_first = rank == 0
        self._parts = _parts(engine)
        self._saver: Saver | None = None
        if rank == 0 or self._parts is not None:
            mirror = None if plan.mirror is None or rank > 0 else Mirror(plan.mirror, plan.retention)
            self._saver = Saver(
                plan.folder,
                plan.retention,
                on_event=self._event,
                mirror=mirror,
                # rank 0 hears of every part that cannot be written, and is the one to end the run for it
                max_failures=plan.max_failures if rank == 0 else sys.maxsize,
                parts=self._parts,
                still_ours=plan.still_ours,
            )
        if self._saver is not None and rank == 0:
            # host memory for the first copy: weights, buffers, their average, a state of each weight's size (momentum)
            tensors = [*engine.module.state_dict().values(), *self._ema().values()]
            self._saver.reserve(tensors if self._parts is not None else [*tensors, *engine.module.parameters()])

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        """Save `step` completed steps; returns when it is copied, or with `wait` when it is on the disk. A collective.

        `metrics` are of an evaluation of this very step; empty where there was none.
        """
        part = self._engine.optimizer_part() if isinstance(self._engine, HoldsPart) else None
        optimizer = self._engine.optimizer_state() if part is None else part.state
        scaler = self._engine.scaler_state()
        if self._saver is None:
            return
        state = {**self._facts, "samples": step * self._facts["batch_size"], "scaler": dict(scaler)}
        self._saver.save(
            step,
            self._engine.module.state_dict(),
            optimizer,
            state,
            wait=wait,
            metrics=metrics,
            ema=None if self._average is None else self._ema(),
            pieces=None if part is None else part.pieces,
        )

    def poll(self) -> list[Saved | Failed]:
        """What rank 0 has written since the last call. Raises StorageError when too many failed in a row."""
        reports = [] if self._saver is None else self._saver.poll()
        return reports if self._is_first else []

    def close(self, *, patient: bool) -> None:
        """Wait for what is under way; nothing can be saved afterwards.

        Without patience the mirror, and what other workers still write, get a few seconds: whoever stopped the run may
        kill it soon.
        """
        if self._saver is not None:
            self._saver.close(MIRROR_TIMEOUT_S if patient else _IMPATIENT_S)

    def _ema(self) -> Mapping[str, torch.Tensor]:
        return {} if self._average is None else self._average.state()

    def _event(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self._sink.write({"kind": "event", "step": step, "event": event, "detail": detail})


def _parts(engine: Engine) -> Parts | None:
    """Which part this worker writes, where there are parts: rank 0 says where the workers meet. A collective."""
    if not isinstance(engine, HoldsPart) or engine.optimizer_part() is None:
        return None
    found: list[Any] = [Writer.here()]
    dist.broadcast_object_list(found, src=0)
    return Parts(dist.get_rank(), dist.get_world_size(), found[0])


def facts_of(
    recipe: Recipe, data_fingerprint: str, world_size: int, skipped: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    """What a checkpoint says of the run that it belongs to, as JSON."""
    return {
        "batch_size": recipe.batch.size,
        "data": data_fingerprint,
        "recipe": described(recipe),
        "skipped": [list(run) for run in skipped],
        "torch": torch.__version__,
        "world_size": world_size,
    }


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: what a checkpoint says of itself, and what a resumed run is compared with."""
    return _plain(recipe)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
