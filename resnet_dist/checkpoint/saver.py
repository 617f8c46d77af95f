"""Save without holding the training up: the loop stops for a copy to host memory, a thread does the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.host_copy import HostBuffers
from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.checkpoint.parts import Parts
from resnet_dist.checkpoint.retention import Retention, delete_old
from resnet_dist.checkpoint.save import Content, OptimizerState, Pieces, write, write_part
from resnet_dist.checkpoint.uploads import Uploads
from resnet_dist.errors import StorageError
from resnet_dist.telemetry.json_lines import without_non_finite

log = logging.getLogger(__name__)

# Assumption: what is given up by leaving earlier (the mirror's newest checkpoint) is worth ten minutes at a run's end.
# Whoever knows that the machine goes away sooner gives another number.
MIRROR_TIMEOUT_S = 600.0

# (step, name of the event, detail): what goes into metrics.jsonl
OnEvent = Callable[[int, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete and on the disk."""

    step: int
    path: Path
    size_bytes: int  # of its tensors and state.json; of all its files where they were written in parts
    stalled_s: float  # the loop stood still
    waited_s: float  # of that, for the thread to be done with what it was given before
    write_s: float  # the thread hashed, wrote and deleted old ones


@dataclass(frozen=True)
class Failed:
    """A checkpoint that could not be written; those before it still are what they were."""

    step: int
    error: StorageError
    in_a_row: int  # failures since the last checkpoint that was written
    stalled_s: float
    waited_s: float
    write_s: float


@dataclass(frozen=True)
class _Written:
    """What the thread hands back. Either a path or an error."""

    path: Path | None
    error: StorageError | None
    size_bytes: int
    write_s: float


@dataclass(frozen=True)
class _UnderWay:
    step: int
    waited_s: float
    stalled_s: float
    written: Future[_Written]


