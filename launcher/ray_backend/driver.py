"""A run through Ray Train: one `fit()` an attempt, with every retry of Ray's own switched off.

Ray counts dead and draining nodes, retries every error alike and may resume from a checkpoint before the newest, so
the loop over attempts, the number of workers, the choice of the checkpoint and the rule for retries are ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import ClusterUnavailable
from launcher.exit_codes import ExitCode
from launcher.ray_backend.attempt import Fit, Why
from launcher.ray_backend.cluster import SETTLE_S, Cluster
from launcher.ray_backend.failures import ClusterGone, NotPlaced, cluster_must_answer, gone_with
from launcher.recovery import resume
from launcher.recovery.handler import Recovery, wait
from launcher.recovery.history import where
from launcher.recovery.notify import Notifier
from launcher.recovery.policy import Policy, workers_for
from launcher.run.directory import RunDirectory
from launcher.run.lease import Lease, LeaseLost
from launcher.run.progress import read_beats
from launcher.signals import StopSignals


def run_ray(
    config: RunConfig,
    run: RunDirectory,
    mode: resume.ResumeMode,
    progress: Progress,
    notifier: Notifier,
    *,
    attended: bool = False,
    held: Lease | None = None,
) -> tuple[ExitCode, dict[str, Any]]:
    """Train through Ray: on the cluster that RAY_ADDRESS names, or on one started here. Errors are raised.

    `attended`: this process is the run's own, and ends where the cluster ends while it is being joined. `held` is the
    run's lease: looked at before each attempt, as this process may have been suspended.
    """
    start = resume.choose(config, run, mode)
    config = start.config
    run.write_config(configs.to_yaml(config))
    for line in start.notes:
        progress.say(line)
    with _ends_after(config.faults.start_timeout_s, attended):
        started_here = _connect(config)
    try:
        result = _Driver(config, run, progress, notifier, held).run(start)
    except ClusterGone:
        raise  # a shutdown would wait for what is not there any more
    except BaseException:
        if started_here:
            ray.shutdown()
        raise
    if started_here:
        ray.shutdown()
    return result


class _Driver:
    """The loop over attempts."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        progress: Progress,
        notifier: Notifier,
        held: Lease | None = None,
    ) -> None:
        self._config, self._run, self._progress, self._notifier = config, run, progress, notifier
        self._held = held
        self._cluster = Cluster(config)
        self._recovery = Recovery(config, run, progress, notifier)
        self._attempt, self._first_step, self._began = 0, 0, 0.0  # of the running attempt
        self._give_up_at = 0.0  # when workers that cannot be placed end the run

    def run(self, start: resume.Start) -> tuple[ExitCode, dict[str, Any]]:
        """Attempts until one finishes, is stopped on request, or fails for good."""
        self._wait_from_now()
        self._recovery.leave_out_struck()
        with StopSignals(on_stop=self._on_stop) as signals:
            while True:
                with cluster_must_answer():
                    workers = self._count(signals)
                if not workers:
                    return signals.exit_code, {"step": start.step, "finished": False}
                ended = self._one(start, workers, signals)
                if ended is not None:
                    return ended
                start = resume.choose(self._config, self._run, "auto")
                self._progress.say(start.notes[0])

    def _count(self, signals: StopSignals) -> int:
        """How many workers to start; 0 where the run is to stop. Nodes at fault are used where too few are left."""
        policy, excluded = self._recovery.policy, self._recovery.history.excluded
        seconds = self._give_up_at - time.monotonic()
        if excluded and not workers_for(policy, self._cluster.slots(), excluded) and self._has_room(policy):
            seconds = min(seconds, SETTLE_S if os.environ.get("RAY_ADDRESS") else 0.0)  # others may just be joining
        try:
            return self._cluster.wait_for_workers(policy, excluded, seconds, lambda: signals.stopped)
        except ClusterUnavailable as error:
            if not excluded or not self._has_room(policy):
                raise
            self._recovery.use_all()
            self._progress.say(f"{error}; they are used all the same")
            return self._count(signals)

    def _has_room(self, policy: Policy) -> bool:
        return workers_for(policy, self._cluster.slots()) > 0

    def _wait_from_now(self) -> None:
        self._give_up_at = time.monotonic() + self._config.faults.start_timeout_s

    def _on_stop(self, _: int) -> None:
        if self._attempt:
            self._run.logs(self._attempt).stop_request.touch()

    def _one(self, start: resume.Start, workers: int, signals: StopSignals) -> tuple[ExitCode, dict[str, Any]] | None:
        """One `fit()`; None where another one follows."""
        excluded, policy = self._recovery.history.excluded, self._recovery.policy

        def on_failure(error: Exception) -> dict[str, Any] | None:
            return self._answer(error, workers, signals)

        fit = Fit(self._config, self._run, workers, self._cluster, policy, excluded, on_failure)
        try:
            outcome = fit.run(self._begin(start, workers, signals), self._progress, self._notifier)
        except NotPlaced as error:
            self._not_placed(error, self._attempt)
            return None
        except Exception as error:
            if error is not fit.given_up:
                self._failed(error, signals)
            else:
                raise
            self._wait_from_now()
            return None
        self._wait_from_now()
        return None if outcome is None else self._ended(outcome, self._attempt, fit.why, signals)

    def _begin(self, start: resume.Start, workers: int, signals: StopSignals) -> dict[str, Any]:
        """Record the start of an attempt; what its workers must know of it."""
        num_micro_batches = self._recovery.num_micro_batches
        facts: dict[str, Any] = {"place": "ray", "workers": workers, "from_step": start.step}
        facts |= {"excluded": list(self._recovery.history.excluded), "num_micro_batches": num_micro_batches}
        if self._held is not None:
            self._held.check()
        self._first_step, self._began = start.step, time.time()
        self._attempt = self._run.begin_attempt(facts)
        if signals.stopped:
            self._on_stop(0)
        job = {"attempt": self._attempt, "checkpoint": start.checkpoint, "num_micro_batches": num_micro_batches}
        claim = None if self._held is None else self._held.claim
        return {**job, "skips": self._recovery.history.skips, "claim": claim}

    def _answer(self, error: Exception, workers: int, signals: StopSignals) -> dict[str, Any] | None:
        """Answer a failure while Ray waits: the next attempt's job where the same nodes can hold it, else None."""
        left_out = self._cluster.ids(self._recovery.history.excluded)
        self._failed(error, signals)
        excluded = self._recovery.history.excluded
        with cluster_must_answer():
            count = workers_for(self._recovery.policy, self._cluster.slots(), excluded)
            draining = self._cluster.draining()
        if count != workers or self._cluster.ids(excluded) != left_out or draining or signals.stopped:
            return None
        start = resume.choose(self._config, self._run, "auto")
        self._progress.say(start.notes[0])
        return self._begin(start, workers, signals)

    def _ended(
        self, outcome: dict[str, Any], number: int, why: Why | None, signals: StopSignals
    ) -> tuple[ExitCode, dict[str, Any]] | None:
        """What follows from an attempt that returned: the end, or another one on other nodes."""
        step = outcome["step"]
        if outcome["finished"]:
            self._run.end_attempt(number, ExitCode.OK, "finished", step)
            return ExitCode.OK, outcome
        if signals.stopped:
            self._run.end_attempt(number, signals.exit_code, "stopped on request", step)
            return signals.exit_code, outcome
        noticed = self._noticed(number)
        if noticed or why is Why.PREEMPTED:
            self._cluster.leaving |= noticed
            why = Why.PREEMPTED
        cause = "stopped on request" if why is None else f"{why.value}; saved at step {step}"
        leaving = sorted(self._cluster.leaving)
        self._run.end_attempt(number, ExitCode.STOPPED, cause, step, {"leaving": leaving} if leaving else None)
        with cluster_must_answer():
            left = workers_for(self._recovery.policy, self._cluster.slots(), self._recovery.history.excluded)
            if self._cluster.leaving and self._cluster.leaving & self._cluster.heads():
                left = 0  # the cluster ends with its head: whoever started this job starts it again
        if why is None or (why is Why.PREEMPTED and not left):
            return ExitCode.STOPPED, {**outcome, "preempted": why is Why.PREEMPTED}
        self._progress.say(f"attempt {number}: {cause}")
        if why is Why.PREEMPTED:
            self._notifier.tell("preempted", f"a node will go away; saved at step {step}", step=step, leaving=leaving)
        return None

    def _failed(self, error: Exception, signals: StopSignals) -> None:
        """Record the running attempt's failure; raises it where there is no other attempt."""
        if isinstance(error, LeaseLost):
            raise error  # whoever has taken the run over has the last word on it
        beat = where(error, read_beats(self._run, self._attempt))
        node_id = getattr(error, "node_id", None) or (beat.node_id if beat else None)
        slots, node = dict[str, int](), node_id
        if not isinstance(error, ClusterGone):  # whom nobody can be asked about
            try:
                with cluster_must_answer():
                    self._cluster.check(node_id)
                    slots, node = self._cluster.slots(), self._cluster.key(node_id)
            except ClusterGone as gone:
                gone.add_note(f"it was asked because of {type(error).__name__}: {error}")
                error = gone
        if isinstance(error, RayError):  # of ours to the cluster: what `fit()` raises comes in our words
            error = gone_with(error)
        decision = self._recovery.failed(
            error, self._attempt, self._first_step, self._began, slots, node, stopping=signals.stopped
        )
        wait(decision.wait_s, signals)

    def _not_placed(self, error: NotPlaced, number: int) -> None:
        """Count again, while there is time: what Ray held for alive may be gone. Nothing was trained."""
        self._run.end_attempt(number, ExitCode.UNAVAILABLE, f"NotPlaced: {error}", None)
        if time.monotonic() > self._give_up_at:
            raise error
        self._progress.say(f"attempt {number}: {error}; counting again")

    def _noticed(self, number: int) -> set[str]:
        """The ids of nodes whose workers have seen `preemption.notice_file`."""
        files = self._run.logs(number).preemption_notices()
        found = set()
        for file in files:
            with contextlib.suppress(OSError, ValueError):  # a full disk leaves a file without its content
                found.add(json.loads(file.read_bytes())["node_id"])
        return {node_id for node_id in found if node_id}


@contextlib.contextmanager
def _ends_after(seconds: float, attended: bool) -> Iterator[None]:
    """End this process if what is inside takes longer: Ray waits for ever for a cluster that ends as it is joined."""

    def end() -> None:
        print(f"error: the Ray cluster did not answer within {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(ExitCode.UNAVAILABLE)

    timer = threading.Timer(seconds, end)
    if attended:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connect(config: RunConfig) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one here; True where it was started here."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterUnavailable(f"no Ray cluster at {os.environ['RAY_ADDRESS']}: {error}") from error
        return False
    needed = config.workers.most * config.resources.cpus_per_worker
    num_cpus = max(os.cpu_count() or 1, needed)
    ray.init(address="local", num_cpus=num_cpus, object_store_memory=200_000_000, **quiet)
    return True
