"""One `fit()` of Ray Train, watched from the driver while it lasts: an attempt, and those that follow it in place."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray.exceptions
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.ray_backend.cluster import Cluster
from launcher.ray_backend.failures import NotPlaced, in_words, of_workers
from launcher.ray_backend.handover import AskTheDriver, HandedBack, Mailbox, answered, failed
from launcher.ray_backend.worker import train_function
from launcher.recovery.history import hung
from launcher.recovery.notify import Notifier
from launcher.recovery.policy import Policy, workers_for
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Monitor, Verdict
from launcher.run.progress import read_beats
from resnet_dist.telemetry.json_lines import Follower

log = logging.getLogger(__name__)

POLL_S = 0.1  # how often the driver looks for new metrics
DRAIN_EVERY_S = 1.0  # and for nodes that will go away
GROW_EVERY_S = 15.0  # and for nodes that have come; two looks in a row must agree
LEAST_START_S = 15.0  # for Ray to place workers where fewer would do: what it waits in vain for is dead time


class Why(enum.Enum):
    """Why an attempt was asked to stop."""

    PREEMPTED = "a node will go away"
    RESIZED = "more nodes have come"


# What is done about an error: the job of the next attempt where Ray is to start the workers again in place, or None
# where the driver goes on by another `fit()`. Raises where the run is given up.
OnFailure = Callable[[Exception], "dict[str, Any] | None"]


class Fit:
    """A `fit()` with a fixed number of workers. `why` says afterwards why it was asked to stop, if it was.

    A job holds attempt, checkpoint, skips, num_micro_batches and claim.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        workers: int,
        cluster: Cluster,
        policy: Policy,
        excluded: tuple[str, ...],
        on_failure: OnFailure,
    ) -> None:
        self.why: Why | None = None
        self.given_up: Exception | None = None  # by `on_failure`
        self._config, self._run, self._workers = config, run, workers
        self._cluster, self._policy, self._excluded = cluster, policy, excluded
        self._on_failure = on_failure
        self._monitor = Monitor(config.faults.hang_timeout_s)
        self._verdict: Verdict | None = None
        self._grown = workers
        self._answer: dict[str, Any] = {}
        self._number, self._num_failures, self._handed_back = 0, 0, False

    def run(self, job: dict[str, Any], progress: Progress, notifier: Notifier) -> dict[str, Any] | None:
        """Train; returns rank 0's outcome, or None where `on_failure` has left the next attempt to the driver.

        Raises what went wrong, in our words. `fit()` runs in a thread: this one must be free for signals, and shows the
        metrics.
        """
        self._number = job["attempt"]
        box = Mailbox(str(self._run.logs(self._number).path))
        box.put("job", job)
        trainer = self._trainer(box)
        thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)
        follower = Follower(self._run.metrics)
        duties = self._duties(notifier)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            for record in follower.new_records():
                progress.record(record)
            next(duties)
            failures = None
            with _for_now():
                failures = box.get(failed(self._num_failures + 1))
            if failures is not None:
                duties = self._hand_over(box, failures, notifier)
        for record in follower.new_records():
            progress.record(record)
        if self.given_up is not None:
            raise self.given_up
        if self._handed_back:
            return None
        if "error" in self._answer:
            raise self._last_error(box) from self._answer["error"]
        box.clear()
        outcome: dict[str, Any] = self._answer["outcome"]
        return outcome

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            self._answer["outcome"] = trainer.fit().return_value
        except BaseException as error:
            self._answer["error"] = error

    def _hand_over(self, box: Mailbox, failures: dict[int, Exception], notifier: Notifier) -> Iterator[None]:
        """Answer the controller, which waits; returns the duties from now on."""
        self._num_failures += 1
        job = None
        try:
            job = self._on_failure(self._error(failures))
            self._handed_back = job is None
        except Exception as error:
            self.given_up = error
        if job is not None:
            self._number = job["attempt"]
            self._monitor, self._verdict, self.why = Monitor(self._config.faults.hang_timeout_s), None, None
        with _for_now():  # else the controller waits in vain, and `fit()` ends
            if job is not None:
                box.put("job", job)
            box.put(answered(self._num_failures), job is not None)
        return self._duties(notifier)

    def _last_error(self, box: Mailbox) -> Exception:
        """Why `fit()` has ended; that its controller waited in vain, as this process stood still, is no reason."""
        failures = None
        with _for_now():
            failures = box.get(failed(self._num_failures + 1))
        error = self._error(failures)
        if isinstance(error, HandedBack):
            return NotPlaced("the workers were not started again: the driver stood still for too long")
        return error

    def _error(self, failures: dict[int, Exception] | None = None) -> Exception:
        beats = read_beats(self._run, self._number)
        verdict = self._verdict or self._monitor.look(beats, time.monotonic())
        if verdict is not None:
            return hung(verdict)
        return in_words(self._answer["error"], beats) if failures is None else of_workers(failures, beats)

    def _trainer(self, box: Mailbox) -> TorchTrainer:
        config, faults = self._config, self._config.faults
        start_s = max(faults.start_timeout_s / 4, LEAST_START_S) if config.workers.elastic else faults.start_timeout_s
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{start_s:g}"
        os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{faults.hang_timeout_s:g}"
        use_gpu = config.resources.gpus_per_worker > 0
        left_out = self._cluster.ids(self._excluded)
        scaling = ScalingConfig(
            num_workers=self._workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": float(config.resources.cpus_per_worker)},
            label_selector={"ray.io/node-id": f"!in({','.join(left_out)})"} if left_out else None,
        )
        return TorchTrainer(
            train_function,
            train_loop_config={"config": config, "box": box},
            scaling_config=scaling,
            # The last resort, where our own watchdogs cannot act: they must come first, a long save included.
            torch_config=TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=int(faults.hang_timeout_s * (heartbeats.LONG + 1)) + 1
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(self._run.logs(self._number).path),
                # Without a limit of Ray's own, as every failure is asked about.
                failure_config=FailureConfig(max_failures=-1, max_preemption_failures=0, controller_failure_limit=0),
                callbacks=[AskTheDriver(box)],
            ),
        )

    def _duties(self, notifier: Notifier) -> Iterator[None]:
        """Everything that is looked after while the workers train, each in its own time."""
        timeout_s = self._config.faults.hang_timeout_s
        beat_every_s = heartbeats.interval_s(timeout_s)
        due = {"drain": 0.0, "beat": 0.0, "grow": time.monotonic() + GROW_EVERY_S, "end": float("inf")}
        while True:
            yield
            now = time.monotonic()
            if now >= due["drain"] and self.why is None:
                due["drain"] = now + DRAIN_EVERY_S
                with _for_now():
                    self._look_for_drains()
            if now >= due["beat"]:
                due["beat"] = now + beat_every_s
                with _for_now():
                    if self._look_for_hangs(notifier) and due["end"] == float("inf"):
                        due["end"] = now + 2 * beat_every_s + 1  # the stacks are being written
            if now >= due["grow"] and self._config.workers.elastic and self.why is None:
                due["grow"] = now + GROW_EVERY_S
                with _for_now():
                    self._look_for_room()
            if now >= due["end"]:
                with _for_now():
                    self._run.logs(self._number).end_request.touch()
                    due["end"] = float("inf")

    def _look_for_drains(self) -> None:
        ours = {beat.node_id for beat in read_beats(self._run, self._number)}
        draining = self._cluster.draining()
        going = draining & (ours | self._cluster.heads()) if draining else set()
        if going:
            self._cluster.leaving |= {node_id for node_id in going if node_id}
            self._stop(Why.PREEMPTED)

    def _look_for_hangs(self, notifier: Notifier) -> bool:
        """Look at the heartbeats; True where somebody hangs."""
        beats = read_beats(self._run, self._number)
        if beats:
            notifier.see_step(max(beat.step for beat in beats))
        if self._verdict is None:
            self._verdict = self._monitor.look(beats, time.monotonic())
            if self._verdict is not None:
                self._run.logs(self._number).dump_request.touch()
        return self._verdict is not None

    def _look_for_room(self) -> None:
        count = workers_for(self._policy, self._cluster.slots(), self._excluded)
        if count > self._workers and count == self._grown:
            self._stop(Why.RESIZED)
        self._grown = count

    def _stop(self, why: Why) -> None:
        self._run.logs(self._number).stop_request.touch()
        self.why = why


@contextlib.contextmanager
def _for_now() -> Iterator[None]:
    """Let a duty fail until its next turn: the workers go on, and `fit()` will say what has become of the cluster."""
    try:
        yield
    except (ray.exceptions.RayError, OSError) as error:
        log.warning("could not look after the workers: %s", error)
