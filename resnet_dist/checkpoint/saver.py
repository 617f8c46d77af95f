"""Asynchronous saving: training waits for a copy to host memory only; a thread writes the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.checkpoint.host_copy import HostBuffers
from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.retention import Retention, delete_old
from resnet_dist.checkpoint.save import write, write_part
from resnet_dist.checkpoint.uploads import Detail, Uploads
from resnet_dist.errors import StorageError

log = logging.getLogger(__name__)

# Assumption: ten minutes are acceptable for the upload of the newest checkpoint at the end of a run. A caller passes
# another number if the machine is available for a shorter time.
MIRROR_TIMEOUT_S = 600.0

OnEvent = Callable[[int, str, Detail], None]  # (step, name of the event, detail): what goes into metrics.jsonl


@dataclass(frozen=True)
class CheckpointOptions:
    """Where a run's checkpoints go, which of them stay, and how many failed saves end the run."""

    folder: Path
    retention: Retention = field(default_factory=Retention)
    mirror: str | None = None  # URL of object storage that gets a copy of each checkpoint
    max_failures: int = 3  # consecutive failed saves
    check_lease: Callable[[], None] = lambda: None  # raises if another process has taken over the run
    in_use: Callable[[], frozenset[int]] = frozenset  # steps whose checkpoints stay for now; called in a thread


@dataclass
class _Save:
    """A save in progress."""

    step: int
    stalled_s: float = 0.0  # for which training waited
    waited_s: float = 0.0  # part of stalled_s: for the save before
    write_s: float = 0.0  # for which the thread hashed, wrote and deleted


