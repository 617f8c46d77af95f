"""What happens when an attempt has failed, wherever it ran: it is recorded, told, and answered as the policy says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.recovery import incidents
from launcher.recovery.faults import rule_for
from launcher.recovery.history import failure_of, policy_of, read_skips, strikes_before, write_skips
from launcher.recovery.notify import Notifier
from launcher.recovery.policy import Decision, History, Policy, Retry, decide
from launcher.run.directory import RunDirectory
from launcher.run.progress import loss_of, micro_batches_before, read_beats, trusted_step


class Recovery:
    """The history of a run under one driver, and the decisions that follow from it."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, progress: Progress, notifier: Notifier, policy: Policy | None = None
    ) -> None:
        self.policy = policy_of(config) if policy is None else policy
        self.history = History(saved_step=trusted_step(run), strikes=strikes_before(run), skips=read_skips(run))
        self.num_micro_batches = micro_batches_before(run)
        self._batch_size = config.batch.size
        self._run, self._progress, self._notifier = run, progress, notifier

    def leave_out_struck(self) -> None:
        """Leave out what was at fault too often under earlier drivers of this run."""
        most = self.policy.node_strikes
        struck = {node: count for node, count in self.history.strikes.items() if count >= most}
        self.history = dataclasses.replace(self.history, excluded=tuple(sorted(struck)))
        for node, count in sorted(struck.items()):
            self._progress.say(
                f"node {node} was at fault {count} times in this run and is left out; once it is mended, "
                f"faults.node_strikes={count + 1} lets it in again"
            )

    def use_all(self) -> None:
        """Leave no node out any more: there are too few without those that were."""
        self.history = dataclasses.replace(self.history, excluded=())

    def failed(
        self,
        error: Exception,
        attempt: int,
        first_step: int,
        began: float,
        slots: Mapping[str, int],
        node: str | None = None,
        *,
        stopping: bool = False,
    ) -> Decision:
        """Answer the failure of `attempt`, which went on from `first_step` at the time `began`.

        `slots` are the workers that each live node can hold; `node` is the one that `error` came from. Raises `error`,
        with the history as a note, where the run is not tried again, or is to be stopped anyway.
        """
        beats = read_beats(self._run, attempt)
        loss = loss_of(self._run, first_step, began, beats)
        failure = failure_of(error, attempt, loss, node)
        decision = decide(self.policy, self.history, failure, slots, self._batch_size)
        if stopping:
            decision = dataclasses.replace(decision, again=False, reason="it was asked to stop")
        self.history = decision.history
        incidents.write(self._run, attempt, error, loss, beats, decision)
        facts = {"class": failure.kind, "rank": getattr(error, "rank", None), "node": node, **loss.facts(beats)}
        facts |= {"decision": decision.reason, "excluded": list(decision.history.excluded)}
        cause = f"{failure.kind}: {failure.message}"
        self._run.end_attempt(attempt, rule_for(error).exit_code, cause, loss.last_step, facts)
        happened = incidents.first_line(error, attempt, loss)
        self._notifier.tell(
            "failure" if decision.again else "gave_up", happened, **{**facts, "exit_code": failure.exit_code}
        )
        if not decision.again:
            if failure.retry is not Retry.NEVER or len(self.history.lines) > 1:  # else the error says it all
                error.add_note(decision.reason)
            raise error
        if decision.history.skips:
            write_skips(self._run, decision.history.skips)
        if decision.num_micro_batches is not None:
            self.num_micro_batches = decision.num_micro_batches
        self._progress.say(f"{happened}\n  starting again: {decision.reason}")
        return decision


def wait(seconds: float, stopped: object) -> None:
    """Sleep for `seconds`, or until the signals object `stopped` says that the run is to stop."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not getattr(stopped, "stopped", False):
        time.sleep(min(0.1, max(deadline - time.monotonic(), 0.0)))
