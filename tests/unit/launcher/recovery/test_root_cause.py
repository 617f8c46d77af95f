"""FATAL has the root cause of several failures, in whatever order the workers fail."""

from __future__ import annotations

import threading

import pytest

from launcher.errors import CollectiveFault, ConfigError, DeviceFault, UserCodeError
from launcher.exit_codes import ExitCode
from launcher.recovery import root_cause
from launcher.recovery.faults import rule_for
from launcher.run.directory import RunDirectory
from launcher.run.lease import LeaseLost
from launcher.run.record_types import Fatal
from resnet_dist.errors import DataError, DivergedError, MissingPackage

CLOSED = CollectiveFault("worker 0 on a: [gloo] Connection closed by peer")
BROKEN = DataError("a.jpg", "broken", 7)


def end(run: RunDirectory) -> Fatal:
    found = run.fatal()
    assert found is not None
    return found


@pytest.mark.parametrize(
    "own", [BROKEN, DivergedError(3, float("nan")), ValueError("the user's"), DeviceFault("b", 1, "Xid")]
)
@pytest.mark.parametrize("first", ["own", "closed"])
def test_an_error_of_its_own_wins_over_a_broken_connection(small_run: RunDirectory, own: Exception, first: str) -> None:
    for error in (own, CLOSED) if first == "own" else (CLOSED, own):
        root_cause.record_failure(small_run, error)
    assert end(small_run).exit_code == rule_for(own).exit_code
    assert end(small_run).message == f"{type(own).__name__}: {own}"


def test_a_worker_that_lost_its_connection_ends_with_the_error_of_the_one_that_failed(small_run: RunDirectory) -> None:
    assert root_cause.find_root_cause(small_run, BROKEN) is BROKEN  # rank 1
    cause = root_cause.find_root_cause(small_run, CLOSED)  # rank 0
    assert isinstance(cause, DataError)
    assert str(cause) == "a.jpg (sample 7): broken"
    root_cause.record_failure(small_run, cause, keep=True)
    assert (end(small_run).exit_code, end(small_run).kind) == (65, "DataError")


def test_a_later_record_is_waited_for(small_run: RunDirectory) -> None:
    late = threading.Timer(0.1, root_cause.record_failure, (small_run, BROKEN))
    late.start()
    assert isinstance(root_cause.find_root_cause(small_run, RuntimeError("Connection reset by peer"), 60.0), DataError)
    late.join()


def test_without_another_record_the_connection_is_the_cause(small_run: RunDirectory) -> None:
    assert root_cause.find_root_cause(small_run, CLOSED, 0.0) is CLOSED
    root_cause.record_failure(small_run, CLOSED)
    assert root_cause.find_root_cause(small_run, CLOSED, 0.0) is CLOSED
    assert end(small_run).exit_code == 76


def test_the_users_error_and_one_of_a_subclass_keep_their_codes(small_run: RunDirectory) -> None:
    root_cause.record_failure(small_run, ValueError("shapes: 3 and 4"))
    cause = root_cause.find_root_cause(small_run, CLOSED)
    assert isinstance(cause, UserCodeError)
    assert str(cause) == "ValueError: shapes: 3 and 4"
    missing = MissingPackage("data.decoder", "DALI", "pip install")
    root_cause.record_failure(small_run, missing)
    assert rule_for(root_cause.find_root_cause(small_run, CLOSED)).exit_code is ExitCode.CONFIG


def test_the_record_of_an_earlier_start_is_replaced_by_a_broken_connection(small_run: RunDirectory) -> None:
    root_cause.record_failure(small_run, BROKEN)
    root_cause.record_failure(small_run, CLOSED, previous=end(small_run), keep=True)
    assert end(small_run).exit_code == 76


@pytest.mark.parametrize("error", [ConfigError([]), LeaseLost("run", None)])
def test_an_error_of_this_start_only_leaves_the_record_of_the_run(small_run: RunDirectory, error: Exception) -> None:
    root_cause.record_failure(small_run, BROKEN)
    before = end(small_run)
    root_cause.record_failure(small_run, error, previous=before)
    assert end(small_run) == before


def test_a_record_of_an_earlier_version_is_read(small_run: RunDirectory) -> None:
    small_run.fatal_file.write_text('{"exit_code": 79, "message": "nan", "time": "2026-01-01T00:00:00+00:00"}')
    assert end(small_run) == Fatal(79, "nan", "2026-01-01T00:00:00+00:00")
