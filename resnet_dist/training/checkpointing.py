"""The content of a run's checkpoints, and the workers that write them.

Rank 0 writes the state that all workers have in common. If the optimizer state is partitioned, every worker writes its
own part at the same time, and rank 0 completes the checkpoint when all parts are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.folders import new_writer
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.saver import MIRROR_TIMEOUT_S, CheckpointOptions, Saver
from resnet_dist.data.ledger import Ledger
from resnet_dist.engines.protocol import Engine, HoldsPart, OptimizerState
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.recipe.schema import Recipe, plain
from resnet_dist.telemetry.json_lines import without_non_finite
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.ema import WeightAverage

_SHORT_WAIT_S = 5.0  # assumption: a scheduler waits half a minute between its signal and a kill


class RunCheckpoints:
    """Saves an engine's state as checkpoints of a run; every worker has one."""

    def __init__(
        self,
        options: CheckpointOptions,
        engine: Engine,
        facts: Mapping[str, Any],
        rank: int,
        sink: Sink,
        average: WeightAverage | None = None,
        ledger: Ledger | None = None,
        bad: BadImages | None = None,
    ) -> None:
        """`facts` is JSON that is written to every checkpoint; it has the key `batch_size`. A collective."""
        self._engine, self._facts, self._sink, self._average = engine, dict(facts), sink, average
        self._ledger, self._bad = ledger, bad
        parts = _part_files(engine)
        self._saver: Saver | None = None
        if rank == 0 or parts is not None:
            self._saver = Saver(options, on_event=self._event, parts=parts)
        if self._saver is not None and rank == 0:
            # host memory for the first copy: weights, buffers, their average, a state of each weight's size (momentum)
            tensors = [*engine.module.state_dict().values(), *self._ema().values()]
            self._saver.reserve(tensors if parts is not None else [*tensors, *engine.module.parameters()])

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        """Save `step` completed steps; returns after the copy, or with `wait` after the write. A collective.

        `metrics` are those of the evaluation after this step; empty if there was none.
        """
        part = self._engine.optimizer_part() if isinstance(self._engine, HoldsPart) else None
        optimizer = self._engine.optimizer_state() if part is None else part.state
        if self._saver is not None:
            content = self._content(step, metrics, optimizer)
            self._saver.save(content if part is None else replace(content, shards=part.shards), wait=wait)
        if wait:
            self._wait_for_others()

    def content(self, step: int, metrics: Mapping[str, float]) -> CheckpointContent:
        """What `save` would write, on any worker: the live tensors. Not for an optimizer state in parts."""
        return self._content(step, metrics, self._engine.optimizer_state())

    def _content(self, step: int, metrics: Mapping[str, float], optimizer: OptimizerState) -> CheckpointContent:
        scaler = dict(self._engine.scaler_state())
        state = {**self._facts, "samples": step * self._facts["batch_size"], "scaler": scaler}
        if self._ledger is not None:
            state["ledger"] = self._ledger.state()
        if self._bad is not None:
            state["bad_images"] = self._bad.state()
        if metrics:
            state["metrics"] = without_non_finite({name: float(value) for name, value in metrics.items()})
        ema = None if self._average is None else self._ema()
        return CheckpointContent(step, self._engine.module.state_dict(), optimizer, state, ema)

    def poll(self) -> None:
        """Report the saves that have ended. Raises StorageError on rank 0 after too many consecutive failures."""
        if self._saver is not None:
            self._saver.poll()

    def close(self, *, patient: bool) -> None:
        """Wait for the save and the upload in progress; nothing can be saved afterwards.

        If not `patient`, wait only a few seconds for the mirror and for the parts of other workers, because the
        scheduler may kill the run soon.
        """
        if self._saver is not None:
            self._saver.close(MIRROR_TIMEOUT_S if patient else _SHORT_WAIT_S)

    def _wait_for_others(self) -> None:
        """Wait until every worker has come here: if rank 0 dies before that, the others still have the state."""
        if dist.is_initialized():
            number = torch.zeros((), device=next(self._engine.module.parameters()).device)
            dist.all_reduce(number)
            number.item()

    def _ema(self) -> Mapping[str, torch.Tensor]:
        return {} if self._average is None else self._average.state()

    def _event(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self._sink.write({"kind": "event", "step": step, "event": event, "detail": detail})


def _part_files(engine: Engine) -> PartFiles | None:
    """Return the files of a partitioned optimizer state, with the folder that rank 0 names. A collective."""
    if not isinstance(engine, HoldsPart) or engine.optimizer_part() is None:
        return None
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return PartFiles(rank, world_size, run_on_rank_0(new_writer, rank, world_size))


def facts_of(
    recipe: Recipe,
    of_data: Mapping[str, str | None],
    world_size: int,
    skipped: tuple[tuple[int, int], ...],
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """The facts of a run that its checkpoints record, as JSON. `of_data`: `shared_index.facts_of_data`.

    `classes`: the names by label, for those who use the model.
    """
    return {
        "batch_size": recipe.batch.size,
        "classes": list(classes),
        **of_data,
        "recipe": plain(recipe),
        "skipped": [list(run) for run in skipped],
        "torch": torch.__version__,
        "world_size": world_size,
    }
