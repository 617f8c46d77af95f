"""Handles a failed attempt: records it, notifies, and decides by the retry policy. The same for Ray and local runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from launcher.formatting import count
from launcher.recovery import incidents
from launcher.recovery.attempt import AttemptSpec
from launcher.recovery.faults import rule_for
from launcher.recovery.history import describe_failure, node_failures, read_skips, retry_policy, write_skips
from launcher.recovery.policy import Decision, History, Policy, Retry, decide
from launcher.recovery.session import Session
from launcher.run.progress import lost_work, newest_valid_step, read_beats, recorded_num_micro_batches
from launcher.signals import StopSignals


class FailureHandler:
    """The failure history of a run in one session, and the decisions after each failure."""

    def __init__(self, session: Session, policy: Policy | None = None) -> None:
        run = session.run
        self.policy = retry_policy(session.config) if policy is None else policy
        self.history = History(
            saved_step=newest_valid_step(run), node_failures=node_failures(run), skips=read_skips(run)
        )
        self.num_micro_batches = recorded_num_micro_batches(run)
        self._session = session

    def exclude_failed_nodes(self) -> None:
        """Exclude nodes that failed too often in earlier sessions of this run."""
        most = self.policy.max_node_failures
        failed = {node: number for node, number in sorted(self.history.node_failures.items()) if number >= most}
        self.history = dataclasses.replace(self.history, excluded=tuple(failed))
        for node, number in failed.items():
            self._session.progress.print(
                f"node {node} failed {count(number, 'time')} in this run and is excluded. Once it is repaired, "
                f"faults.max_node_failures={number + 1} includes it again"
            )

    def include_all_nodes(self) -> None:
        """Use excluded nodes again: without them there are too few."""
        self.history = dataclasses.replace(self.history, excluded=())

    def handle(
        self,
        error: Exception,
        attempt: AttemptSpec,
        slots: Mapping[str, int],
        node: str | None = None,
        *,
        stopping: bool = False,
        kept_step: int | None = None,
    ) -> Decision:
        """Record the failure of `attempt` and return the decision to run another one.

        `slots` maps each live node to the number of workers that it can hold; `node` is the origin of `error`.
        `kept_step`: what a worker that survives has completed and has in memory. Raises
        `error`, with the history as a note, if there is no other attempt, or if the run is to stop anyway.
        """
        session, run, number = self._session, self._session.run, attempt.number
        beats = read_beats(run, number)
        training_began = session.progress.training_began
        lost = lost_work(
            run,
            attempt.first_step,
            attempt.began,
            beats,
            training_began=training_began,
            from_memory=attempt.memory is not None,
            kept_step=kept_step,
        )
        failure = describe_failure(error, number, lost, node)
        decision = decide(self.policy, self.history, failure, slots, session.config.batch.size)
        if stopping:
            decision = dataclasses.replace(decision, again=False, reason="the run was asked to stop")
        self.history = decision.history
        incidents.write(run, number, error, lost, beats, decision)
        facts = {"class": failure.kind, "rank": getattr(error, "rank", None), "node": node, **lost.facts(beats)}
        facts |= {"decision": decision.reason, "excluded": list(decision.history.excluded)}
        run.end_attempt(number, rule_for(error).exit_code, f"{failure.kind}: {failure.message}", lost.last_step, facts)
        happened = incidents.what_happened(error, number, lost)
        event = "failure" if decision.again else "gave_up"
        session.notifier.notify(event, happened, **{**facts, "exit_code": failure.exit_code})
        if not decision.again:
            if failure.retry is not Retry.NEVER or len(self.history.lines) > 1:  # else the message suffices
                error.add_note(decision.reason)
            raise error
        if decision.history.skips:
            write_skips(run, decision.history.skips)
        if decision.num_micro_batches is not None:
            self.num_micro_batches = decision.num_micro_batches
        session.progress.print(f"{happened}\n  starting again: {decision.reason}")
        return decision


def wait(seconds: float, signals: StopSignals) -> None:
    """Sleep for `seconds`, or until a stopping signal arrives."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not signals.stopped:
        time.sleep(min(0.1, max(deadline - time.monotonic(), 0.0)))
