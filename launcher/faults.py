"""What every kind of failure means: one exit code and one retry rule each. Only this file decides about retries."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import ClusterUnavailable, ConfigError, LauncherError, UsageError, UserCodeError, WorkerLost
from launcher.exit_codes import ExitCode
from resnet_dist import errors


@dataclass(frozen=True)
class Rule:
    """How a class of errors is answered."""

    error: type[BaseException]
    exit_code: ExitCode
    retried: bool  # in a new attempt, from the newest checkpoint, up to faults.max_failures times


# The first rule whose class fits holds: subclasses before their bases.
RULES = (
    Rule(UsageError, ExitCode.USAGE, retried=False),
    Rule(ConfigError, ExitCode.CONFIG, retried=False),
    Rule(ClusterUnavailable, ExitCode.UNAVAILABLE, retried=False),
    Rule(WorkerLost, ExitCode.HARDWARE, retried=True),
    Rule(UserCodeError, ExitCode.USER_CODE, retried=True),
    Rule(LauncherError, ExitCode.INTERNAL, retried=False),
    Rule(errors.RecipeError, ExitCode.CONFIG, retried=False),
    Rule(errors.DataError, ExitCode.DATA, retried=False),
    Rule(errors.CheckpointError, ExitCode.DATA, retried=False),
    Rule(errors.DivergedError, ExitCode.DIVERGED, retried=False),
    Rule(errors.StorageError, ExitCode.HARDWARE, retried=True),
    Rule(errors.TrainingError, ExitCode.INTERNAL, retried=False),
    Rule(Exception, ExitCode.USER_CODE, retried=True),
)


def rule_for(error: BaseException) -> Rule:
    """The rule that answers `error`."""
    return next(rule for rule in RULES if isinstance(error, rule.error))


def true_cause(failures: dict[int, BaseException]) -> tuple[int, BaseException]:
    """The rank and error that began it, of one error a rank.

    When one worker fails, the others lose their connection to it: an error of ours comes first, then a lost worker,
    then whatever is no complaint about a broken collective.
    """

    def weight(item: tuple[int, BaseException]) -> tuple[int, int]:
        rank, error = item
        if isinstance(error, errors.TrainingError | LauncherError):
            return (1 if isinstance(error, WorkerLost) else 0, rank)
        collateral = isinstance(error, RuntimeError) and ("Connection" in str(error) or "gloo" in str(error).lower())
        return (3 if collateral else 2, rank)

    return min(failures.items(), key=weight)
