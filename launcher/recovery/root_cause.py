"""The last word on a run, FATAL: of several workers that fail, the one that began it is believed.

When one worker fails, the others lose their connection to it, and may be the first to say so. So a worker that has an
error of its own leaves it in FATAL before it leaves the others, and one that has seen nothing but their end looks
there, whatever the order in which they come.
"""

from __future__ import annotations

import time

from launcher.errors import CollectiveFault, ConfigError, LauncherError, UsageError, UserCodeError
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import RULES, is_broken_collective, rule_for
from launcher.run import submissions
from launcher.run.directory import Fatal, RunDirectory
from launcher.run.lease import LeaseLost
from resnet_dist.errors import TrainingError

WORD_S = 5.0  # assumption: a shared file system shows a new file to other hosts by then (NFS keeps a name for 3 s)
_POLL_S = 0.05

# What may go better on other machines or later: a place that starts the run again is right to do so.
_ELSEWHERE = (ExitCode.UNAVAILABLE, ExitCode.HARDWARE)


def notes(error: BaseException) -> list[str]:
    """What was added to an error on its way."""
    return list(getattr(error, "__notes__", []))


def tell(run: RunDirectory, error: Exception, *, instead_of: Fatal | None = None, keep: bool = False) -> None:
    """Leave `error` as the end of the run, unless it says nothing of the run that is there.

    With `keep`, and where it is only a broken connection, what another worker has left stays; but not an end that was
    there before, `instead_of`.
    """
    if isinstance(error, UsageError | ConfigError | LeaseLost):
        return
    if instead_of is not None and run.fatal() == instead_of:
        run.fatal_file.unlink(missing_ok=True)
    rule = rule_for(error)
    run.mark_fatal(
        rule.exit_code,
        "\n".join([f"{type(error).__name__}: {error}", *notes(error)]),
        kind=rule.error.__name__,
        submission=submissions.current(),
        keep=keep or _is_of_another(error),
    )


def true_cause(run: RunDirectory, error: Exception, patience_s: float = WORD_S) -> Exception:
    """The error that began it, of this attempt's workers: `error`, or what another one has left in FATAL.

    To be called on each worker that fails, while its process group is up. Where `error` is what is seen of another
    one's end, the other's word is waited for.
    """
    if not _is_of_another(error):
        tell(run, error)
        return error
    until = time.monotonic() + patience_s
    while (found := run.fatal()) is None and time.monotonic() < until:
        time.sleep(_POLL_S)
    if found is None or found.kind == CollectiveFault.__name__:
        return error
    return _as_error(found)


def ends_submission(found: Fatal) -> bool:
    """Whether a place starts the very submission again that has ended for good, in a way that would only repeat it."""
    return found.submission != "" and found.submission == submissions.current() and found.exit_code not in _ELSEWHERE


def _is_of_another(error: Exception) -> bool:
    return isinstance(error, CollectiveFault) or is_broken_collective(error)


def _as_error(found: Fatal) -> Exception:
    """What FATAL says as an error of its class, which has the message alone."""
    kind = next((rule.error for rule in RULES if rule.error.__name__ == found.kind), None)
    if kind is None or not issubclass(kind, LauncherError | TrainingError):
        name, _, problem = found.message.partition(": ")
        return UserCodeError(name, problem)
    error = kind.__new__(kind)
    error.args = (found.message.removeprefix(f"{found.kind}: "),)
    return error
