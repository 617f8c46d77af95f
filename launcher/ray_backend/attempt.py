"""One `fit()` of Ray Train, supervised by the driver. It runs one attempt, and may restart its workers for the next."""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import ray
import ray.exceptions
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.util import remove_placement_group

from launcher.errors import LauncherError, WorkerHung
from launcher.ray_backend import spares
from launcher.ray_backend.cluster import Cluster
from launcher.ray_backend.failures import NotPlaced, translate_fit_error, worker_error
from launcher.ray_backend.handover import (
    ATTEMPT,
    PLACEMENT_GROUP,
    STAGE,
    AskDriver,
    HandedBack,
    Mailbox,
    answer_key,
    failure_key,
)
from launcher.ray_backend.process_group import ProcessGroupConfig
from launcher.ray_backend.trainer import Trainer
from launcher.ray_backend.worker import train_function
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.policy import Policy, workers_for
from launcher.recovery.portable import message_of
from launcher.recovery.session import Session
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.run.heartbeats import Heartbeat, Monitor
from launcher.run.progress import completed_steps, read_beats
from resnet_dist.telemetry.json_lines import Follower, Record
from resnet_dist.telemetry.metrics_file import metrics_record

log = logging.getLogger(__name__)

POLL_S = 0.1  # between two checks for new metrics
DRAIN_EVERY_S = 1.0  # between two checks for draining nodes
GROW_EVERY_S = 15.0  # between two checks for new nodes; two in a row must agree
END_S = 60.0  # assumption: for the workers to save at the next step, and again to exit without saving


class StopReason(enum.Enum):
    """Why the driver asked an attempt to stop."""

    PREEMPTED = "preempted"
    RESIZED = "more nodes available"


# Handles a failure: returns the next attempt if Ray is to restart the workers for it, None if the driver continues with
# another `fit()`. Raises if there is no other attempt.
OnFailure = Callable[[Exception], AttemptSpec | None]


