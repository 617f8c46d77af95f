"""The ends of attempts that a person asks for: a second Ctrl-C, and a stop before the next attempt has made a step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from launcher.console import Progress
from launcher.exit_codes import ExitCode
from launcher.run import lease
from launcher.run.directory import RunDirectory
from launcher.run.progress import lost_work, read_beats
from launcher.run.record_types import as_seconds
from launcher.run.status import STOPPED_ON_REQUEST
from launcher.signals import StopSignals

RESUMES = "the same command resumes the run"


@contextlib.contextmanager
def ends_at_once(run: RunDirectory, held: lease.Lease, stop: StopSignals, progress: Progress) -> Iterator[None]:
    """After a second Ctrl-C in the block, record the end of the running attempt, and release the lease."""
    num_before = len(run.attempts())

    def end() -> None:
        progress.hide()
        causes = []
        for attempt in run.attempts()[num_before:]:
            if attempt.ended is None:
                beats, began = read_beats(run, attempt.number), as_seconds(attempt.started)
                step, training_began = attempt.facts.get("from_step", 0), progress.training_began
                lost = lost_work(
                    run,
                    step,
                    began,
                    beats,
                    training_began=training_began,
                    verify=False,
                    from_memory="from_memory_of_rank" in attempt.facts,
                )
                saved = newest_checkpoint(lost.saved_step)
                cause, facts = f"ended by a second Ctrl-C; {saved}", {**lost.facts(beats), "decision": RESUMES}
                run.end_attempt(attempt.number, ExitCode.INTERRUPTED, cause, lost.last_step, facts)
                causes.append(f"{cause}; {RESUMES}")
        held.release()
        for cause in causes:  # last: the main thread, which waits, may hold the lock of sys.stderr
            print(cause, file=sys.stderr, flush=True)

    try:
        with stop.listen(on_end=end):
            yield
    except KeyboardInterrupt:
        end()
        raise


def newest_checkpoint(step: int) -> str:
    """Which checkpoint is the newest, as text: that of `step`; 0: there is none."""
    return f"the newest checkpoint is of step {step}" if step else "there is no checkpoint"


def record_stop(run: RunDirectory, code: ExitCode, step: int, num_before: int) -> bool:
    """Record a stop between a failure and the next attempt's first step, as the end of that attempt; False for another.

    Without it, the failure would be the end of the run. `num_before`: the attempts of earlier commands.
    """
    last = next(iter(run.attempts()[num_before:][-1:]), None)
    if last is None or last.exit_code in (ExitCode.OK, ExitCode.STOPPED, ExitCode.INTERRUPTED):
        return False
    number = last.number
    if last.ended is not None:
        known = {name: last.facts[name] for name in ("place", "workers") if name in last.facts}
        number = run.begin_attempt({**known, "from_step": step})
    run.end_attempt(number, code, STOPPED_ON_REQUEST, step)
    return True