class Saver:
    """Writes checkpoints, one at a time, while training continues.

    All methods are called from one thread, that of the training loop. They call `on_event` with "checkpoint",
    "checkpoint_failed", "mirrored", "mirror_failed" and "mirror_skipped". With `parts`, every worker has a saver and
    writes its part of the optimizer state; without, only rank 0 has one.

    A failed save does not end training as long as a later one may succeed (space is freed, a mount is restored):
    `options.max_failures` consecutive ones do. `options.check_lease` is called before a checkpoint gets its name and
    before old ones are deleted; what it raises ends training.
    """

    def __init__(self, options: CheckpointOptions, *, on_event: OnEvent, parts: PartFiles | None = None) -> None:
        self._options, self._parts, self._on_event = options, parts, on_event
        self._is_rank_0 = parts is None or parts.number == 0
        self._uploads: Uploads | None = None
        if options.mirror is not None and self._is_rank_0:
            self._uploads = Uploads(Mirror(options.mirror, options.retention))
        self._buffers = HostBuffers()
        self._reserving: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_progress: tuple[_Save, Future[tuple[Path, int]]] | None = None
        self._failures: list[tuple[int, StorageError]] = []  # consecutive: step, error
        self._newest: tuple[Path, int] | None = None  # the checkpoint written last, and the device of its folder

    def reserve(self, tensors: Iterable[Tensor]) -> None:
        """Allocate, in the thread, the memory for saving `tensors`, whose values do not matter.

        Pass parameters once more for each state that the optimizer will have of them.
        """
        self._reserving = self._thread.submit(self._buffers.reserve, list(tensors))

    def save(self, content: CheckpointContent, *, wait: bool) -> None:
        """Copy the content of a checkpoint and write it in the thread; with `wait`, return when it is written.

        Tensors may be on any device and may change as soon as the call returns. Ranks other than 0 write the optimizer
        state only. Waits for the save before.

        Raises ValueError for names, dtypes and JSON that a checkpoint cannot hold, before anything is written; with
        `wait`, StorageError if this save fails.
        """
        if not self._is_rank_0:
            content = replace(content, model={}, state={}, ema=None)
        content.check()
        started = time.perf_counter()
        if self._reserving is not None:
            self._reserving.result()
            self._reserving = None
        self._finish()
        save = _Save(content.step)
        save.waited_s = time.perf_counter() - started
        with self._buffers.copying() as copy:
            content = content.map(copy)
        save.stalled_s = time.perf_counter() - started
        future = self._thread.submit(self._write, save, content)
        self._in_progress = save, future
        if wait:
            future.exception()  # waits; _finish handles the exception
            save.stalled_s = time.perf_counter() - started
            self._finish()
            if self._failures:
                raise self._failures[-1][1]

    def poll(self) -> None:
        """Report the saves and uploads that have ended, without blocking.

        Raises StorageError after `max_failures` consecutive failed saves, on rank 0 only: every worker reports
        its failures to it.
        """
        if self._in_progress is not None and self._in_progress[1].done():
            self._finish()
        self._report_uploads()
        if self._is_rank_0 and self._failures and len(self._failures) >= self._options.max_failures:
            _, error = self._failures[-1]
            steps = ", ".join(str(step) for step, _ in self._failures)
            raise StorageError(
                error.path, f"{error.problem}. {len(self._failures)} consecutive checkpoints failed, at steps {steps}"
            ) from error

    def close(self, mirror_timeout_s: float = MIRROR_TIMEOUT_S) -> None:
        """Wait for a save in progress, and for at most `mirror_timeout_s` for the mirror and other workers' parts.

        To be called however training ended. A failed save is reported as an event, not raised. Nothing can be saved
        afterwards.
        """
        if self._parts is not None:
            self._parts.limit_wait(mirror_timeout_s)
        self._finish()
        self._thread.shutdown()
        if self._uploads is not None:
            self._uploads.close(mirror_timeout_s)
        self._report_uploads()

    def _write(self, save: _Save, content: CheckpointContent) -> tuple[Path, int]:
        """Write the files and delete old checkpoints, in the thread. Returns the path and the size in bytes."""
        started = time.perf_counter()
        options = self._options
        try:
            if not self._is_rank_0:
                assert self._parts is not None
                return write_part(options.folder, content, self._parts), content.size_bytes()
            self._check_newest()
            path = write(options.folder, content, self._parts, options.check_lease)
            self._newest = path, options.folder.stat().st_dev
            size_bytes = content.size_bytes()
            if self._parts is not None:
                size_bytes = sum(record.size_bytes for record in format.read_manifest(path).values())
            options.check_lease()
            in_use = options.in_use() | (frozenset() if self._uploads is None else self._uploads.steps())
            delete_old(options.folder, content.step, options.retention, in_use)
        finally:
            save.write_s = time.perf_counter() - started
        if self._uploads is not None:
            self._uploads.add(content.step, path)
        return path, size_bytes

    def _check_newest(self) -> None:
        """Raise StorageError if the checkpoint written last is gone because another file system is mounted instead."""
        if self._newest is None:
            return
        path, device = self._newest
        with storage_errors(path.parent):
            if path.exists():
                return
            folder = path.parent
            while not folder.exists():
                folder = folder.parent
            if folder.stat().st_dev != device:
                problem = f"{path.name}, which was written before, is gone, and so is the disk: it was unmounted or"
                raise StorageError(str(path.parent), f"{problem} another one is mounted over it. Mount it again")
        log.warning("%s: was deleted while the run was training; the next checkpoint is written", path)

    def _finish(self) -> None:
        """Wait for the save in progress, if any, and report it. Raises any exception but StorageError."""
        if self._in_progress is None:
            return
        (save, future), self._in_progress = self._in_progress, None
        detail: Detail
        try:
            path, size_bytes = future.result()
        except StorageError as error:
            self._failures.append((save.step, error))
            log.warning("the checkpoint of step %d could not be written: %s", save.step, error)
            event, detail = "checkpoint_failed", {"problem": str(error), "in_a_row": len(self._failures)}
        else:
            self._failures = []
            event, detail = "checkpoint", {"path": str(path), "size_bytes": size_bytes}
        detail |= {"stalled_s": save.stalled_s, "waited_s": save.waited_s, "write_s": save.write_s}
        self._on_event(save.step, event, detail)

    def _report_uploads(self) -> None:
        for event in self._uploads.events() if self._uploads is not None else []:
            self._on_event(*event)
