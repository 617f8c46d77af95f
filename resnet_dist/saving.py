"""What a checkpoint of a run holds, and who writes it: rank 0, of what all workers gather."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import MIRROR_TIMEOUT_S, Failed, Saved, Saver
from resnet_dist.durations import Duration
from resnet_dist.engines.protocol import Engine
from resnet_dist.recipe import Recipe
from resnet_dist.sink import Sink

_IMPATIENT_S = 5.0  # assumption: a scheduler that sends a signal waits half a minute before it kills


@dataclass(frozen=True)
class SavingPlan:
    """Where checkpoints go and which of them stay."""

    folder: Path
    retention: Retention
    mirror: str | None = None  # a URL of object storage
    max_failures: int = 3  # in a row, before the run ends for it


class RunCheckpoints:
    """Saves an engine's state as checkpoints of a run; every worker has one, rank 0's writes."""

    def __init__(self, plan: SavingPlan, engine: Engine, facts: Mapping[str, Any], rank: int, sink: Sink) -> None:
        """`facts` is JSON that every checkpoint says of its run, with `batch_size` among it."""
        self._engine, self._facts, self._sink = engine, dict(facts), sink
        self._saver: Saver | None = None
        if rank == 0:
            mirror = None if plan.mirror is None else Mirror(plan.mirror, plan.retention)
            self._saver = Saver(
                plan.folder, plan.retention, on_event=self._event, mirror=mirror, max_failures=plan.max_failures
            )
            # host memory for the first copy: weights, buffers, and a state of each weight's size (momentum)
            self._saver.reserve([*engine.module.state_dict().values(), *engine.module.parameters()])

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        """Save `step` completed steps; returns when it is copied, or with `wait` when it is on the disk. A collective.

        `metrics` are of an evaluation of this very step; empty where there was none.
        """
        optimizer = self._engine.optimizer_state()
        scaler = self._engine.scaler_state()
        if self._saver is None:
            return
        state = {**self._facts, "samples": step * self._facts["batch_size"], "scaler": dict(scaler)}
        model = self._engine.module.state_dict()
        self._saver.save(step, model, optimizer, state, wait=wait, metrics=metrics)

    def poll(self) -> list[Saved | Failed]:
        """What has been written since the last call. Raises StorageError when too many failed in a row."""
        return [] if self._saver is None else self._saver.poll()

    def close(self, *, patient: bool) -> None:
        """Wait for what is under way; nothing can be saved afterwards.

        Without patience the mirror gets a few seconds: whoever stopped the run may kill it soon.
        """
        if self._saver is not None:
            self._saver.close(MIRROR_TIMEOUT_S if patient else _IMPATIENT_S)

    def _event(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self._sink.write({"kind": "event", "step": step, "event": event, "detail": detail})


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