class Fit:
    """A `fit()` with a fixed number of workers. `stop_reason` is set if the driver asked it to stop."""

    def __init__(
        self,
        session: Session,
        workers: int,
        cluster: Cluster,
        policy: Policy,
        excluded: tuple[str, ...],
        on_failure: OnFailure,
    ) -> None:
        self.stop_reason: StopReason | None = None
        self.given_up: Exception | None = None  # raised by `on_failure`
        self._session, self._config, self._workers = session, session.config, workers
        self._cluster, self._policy, self._excluded = cluster, policy, excluded
        self._on_failure = on_failure
        self._monitor = Monitor(session.config.faults.hang_timeout_s)
        self._hang: WorkerHung | None = None
        self._last_capacity = workers
        self._result: AttemptResult | None = None
        self._error: BaseException | None = None
        self._number, self._first_step, self._num_failures, self._handed_back = 0, 0, 0, False
        self._beats: list[Heartbeat] = []  # those of the running attempt that were read last

    def run(self, spec: AttemptSpec) -> AttemptResult | None:
        """Train; returns the result, or None if `on_failure` left the next attempt to the driver.

        Raises the error that ended the last attempt, as one of the launcher's classes. `fit()` runs in a thread, as
        this one handles signals and shows the metrics.
        """
        self._number, self._first_step = spec.number, spec.first_step
        box = Mailbox(str(self._logs.path))
        box.put(ATTEMPT, spec)
        trainer = self._trainer(box)
        thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)
        thread.start()
        try:
            self._supervise(thread, box)
        except BaseException as error:
            if isinstance(error, Exception):
                log.error("the driver failed, and stops its workers", exc_info=error)
            self._end(thread, box, at_once=isinstance(error, KeyboardInterrupt))
            if not isinstance(error, Exception):
                raise
            problem = f"the driver failed, and has stopped its workers: {type(error).__name__}: {message_of(error)}"
            raise LauncherError(problem) from error
        if self._error is not None:
            self._free_resources(box)
        if self.given_up is not None:
            raise self.given_up
        if self._handed_back:
            return None
        if self._error is not None:
            raise self._last_error(box) from self._error
        box.clear()
        return self._result

    def _supervise(self, thread: threading.Thread, box: Mailbox) -> None:
        """Show the metrics, and do all duties, until `fit()` has ended."""
        follower = Follower(self._session.run.metrics, metrics_record)
        stage = None
        duties = self._duties()
        while thread.is_alive():
            thread.join(POLL_S)
            stage = self._show_stage(box, stage)
            self._show(follower)
            next(duties)
            failures = self._reported_failures(box)
            if failures is not None:
                self._answer(box, failures)
                duties = self._duties()
        self._show(follower)

    def _end(self, thread: threading.Thread, box: Mailbox, *, at_once: bool) -> None:
        """End `fit()` and its workers after an error of this process, since another attempt may follow.

        They may save at the next step before, unless `at_once`. If they do not end, Ray is shut down.
        """
        with logged_errors():
            box.put(answer_key(self._num_failures + 1), False)  # no restart after a failure from now on
        for request in (self._logs.stop_request, self._logs.end_request):
            with logged_errors():
                request.touch()
            thread.join(0 if at_once else END_S)
        if thread.is_alive():
            log.warning("the workers do not end: Ray is shut down")
            shutdown = threading.Thread(target=ray.shutdown, daemon=True)
            shutdown.start()
            shutdown.join(END_S)
            thread.join(END_S)

    def _free_resources(self, box: Mailbox) -> None:
        """Remove the placement group of the workers: if Ray's controller was killed, nobody else does."""
        with logged_errors():
            group = box.get(PLACEMENT_GROUP)
            if group is not None:
                remove_placement_group(group)

    @property
    def _logs(self) -> AttemptLogs:
        return self._session.run.logs(self._number)

    def _fit(self, trainer: Trainer) -> None:
        try:
            self._result = trainer.fit().return_value
        except BaseException as error:
            self._error = error

    def _show(self, follower: Follower[Record]) -> None:
        with contextlib.suppress(OSError):  # they are shown once the storage answers
            for record in follower.new_records():
                self._session.progress.record(record)

    def _show_stage(self, box: Mailbox, shown: str | None) -> str | None:
        """Show what Ray's controller does, if that is not `shown` already; returns it."""
        stage: str | None = None
        with logged_errors():
            stage = box.get(STAGE)
        if stage is not None and stage != shown:
            self._session.progress.stage(stage)
        return stage

    def _reported_failures(self, box: Mailbox) -> Mapping[int, Exception] | None:
        """The errors by rank that Ray's controller has reported since the last answer."""
        failures: Mapping[int, Exception] | None = None
        with logged_errors():
            failures = box.get(failure_key(self._num_failures + 1))
        return failures  # noqa: RET504 - None after an error

    def _answer(self, box: Mailbox, failures: Mapping[int, Exception]) -> None:
        """Tell the waiting controller whether to restart the workers."""
        self._num_failures += 1
        spec = None
        try:
            spec = self._on_failure(self._cause(failures))
            self._handed_back = spec is None
        except Exception as error:
            self.given_up = error
        if spec is not None:
            self._number, self._first_step, self._beats = spec.number, spec.first_step, []
            self._monitor, self._hang, self.stop_reason = Monitor(self._config.faults.hang_timeout_s), None, None
        with logged_errors():  # without an answer, the controller times out, and `fit()` ends
            if spec is not None:
                box.put(ATTEMPT, spec)
            box.put(answer_key(self._num_failures), spec is not None)

    def _last_error(self, box: Mailbox) -> Exception:
        """The error that ended `fit()`: not the timeout of its controller while this process was suspended."""
        error = self._cause(self._reported_failures(box))
        if isinstance(error, HandedBack):
            return NotPlaced("the workers were not restarted: the driver was suspended for too long")
        return error

    def _cause(self, failures: Mapping[int, Exception] | None) -> Exception:
        beats = read_beats(self._session.run, self._number)
        hang = self._hang or self._monitor.check(beats, time.monotonic())
        if hang is not None:
            return hang
        if failures is not None:
            return worker_error(failures, beats)
        assert self._error is not None
        return translate_fit_error(self._error, beats)

    def _trainer(self, box: Mailbox) -> Trainer:
        config, faults = self._config, self._config.faults
        use_gpu = config.resources.gpus_per_worker > 0
        excluded = self._cluster.ids(self._excluded)
        scaling = ScalingConfig(
            num_workers=self._workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": float(config.resources.cpus_per_worker)},
            label_selector={"ray.io/node-id": f"!in({','.join(excluded)})"} if excluded else None,
        )
        # The collectives' timeout is the last resort: it exceeds the watchdogs' even during a long save.
        timeout_s = int(faults.hang_timeout_s * (heartbeats.LONG + 1)) + 1
        return Trainer(
            train_function,
            train_loop_config={"config": config, "box": box},
            scaling_config=scaling,
            backend_config=ProcessGroupConfig("nccl" if use_gpu else "gloo", timeout_s, box),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(self._logs.path),
                # No limit of Ray's own: the driver decides about every failure.
                failure_config=FailureConfig(max_failures=-1, max_preemption_failures=0, controller_failure_limit=0),
                callbacks=[AskDriver(box)],
                worker_runtime_env=spares.worker_runtime_env() if spares.are_possible() else {},
            ),
        )

    def _duties(self) -> Iterator[None]:
        """Everything that is checked while the workers train, each at its own interval."""
        beat_every_s = heartbeats.interval_s(self._config.faults.hang_timeout_s)
        due = {"drain": 0.0, "beat": 0.0, "grow": time.monotonic() + GROW_EVERY_S, "end": float("inf")}
        asked, has_spares = False, not spares.are_possible()
        while True:
            yield
            now = time.monotonic()
            if self._session.stop.stopped and not asked:
                with contextlib.suppress(OSError):  # until the storage accepts it
                    self._logs.stop_request.touch()
                    asked = True
            if now >= due["drain"] and self.stop_reason is None:
                due["drain"] = now + DRAIN_EVERY_S
                with logged_errors():
                    self._check_drains()
            if now >= due["beat"]:
                due["beat"] = now + beat_every_s
                with logged_errors():
                    if self._check_hangs() and due["end"] == float("inf"):
                        due["end"] = now + 2 * beat_every_s + 1  # time for the workers to write their stacks
            if not has_spares and self._trains():
                has_spares = True
                with logged_errors():
                    self._start_spares()
            if now >= due["grow"] and self._config.workers.elastic and self.stop_reason is None:
                due["grow"] = now + GROW_EVERY_S
                with logged_errors():
                    self._check_capacity()
            if now >= due["end"]:
                with logged_errors():
                    self._logs.end_request.touch()
                    due["end"] = float("inf")

    def _check_drains(self) -> None:
        ours = {beat.node_id for beat in read_beats(self._session.run, self._number)}
        draining = self._cluster.draining()
        leaving = draining & (ours | self._cluster.heads()) if draining else set()
        if leaving:
            self._cluster.leaving |= {node_id for node_id in leaving if node_id}
            self._stop(StopReason.PREEMPTED)

    def _check_hangs(self) -> bool:
        """Check the heartbeats; returns whether there is a hang."""
        self._beats = beats = read_beats(self._session.run, self._number)
        if beats:
            self._session.notifier.see_step(max(beat.step for beat in beats))
            self._session.progress.see(completed_steps(beats[0]), beats[0].phase)
        if self._hang is None:
            self._hang = self._monitor.check(beats, time.monotonic())
            if self._hang is not None:
                self._logs.dump_request.touch()
        return self._hang is not None

    def _trains(self) -> bool:
        """Whether all workers have completed a step of the attempt."""
        return len(self._beats) == self._workers and all(
            completed_steps(beat) > self._first_step for beat in self._beats
        )

    def _start_spares(self) -> None:
        """Start idle processes for the workers of the next attempt, on the nodes of this one."""
        used = Counter(beat.node_id for beat in self._beats if beat.node_id)
        most = self._config.faults.warm_spares
        spares.start(spares.for_next_attempt(self._cluster.not_excluded(self._excluded), used, most))

    def _check_capacity(self) -> None:
        capacity = workers_for(self._policy, self._cluster.slots(), self._excluded)
        if capacity > self._workers and capacity == self._last_capacity:
            self._stop(StopReason.RESIZED)
        self._last_capacity = capacity

    def _stop(self, reason: StopReason) -> None:
        self._logs.stop_request.touch()
        self.stop_reason = reason


@contextlib.contextmanager
def logged_errors() -> Iterator[None]:
    """Log an error of Ray or of the storage: the workers continue, and `fit()` reports the end of a cluster."""
    try:
        yield
    except (ray.exceptions.RayError, OSError) as error:
        log.warning("cannot supervise the workers at the moment: %s", error)
