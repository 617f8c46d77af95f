"""The root cause of a failed run, recorded in FATAL.

When one worker fails, the others lose their connection to it, and may report that first. Under torchrun, a worker that
raises another error writes it to FATAL before it leaves the process group; a worker that only lost a connection reads
FATAL and raises the error that it finds there. The order in which workers fail does not matter.
"""

from __future__ import annotations

import time

from launcher.errors import CollectiveFault, ConfigError, LauncherError, UsageError, UserCodeError
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import RULES, is_broken_collective, rule_for
from launcher.recovery.portable import message_of
from launcher.run.directory import RunDirectory, current_submission
from launcher.run.lease import LeaseLost
from launcher.run.record_types import Fatal
from resnet_dist.errors import TrainingError

TIMEOUT_S = 5.0  # assumption: by then a shared file system shows a new file to other hosts (NFS caches names for 3 s)
_POLL_S = 0.05

# These may not happen again on other machines or later, so a scheduler may start the run again.
_WORTH_RESTARTING = (ExitCode.UNAVAILABLE, ExitCode.HARDWARE)


def notes(error: BaseException) -> list[str]:
    """The notes of an error."""
    return list(getattr(error, "__notes__", []))


def record_failure(run: RunDirectory, error: Exception, *, previous: Fatal | None = None, keep: bool = False) -> None:
    """Write `error` to FATAL, unless it concerns only this start and not the run.

    With `keep`, or if `error` is a broken collective, a record of another worker stays; but `previous`, the record of
    an earlier start, is replaced.
    """
    if isinstance(error, UsageError | ConfigError | LeaseLost):
        return
    if previous is not None and run.fatal() == previous:
        run.fatal_file.unlink(missing_ok=True)
    rule = rule_for(error)
    run.mark_fatal(
        rule.exit_code,
        "\n".join([f"{type(error).__name__}: {message_of(error)}", *notes(error)]),
        kind=rule.error.__name__,
        submission=current_submission(),
        keep=keep or _is_broken_collective(error),
    )


def find_root_cause(run: RunDirectory, error: Exception, timeout_s: float = TIMEOUT_S) -> Exception:
    """The error that ended the attempt: `error` itself, or, if it is a broken collective, another worker's in FATAL.

    Call it on each worker that fails, before it leaves the process group. After a broken collective, it waits up to
    `timeout_s` for the record of another worker.
    """
    if not _is_broken_collective(error):
        record_failure(run, error)
        return error
    until = time.monotonic() + timeout_s
    while (found := run.fatal()) is None and time.monotonic() < until:
        time.sleep(_POLL_S)
    if found is None or found.kind == CollectiveFault.__name__:
        return error
    return _as_error(found)


def ends_submission(found: Fatal) -> bool:
    """Whether `found` is the failure of this process's submission, and a restart would only repeat it."""
    same = found.submission != "" and found.submission == current_submission()
    return same and found.exit_code not in _WORTH_RESTARTING


def _is_broken_collective(error: Exception) -> bool:
    return isinstance(error, CollectiveFault) or is_broken_collective(error)


def _as_error(found: Fatal) -> Exception:
    """The recorded failure as an error of its class, which has only its message."""
    kind = next((rule.error for rule in RULES if rule.error.__name__ == found.kind), None)
    if kind is None or not issubclass(kind, LauncherError | TrainingError):
        name, _, problem = found.message.partition(": ")
        return UserCodeError(name, problem)
    error = kind.__new__(kind)
    error.args = (found.message.removeprefix(f"{found.kind}: "),)
    return error