class Saver:
    """Writes checkpoints into `folder`, one at a time, while the training goes on.

    Everything is called from one thread, the loop's; `on_event` too, from within these calls: with "checkpoint",
    "checkpoint_failed", "mirrored", "mirror_failed" and "mirror_skipped". `parts` is given where every worker has a
    saver and writes the part of the optimizer state that it holds; without, only rank 0 has one.

    A failed save does not end the training as long as a later one may succeed (a full disk is emptied, a mount comes
    back): after `max_failures` in a row it does. `still_ours` is called before a checkpoint gets its name, and before
    old ones are deleted: what it raises, because another process has taken the run over, ends the training.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention,
        *,
        on_event: OnEvent,
        mirror: Mirror | None = None,
        max_failures: int = 3,
        parts: Parts | None = None,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._retention, self._parts = folder, retention, parts
        self._on_event, self._max_failures = on_event, max_failures
        self._still_ours = still_ours
        self._buffers = HostBuffers()
        self._reserving: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._uploads = None if mirror is None or not self._is_first else Uploads(mirror)
        self._under_way: _UnderWay | None = None
        self._reports: list[Saved | Failed] = []
        self._failures: list[Failed] = []  # in a row

    @property
    def _is_first(self) -> bool:
        return self._parts is None or self._parts.number == 0

    def reserve(self, tensors: Iterable[Tensor]) -> None:
        """Have the thread take the memory for saving `tensors` (only their forms count), so that no save has to.

        Parameters may be given once more for each state that the optimizer will have of them.
        """
        self._reserving = self._thread.submit(self._buffers.reserve, list(tensors))

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: OptimizerState,
        state: Mapping[str, Any],
        *,
        wait: bool,
        metrics: Mapping[str, float] | None = None,
        ema: Mapping[str, Tensor] | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        """Copy the state of `step` completed steps and have it written; with `wait`, until it is on the disk.

        Tensors may be on any device and may change as soon as the call returns. `state` is JSON; the step and
        `metrics` (of an evaluation of this very step; null where not finite) are added to it. `pieces` are those of
        `optimizer` that are cut, with `parts` only. A save that is still being written is waited for first.

        Raises ValueError for what no checkpoint can hold, before anything is written; with `wait`, StorageError where
        this save fails.
        """
        if self._is_first:
            numbers = without_non_finite({name: float(value) for name, value in (metrics or {}).items()})
            state = {**state, "metrics": numbers} if numbers else state
            content = Content.of(step, model, optimizer, state, ema, pieces)
        else:
            content = Content.of(step, {}, optimizer, {}, pieces=pieces)
        started = time.perf_counter()
        if self._reserving is not None:
            self._reserving.result()
            self._reserving = None
        self._finish()
        waited_s = time.perf_counter() - started
        content = self._copied(content)
        stalled_s = time.perf_counter() - started
        self._under_way = _UnderWay(step, waited_s, stalled_s, self._thread.submit(self._write, content))
        if wait:
            self._under_way.written.exception()  # waits; _finish says what it was
            self._under_way = replace(self._under_way, stalled_s=time.perf_counter() - started)
            report = self._finish()
            if isinstance(report, Failed):
                raise report.error

    def poll(self) -> list[Saved | Failed]:
        """What was written, or could not be, since the last call; never blocks.

        Raises StorageError once `max_failures` saves in a row have failed.
        """
        if self._under_way is not None and self._under_way.written.done():
            self._finish()
        self._tell_of_uploads()
        if self._failures and len(self._failures) >= self._max_failures:
            error = self._failures[-1].error
            steps = ", ".join(str(failed.step) for failed in self._failures)
            raise StorageError(
                error.path, f"{error.problem}. No checkpoint could be written at {len(self._failures)} steps: {steps}"
            ) from error
        reports, self._reports = self._reports, []
        return reports

    def close(self, mirror_timeout_s: float = MIRROR_TIMEOUT_S) -> None:
        """Wait for what is under way: a save to its end; the mirror, and others' parts, `mirror_timeout_s` at most.

        To be called however the training ended: a save that failed is told of, not raised. Nothing more can be saved.
        """
        if self._parts is not None:
            self._parts.hurry(mirror_timeout_s)
        self._finish()
        self._thread.shutdown()
        if self._uploads is not None:
            self._uploads.close(mirror_timeout_s)
        self._tell_of_uploads()

    def _copied(self, content: Content) -> Content:
        # one copy for all tensors: on a GPU they are waited for together. A colon keeps the kinds of names apart
        model = {f"model:{name}": tensor for name, tensor in content.model.items()}
        optimizer = {f"optimizer:{name}": tensor for name, tensor in content.optimizer.items()}
        ema = {f"ema:{name}": tensor for name, tensor in (content.ema or {}).items()}
        copied = self._buffers.copy(model | optimizer | ema)
        return replace(
            content,
            model={name: copied[f"model:{name}"] for name in content.model},
            optimizer={name: copied[f"optimizer:{name}"] for name in content.optimizer},
            ema=None if content.ema is None else {name: copied[f"ema:{name}"] for name in content.ema},
        )

    def _write(self, content: Content) -> _Written:
        """In the thread."""
        started = time.perf_counter()
        tensors = [*content.model.values(), *content.optimizer.values(), *(content.ema or {}).values()]
        size_bytes = sum(tensor.nbytes for tensor in tensors) + len(content.state)
        path, problem = None, None
        try:
            if self._is_first:
                path = write(self._folder, content, self._parts, self._still_ours)
                if self._parts is not None:  # the others' parts count, too
                    size_bytes = sum(record.size_bytes for record in format.read_manifest(path).values())
                self._still_ours()
                spare = set() if self._uploads is None else self._uploads.steps()
                delete_old(self._folder, content.step, self._retention, spare)
            elif self._parts is not None:
                path = write_part(self._folder, content, self._parts)
        except StorageError as error:
            problem = error
        if path is not None and self._uploads is not None:
            self._uploads.add(content.step, path)
        return _Written(path, problem, size_bytes, time.perf_counter() - started)

    def _finish(self) -> Saved | Failed | None:
        """Wait for the save that is under way, if any, and tell of it. Raises what is no StorageError."""
        if self._under_way is None:
            return None
        under_way, self._under_way = self._under_way, None
        written = under_way.written.result()
        times = {"stalled_s": under_way.stalled_s, "waited_s": under_way.waited_s, "write_s": written.write_s}
        report: Saved | Failed
        if written.error is None:
            assert written.path is not None
            self._failures = []
            report = Saved(under_way.step, written.path, written.size_bytes, **times)
            detail = {"path": str(written.path), "size_bytes": written.size_bytes, **times}
            self._on_event(under_way.step, "checkpoint", detail)
        else:
            report = Failed(under_way.step, written.error, len(self._failures) + 1, **times)
            self._failures.append(report)
            log.warning("the checkpoint of step %d could not be written: %s", under_way.step, written.error)
            detail = {"problem": str(written.error), "in_a_row": report.in_a_row, **times}
            self._on_event(under_way.step, "checkpoint_failed", detail)
        self._reports.append(report)
        return report

    def _tell_of_uploads(self) -> None:
        for upload in self._uploads.results() if self._uploads is not None else []:
            if upload.event == "mirror_failed":
                log.warning("the checkpoint of step %d is not in the mirror: %s", upload.step, upload.detail["problem"])
            self._on_event(upload.step, upload.event, upload.detail)
