"""A run through Ray Train: a loop over attempts. Ray's own retries are switched off.

Ray counts dead and draining nodes, retries every error alike and may resume from an older checkpoint. So the launcher
chooses the number of workers, the checkpoint and whether to retry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

from ray.exceptions import RayError

from launcher.errors import ClusterUnavailable
from launcher.exit_codes import ExitCode
from launcher.formatting import count
from launcher.ray_backend import spares
from launcher.ray_backend.attempt import Fit, StopReason, logged_errors
from launcher.ray_backend.cluster import SETTLE_S, Cluster
from launcher.ray_backend.failures import ClusterGone, NotPlaced, cluster_gone, cluster_must_answer
from launcher.recovery import resume
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.faults import rule_for
from launcher.recovery.handler import FailureHandler, wait
from launcher.recovery.history import heartbeat_of
from launcher.recovery.policy import Retry, workers_for
from launcher.recovery.session import Session
from launcher.run.lease import LeaseLost
from launcher.run.progress import read_beats
from resnet_dist.input_files import read_json


class Driver:
    """The loop over attempts on a cluster."""

    def __init__(self, session: Session, cluster: Cluster) -> None:
        self._session, self._run, self._stop, self._cluster = session, session.run, session.stop, cluster
        self._handler = FailureHandler(session)
        self._attempt: AttemptSpec | None = None  # the running one
        self._give_up_at = 0.0  # when the run ends if its workers cannot be placed

    def run(self, start: resume.Start) -> tuple[ExitCode, AttemptResult]:
        """Run attempts until one finishes, stops on request, or fails for good."""
        self._reset_start_timeout()
        self._handler.exclude_failed_nodes()
        while True:
            self._session.progress.stage("waiting for free nodes")
            with cluster_must_answer():
                workers = self._count_workers()
            if not workers:
                trained = self._attempt is not None
                return self._stop.exit_code, AttemptResult(start.step, finished=False, trained=trained)
            if self._attempt is None and spares.are_possible():
                self._start_early(workers)
            ended = self._run_fit(start, workers)
            if ended is not None:
                return ended
            start = self._next_start()

    def _count_workers(self) -> int:
        """Wait for nodes; returns the number of workers, 0 to stop. Excluded nodes are used if there are too few."""
        policy, excluded = self._handler.policy, self._handler.history.excluded
        timeout_s = self._give_up_at - time.monotonic()
        if excluded and not workers_for(policy, self._cluster.slots(), excluded) and self._enough_in_total():
            timeout_s = min(timeout_s, SETTLE_S if os.environ.get("RAY_ADDRESS") else 0.0)  # others may be joining
        try:
            return self._cluster.wait_for_workers(policy, excluded, timeout_s, lambda: self._stop.stopped)
        except ClusterUnavailable as error:
            if not excluded or not self._enough_in_total():
                raise
            self._handler.include_all_nodes()
            self._session.progress.print(f"{error}; excluded nodes are used again")
            return self._count_workers()

    def _start_early(self, workers: int) -> None:
        """Start the processes of the first workers, which import PyTorch until Ray Train needs them."""
        with logged_errors():
            nodes = self._cluster.not_excluded(self._handler.history.excluded)
            spares.start(spares.for_first_attempt(nodes, workers))

    def _enough_in_total(self) -> bool:
        return workers_for(self._handler.policy, self._cluster.slots()) > 0

    def _reset_start_timeout(self) -> None:
        self._give_up_at = time.monotonic() + self._session.config.faults.start_timeout_s

    def _next_start(self) -> resume.Start:
        start = resume.choose(self._session.config, self._run, "auto")
        self._session.progress.print(start.notes[0])
        return start

    def _run_fit(self, start: resume.Start, workers: int) -> tuple[ExitCode, AttemptResult] | None:
        """Run one `fit()`; None if another one follows."""
        policy, excluded = self._handler.policy, self._handler.history.excluded
        self._session.progress.stage(f"placing {count(workers, 'worker')} and importing PyTorch in them")
        self._stop.answer("saving at the next step")

        def on_failure(error: Exception) -> AttemptSpec | None:
            return self._restart_in_place(error, workers)

        fit = Fit(self._session, workers, self._cluster, policy, excluded, on_failure)
        try:
            result = fit.run(self._begin(start, workers))
        except NotPlaced as error:
            self._not_placed(error)
            return None
        except Exception as error:
            if error is fit.given_up:
                raise
            self._handle(error)
            self._reset_start_timeout()
            return None
        self._reset_start_timeout()
        return None if result is None else self._ended(result, fit.stop_reason)

    def _begin(self, start: resume.Start, workers: int) -> AttemptSpec:
        """Record the start of an attempt."""
        history, num_micro_batches = self._handler.history, self._handler.num_micro_batches
        facts = {"place": "ray", "workers": workers, "from_step": start.step}
        facts |= {"excluded": list(history.excluded), "num_micro_batches": num_micro_batches}
        if start.changes:
            facts["notes"] = start.changes
        self._session.check_lease()
        began = time.time()
        number = self._run.begin_attempt(facts)
        claim = self._session.claim
        self._attempt = AttemptSpec(
            number, start.step, start.checkpoint, history.skips, num_micro_batches, claim, began
        )
        return self._attempt

    def _restart_in_place(self, error: Exception, workers: int) -> AttemptSpec | None:
        """Handle a failure inside of `fit()`: the next attempt if the same nodes can run it, else None."""
        before = self._cluster.ids(self._handler.history.excluded)
        self._handle(error)
        excluded = self._handler.history.excluded
        with cluster_must_answer():
            capacity = workers_for(self._handler.policy, self._cluster.slots(), excluded)
            draining = self._cluster.draining()
        if capacity != workers or self._cluster.ids(excluded) != before or draining or self._stop.stopped:
            return None
        self._session.progress.stage(f"starting {count(workers, 'worker')} again")
        return self._begin(self._next_start(), workers)

    def _ended(self, result: AttemptResult, stop_reason: StopReason | None) -> tuple[ExitCode, AttemptResult] | None:
        """Record the end of an attempt that did not fail; None if another attempt follows on other nodes."""
        assert self._attempt is not None
        number, step, run = self._attempt.number, result.step, self._run
        if result.finished:
            run.end_attempt(number, ExitCode.OK, "finished", step)
            return ExitCode.OK, result
        if self._stop.stopped:
            run.end_attempt(number, self._stop.exit_code, "stopped on request", step)
            return self._stop.exit_code, result
        noticed = self._nodes_with_notice(number)
        if noticed:
            self._cluster.leaving |= noticed
            stop_reason = StopReason.PREEMPTED
        cause = "stopped on request" if stop_reason is None else f"{stop_reason.value}; saved at step {step}"
        leaving = sorted(self._cluster.leaving)
        run.end_attempt(number, ExitCode.STOPPED, cause, step, {"leaving": leaving} if leaving else None)
        preempted = stop_reason is StopReason.PREEMPTED
        if stop_reason is None or (preempted and not self._capacity_after_preemption()):
            return ExitCode.STOPPED, dataclasses.replace(result, preempted=preempted)
        self._session.progress.print(f"attempt {number}: {cause}")
        if preempted:
            self._session.notifier.notify("preempted", cause, step=step, leaving=leaving)
        return None

    def _capacity_after_preemption(self) -> int:
        """The number of workers that can continue: 0 if the head leaves, as the cluster ends with it."""
        with cluster_must_answer():
            if self._cluster.leaving & self._cluster.heads():
                return 0
            return workers_for(self._handler.policy, self._cluster.slots(), self._handler.history.excluded)

    def _handle(self, error: Exception) -> None:
        """Record the failure of the running attempt, and wait before the next; raises if there is no other attempt."""
        if isinstance(error, LeaseLost):
            raise error  # the run belongs to another process now: nothing is recorded
        assert self._attempt is not None
        beat = heartbeat_of(error, read_beats(self._run, self._attempt.number))
        node_id = getattr(error, "node_id", None) or (beat.node_id if beat else None)
        slots, node = dict[str, int](), node_id
        if rule_for(error).retry is not Retry.NEVER:
            try:
                with cluster_must_answer():
                    self._cluster.check(node_id)
                    slots, node = self._cluster.slots(), self._cluster.key(node_id)
            except ClusterGone as gone:
                gone.add_note(f"the cluster was queried because of {type(error).__name__}: {error}")
                error = gone
        if isinstance(error, RayError):  # raised by a query of this process: errors of `fit()` are translated
            error = cluster_gone(error)
        decision = self._handler.handle(error, self._attempt, slots, node, stopping=self._stop.stopped)
        wait(decision.wait_s, self._stop)

    def _not_placed(self, error: NotPlaced) -> None:
        """Count the nodes again until the start timeout: some may be dead although Ray lists them as alive."""
        assert self._attempt is not None
        number = self._attempt.number
        self._run.end_attempt(number, ExitCode.UNAVAILABLE, f"NotPlaced: {error}", None)
        if time.monotonic() > self._give_up_at:
            raise error
        self._session.progress.print(f"attempt {number}: {error}; counting the nodes again")

    def _nodes_with_notice(self, number: int) -> set[str]:
        """The ids of nodes whose workers have seen `preemption.notice_file`."""
        found = set()
        for file in self._run.logs(number).preemption_notices():
            with contextlib.suppress(OSError, ValueError):  # after a full disk, a file may be empty
                notice = read_json(file)
                node_id = notice.get("node_id") if isinstance(notice, dict) else None
                found |= {node_id} if node_id and isinstance(node_id, str) else set()
        return found
