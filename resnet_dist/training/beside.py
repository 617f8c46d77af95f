"""Evaluation of checkpoints in a process of its own, while training goes on.

An evaluation that is due saves a checkpoint, which another process evaluates. If that takes longer than training needs
until the next evaluation is due, the older checkpoint is left out, unless its evaluation runs already. The steps that
are still to be evaluated are in a file, so that the next attempt goes on with them after a kill.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resnet_dist.checkpoint.disk import replace_whole
from resnet_dist.checkpoint.format import folder_name, step_folders, step_of
from resnet_dist.input_files import read_json, record_of
from resnet_dist.rank_zero import run_on_rank_0
from resnet_dist.telemetry.metrics_file import Sink

log = logging.getLogger(__name__)

POLL_S = 0.5  # between two looks at the other process, and at the storage
_INSTEAD = "evaluate.beside: %s. The workers evaluate themselves from now on, in turn with training"
MAX_FAILURES = 2  # in a row; then the workers evaluate themselves, and so find the error


class Unavailable(Exception):  # noqa: N818 - reads as what happened
    """There are no resources for evaluations beside training."""


class EvaluationHost(Protocol):
    """Evaluates checkpoints in another process, one at a time. No method waits."""

    def start(self, step: int) -> None:
        """Begin to evaluate the checkpoint of `step`."""
        ...

    def ended(self) -> Mapping[str, Any] | Exception | None:
        """What an eval record says of the evaluation that has ended, or its error; None while it runs."""
        ...

    def close(self) -> None:
        """End the other process."""
        ...


@dataclass(frozen=True)
class BesideOptions:
    """What evaluates beside training: the same on every worker; only rank 0 calls `host`, which may raise Unavailable.

    `pending`: the file of the steps that are still to be evaluated. `patience_s`: how long the end of a run waits for
    one evaluation.
    """

    host: Callable[[], EvaluationHost]
    pending: Path
    patience_s: float = 1800.0


class InTurn:
    """Nothing is evaluated beside training: the workers take turns between training and evaluating."""

    def take(self, step: int, *, stopping: bool) -> bool:
        """False: the workers evaluate."""
        return False

    def has_lost(self, step: int) -> bool:
        """False: no evaluation needs a checkpoint."""
        return False

    def left(self, step: int) -> bool:
        """True: an evaluation of an earlier attempt that is not known to be done is to be done."""
        return True

    def poll(self) -> None:
        """Do nothing."""

    def finish(self, beat: Callable[[], object], stopped: Callable[[], bool]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def in_use(self) -> frozenset[int]:
        """No checkpoint."""
        return frozenset()


class Beside(InTurn):
    """Hands checkpoints over to another process, and writes its results as eval records. Every worker has one."""

    def __init__(
        self,
        options: BesideOptions,
        checkpoints: Path,
        first_step: int,
        ranks: tuple[int, int],
        sink: Sink,
        epoch: Callable[[int], float],
    ) -> None:
        """`checkpoints`: their folder. `ranks`: rank and world size. `epoch`: of a step."""
        self._options, self._checkpoints, self._ranks = options, checkpoints, ranks
        self._sink, self._epoch = sink, epoch
        self._queue: tuple[int, ...] = ()  # steps, in the order in which they are evaluated
        self._running: int | None = None
        self._host: EvaluationHost | None = None
        self._num_failures, self._has_skipped, self._next_poll = 0, False, 0.0
        self._kept: tuple[int, ...] = ()  # the content of the file
        self._taken: int | None = None  # the newest step
        if ranks[0] != 0:
            return
        self._kept = pending_steps(options.pending)
        for step in self._kept:
            if step < first_step and not self._path(step).exists():
                log.warning("the evaluation after step %d is left out: its checkpoint is gone", step)
        # Later steps are reached again.
        self._queue = tuple(step for step in self._kept if step <= first_step and self._path(step).exists())
        try:
            self._host = options.host()
        except Unavailable as error:
            log.warning(_INSTEAD, error)
            for step in set(self._queue) - {first_step}:
                log.warning("the evaluation after step %d is left out: the weights are those of a later step", step)
            self._queue = ()

    def take(self, step: int, *, stopping: bool) -> bool:
        """Whether the checkpoint of `step`, which is saved next, will be evaluated beside training. A collective.

        False: the workers evaluate, unless they are `stopping`; the next attempt evaluates then.
        """
        taken = run_on_rank_0(lambda: self._take(step, stopping), *self._ranks)
        if taken:
            self._taken = step
        return taken

    def has_lost(self, step: int) -> bool:
        """Whether the checkpoint of an earlier step, which was to be evaluated, has not been written. On any worker."""
        if self._taken is None or self._taken >= step:
            return False
        newest = max((step_of(path.name) or 0 for path in step_folders(self._checkpoints)), default=0)
        return newest < self._taken

    def left(self, step: int) -> bool:
        """Whether an earlier attempt has left the evaluation after `step`, its last checkpoint. A collective."""
        return run_on_rank_0(lambda: step in self._kept, *self._ranks)

    def poll(self) -> None:
        """Record an evaluation that has ended, and begin the next one. Does not wait."""
        if self._ranks[0] == 0 and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_S
            self._advance()

    def finish(self, beat: Callable[[], object], stopped: Callable[[], bool]) -> None:
        """Wait for all evaluations, unless the run is `stopped` or one takes too long. All checkpoints are written."""
        if self._ranks[0] != 0:
            return
        until, left = time.monotonic() + self._options.patience_s, self.in_use()
        while self._host is not None:
            self._advance()
            if self.in_use() != left:
                until, left = time.monotonic() + self._options.patience_s, self.in_use()
            if self._running is None or stopped() or time.monotonic() > until:
                break
            beat()
            time.sleep(POLL_S / 10)
        reason = "the run was stopped" if stopped() else "it has not ended in time, or its checkpoint is not there"
        for step in sorted(self.in_use()):
            self._skip(step, reason)
        self._running, self._queue = None, ()
        self._keep()

    def close(self) -> None:
        """End the other process. What is not evaluated stays in the file, for the next attempt."""
        if self._host is not None:
            self._host.close()

    def in_use(self) -> frozenset[int]:
        """The steps whose checkpoints must not be deleted. Called from any thread."""
        running = self._running
        return frozenset(self._queue) | (frozenset() if running is None else {running})

    def _take(self, step: int, stopping: bool) -> bool:
        if self._host is None and not stopping:
            return False
        if step not in self.in_use():
            for older in self._queue:
                self._skip(older, f"that of step {step} is due")
            self._queue = (step,)
            self._keep()
        return self._host is not None

    def _advance(self) -> None:
        if self._running is not None and self._host is not None:
            ended = self._host.ended()
            if ended is None:
                return
            step, self._running = self._running, None
            self._end(step, ended)
        if self._queue and self._host is not None and self._path(self._queue[0]).exists():
            self._running, self._queue = self._queue[0], self._queue[1:]
            self._host.start(self._running)
        self._keep()

    def _end(self, step: int, ended: Mapping[str, Any] | Exception) -> None:
        if not isinstance(ended, Exception):
            self._num_failures = 0
            self._sink.write({"kind": "eval", "step": step, "epoch": self._epoch(step), **ended, "beside": True})
            if ended.get("num_nonfinite"):
                log.warning("the evaluation after step %d is not finite", step)
            return
        self._num_failures += 1
        kind = "" if isinstance(ended, Unavailable) else f"{type(ended).__name__}: "
        self._skip(step, f"{kind}{ended}", warn=True)
        if isinstance(ended, Unavailable) or self._num_failures >= MAX_FAILURES:
            self._give_up(ended)

    def _give_up(self, error: Exception) -> None:
        log.warning(_INSTEAD, error)
        self.close()
        self._host = None
        for step in self._queue:
            self._skip(step, "the weights are those of a later step")
        self._queue = ()

    def _skip(self, step: int, reason: str, *, warn: bool = False) -> None:
        text = f"the evaluation after step {step} is left out: {reason}"
        self._sink.write({"kind": "event", "step": step, "event": "evaluation_skipped", "detail": {"text": text}})
        if warn or not self._has_skipped:
            log.warning(text)
        self._has_skipped = True

    def _keep(self) -> None:
        """Write or delete the file, if its content has changed."""
        steps = tuple(sorted(self.in_use()))
        if steps == self._kept:
            return
        self._kept = steps
        try:
            if steps:
                replace_whole(self._options.pending, json.dumps({"steps": steps}).encode())
            else:
                self._options.pending.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: %s", self._options.pending, error)

    def _path(self, step: int) -> Path:
        return self._checkpoints / folder_name(step)


@dataclass(frozen=True)
class _Pending:
    steps: Sequence[int]


def pending_steps(file: Path) -> tuple[int, ...]:
    """The steps whose evaluations an earlier attempt has left, ascending; none without a file that can be read."""
    try:
        known = record_of(_Pending, read_json(file))
    except (OSError, ValueError):
        return ()
    return () if known is None else tuple(sorted(known.steps))
