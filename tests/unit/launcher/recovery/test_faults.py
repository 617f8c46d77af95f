"""Which error is answered how, and which of several began it."""

from __future__ import annotations

import pytest

from launcher.errors import CollectiveFault, DeviceFault, WorkerHung, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import in_our_words, lost_worker, rule_for, true_cause
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


def test_a_worker_that_hangs_comes_before_the_workers_that_ended_with_it() -> None:
    hung = WorkerHung("host", 2, "step", 7, "no sign of progress for 60 s")
    assert true_cause({0: CollectiveFault("closed"), 1: WorkerLost("host", 1, "exited"), 2: hung}) == (2, hung)


def test_a_device_that_reports_itself_broken_is_a_fault_of_the_machine() -> None:
    error = in_our_words(RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore"), 3, "node-7")
    assert isinstance(error, DeviceFault)
    assert str(error) == "worker 3 on node-7: CUDA error: uncorrectable ECC error encountered"
    assert rule_for(error).blames_node


def test_a_broken_connection_alone_is_a_fault_of_the_machines() -> None:
    error = in_our_words(RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer"), 0, "a")
    assert isinstance(error, CollectiveFault)
    assert (rule_for(error).exit_code, rule_for(error).blames_node) == (ExitCode.HARDWARE, False)


def test_a_users_error_keeps_its_words() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert in_our_words(error, 0, "a") is error


def test_rays_words_of_a_lost_worker_name_its_host_and_node() -> None:
    text = """A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, 0f9e),
  metadata=ActorMetadata(
    hostname='node-7',
    node_id='b0c1d2e3f40516273849a0b1c2d3e4f5b0c1d2e3f40516273849a0b1',
    node_ip='10.0.0.7',
    pid=4711,
The actor died unexpectedly before finishing this task.
\tnode_id: b0c1d2e3f40516273849a0b1c2d3e4f5b0c1d2e3f40516273849a0b1
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""
    lost = lost_worker(2, text)
    assert (lost.rank, lost.host, lost.ip) == (2, "node-7", "10.0.0.7")
    assert lost.node_id == "b0c1d2e3f40516273849a0b1c2d3e4f5b0c1d2e3f40516273849a0b1"
    assert "died unexpectedly" in str(lost)


def test_a_lost_worker_of_whom_nothing_is_said_still_has_a_message() -> None:
    assert str(lost_worker(1, "")) == "worker 1 on an unknown host: no reason given"
