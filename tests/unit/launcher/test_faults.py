"""Which error is answered how, and which of several began it."""

from __future__ import annotations

import pytest

from launcher.errors import WorkerLost
from launcher.exit_codes import ExitCode
from launcher.faults import rule_for, true_cause
from resnet_dist.errors import DataError, DivergedError, MissingPackage, StorageError


@pytest.mark.parametrize(
    ("error", "code", "retried"),
    [
        (DataError("a.jpg", "broken"), ExitCode.DATA, False),
        (DivergedError(3, float("nan")), ExitCode.DIVERGED, False),
        (MissingPackage("data.decoder", "DALI", "pip install"), ExitCode.CONFIG, False),
        (StorageError("/run", "full"), ExitCode.HARDWARE, True),
        (WorkerLost("host", 1, "killed"), ExitCode.HARDWARE, True),
        (ValueError("the user's own"), ExitCode.USER_CODE, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_rule_is_the_most_exact_one(error: Exception, code: ExitCode, retried: bool) -> None:
    rule = rule_for(error)
    assert (rule.exit_code, rule.retried) == (code, retried)


def test_an_error_of_ours_comes_before_the_broken_connections_it_caused() -> None:
    closed = RuntimeError("[gloo] Connection closed by peer")
    broken = DataError("a.jpg", "broken", 7)
    assert true_cause({0: closed, 1: WorkerLost("host", 1, "exited"), 2: broken}) == (2, broken)


def test_a_lost_worker_comes_before_the_users_error() -> None:
    lost = WorkerLost("host", 2, "killed")
    assert true_cause({0: RuntimeError("Connection reset"), 1: ValueError("x"), 2: lost}) == (2, lost)


def test_the_users_error_comes_before_broken_connections() -> None:
    own = ValueError("x")
    assert true_cause({0: RuntimeError("Connection reset"), 1: own}) == (1, own)
