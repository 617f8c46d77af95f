"""A start from the state that a worker has kept in memory, in place of a checkpoint on disk.

When a worker of a DDP run is killed, the others still have the whole state after the last completed step. One of them
keeps a copy (`Trainer.state`), and the next attempt starts from it (`MemoryState`). The copy is what a checkpoint of
that step contains, and what the killed worker may not have done after that step:

    content.state["unfinished"]["records"]    records of the last steps, which rank 0 may not have written
    content.state["unfinished"]["beside"]     whether the evaluation after the step was handed over (evaluate.beside)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.engines.protocol import Engine, in_two_parts
from resnet_dist.models.batch_norm import SpanBatchNorm
from resnet_dist.telemetry.json_lines import without_non_finite
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.telemetry.step_totals import PendingTotals
from resnet_dist.training.bad_images import BadImages

_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class MemoryState:
    """Where an attempt starts instead of at a checkpoint on disk."""

    step: int  # completed steps
    rank: int  # the worker of the new attempt that holds the state
    content: CheckpointContent | None  # on that worker, on the CPU; None on the others

    def held(self) -> CheckpointContent:
        """The content; to be called on the worker that holds it."""
        assert self.content is not None
        assert self.content.step == self.step
        return self.content


@dataclass(frozen=True)
class Start:
    """What is known of the first step's state besides the tensors: the same on every worker."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # of the evaluation after that step; empty: none
    beside: bool = True  # whether that evaluation may have been handed over to another process
    records: Sequence[Mapping[str, Any]] = ()  # of the last steps, which rank 0 may not have written
    from_memory: bool = False  # then there may be no checkpoint of the step

    @classmethod
    def of(cls, content: CheckpointContent) -> Start:
        """Read from a checkpoint, or from a result of `Trainer.state`."""
        metrics = {
            name: math.nan if value is None else value for name, value in content.state.get("metrics", {}).items()
        }
        unfinished = content.state.get(_UNFINISHED)
        if unfinished is None:
            return cls(metrics)
        return cls(metrics, unfinished["beside"], tuple(unfinished["records"]), from_memory=True)


class LastStep:
    """The last completed step of a trainer: whether the state is still the one after it, and what it has recorded.

    A step changes nothing of the state before `begin_update`, and everything until `complete`. In between nothing waits
    for another worker, so the death of one cannot interrupt it.
    """

    def __init__(self, step: int, start: Start, engine: Engine, sink: Sink, bad: BadImages | None) -> None:
        self.step: int | None = step  # completed steps; None during an update
        self.unread: dict[int, PendingTotals] = {}  # of completed steps, that were not recorded yet
        self.metrics = start.metrics  # of the evaluation after the step; empty: none
        self.beside = start.beside  # whether the evaluation was handed over to another process
        self._records: list[Mapping[str, Any]] = list(start.records)
        self.engine = in_two_parts(engine)  # None: it updates before the exchange
        # A GPU goes on with work that is queued behind a failed collective, whose result is not defined.
        on_cpu = all(parameter.device.type == "cpu" for parameter in engine.module.parameters())
        self._tensors = _Tensors(engine.module) if on_cpu and self.engine is not None else None  # None: never usable
        self._sink, self._bad, self._is_recorded = sink, bad, True
        self.keep()

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record of a step to the sink, and keep it for as long as rank 0 may not have written it."""
        self._records.append(record)
        self._sink.write(record)

    def begin_update(self) -> None:
        """From now on the state is neither that of one step nor that of the next."""
        self.step = None

    def complete(self, step: int, totals: PendingTotals) -> None:
        """The state is that after `step`, whose totals are still to be recorded."""
        self.metrics, self.beside = {}, False
        self.unread[step] = totals
        # Rank 0 has taken part in this step, so it has written all records of the steps before the last one.
        self._records = [record for record in self._records if record["step"] >= step - 1]
        self.keep()
        self.step = step

    def keep(self) -> None:
        """What is known now belongs to the state: after a step, and after an evaluation."""
        self._bad_images = None if self._bad is None else self._bad.state()["images"]
        self._versions = [] if self._tensors is None else self._tensors.versions()

    @contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Record the totals of `step`. After an error in the block the state is of no use."""
        self._is_recorded = False
        yield
        self.unread.pop(step, None)
        self._is_recorded = True

    def is_usable(self) -> bool:
        """Whether the state is that after `step`, whole on this worker, and every total so far is a good one."""
        if not self.step or not self._is_recorded or self._tensors is None:
            return False
        return self._tensors.are(self._versions)

    def copied(self, content: CheckpointContent) -> CheckpointContent:
        """A copy of `content` on the CPU, with what is unfinished of the step."""
        records = without_non_finite(self._records)
        state = {**content.state, _UNFINISHED: {"records": records, "beside": self.beside}}
        if self._bad_images is not None:  # without those of a step that was interrupted
            state["bad_images"] = {**state["bad_images"], "images": self._bad_images}
        return replace(content.map(lambda tensor: tensor.detach().to("cpu", copy=True)), state=state)


class _Tensors:
    """What a checkpoint has of a model, but for the statistics of batch norm over spans, and what has changed of it.

    A forward pass of a ResNet changes nothing of it. One of a user's module may: the vectors of spectral normalisation,
    or weights whose norm it limits.
    """

    def __init__(self, model: nn.Module) -> None:
        saved = model.state_dict().keys()
        self._places = [
            (owned, key)
            for prefix, module in model.named_modules()
            for owned in (module._parameters, {} if isinstance(module, SpanBatchNorm) else module._buffers)
            for key in owned
            if (f"{prefix}.{key}" if prefix else key) in saved
        ]

    def versions(self) -> list[tuple[Tensor | None, int]]:
        """The tensors, and torch's counts of their changes."""
        now = [owned.get(key) for owned, key in self._places]
        return [(tensor, 0 if tensor is None else tensor._version) for tensor in now]

    def are(self, versions: list[tuple[Tensor | None, int]]) -> bool:
        """Whether none was changed or replaced since a call of `versions`."""
        pairs = zip(self.versions(), versions, strict=True)
        return all(now is before and count == earlier for (now, count), (before, earlier) in pairs)
