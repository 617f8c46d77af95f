"""The rule for each error, and the root cause among several errors."""

from __future__ import annotations

import pytest

from launcher.errors import CollectiveFault, DeviceFault, WorkerHung, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import parse_lost_worker, rule_for, select_root_cause, translate_error
from launcher.recovery.policy import Retry
from resnet_dist.errors import DataError, DivergedError, MissingPackage, StorageError, StoreUnavailable


@pytest.mark.parametrize(
    ("error", "code", "restarted"),
    [
        (DataError("a.jpg", "broken"), ExitCode.DATA, False),
        (StoreUnavailable("s3://bucket/a.jpg", "does not answer"), ExitCode.UNAVAILABLE, False),
        (DivergedError(3, float("nan")), ExitCode.DIVERGED, False),
        (MissingPackage("data.decoder", "DALI", "pip install"), ExitCode.CONFIG, False),
        (StorageError("/run", "full"), ExitCode.HARDWARE, True),
        (WorkerLost("host", 1, "killed"), ExitCode.HARDWARE, True),
        (ValueError("the user's own"), ExitCode.USER_CODE, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_the_most_specific_rule_applies(error: Exception, code: ExitCode, restarted: bool) -> None:
    rule = rule_for(error)
    assert (rule.exit_code, rule.retry is Retry.RESTART) == (code, restarted)


def test_a_launcher_error_comes_before_the_broken_connections_it_caused() -> None:
    closed = RuntimeError("[gloo] Connection closed by peer")
    broken = DataError("a.jpg", "broken", 7)
    assert select_root_cause({0: closed, 1: WorkerLost("host", 1, "exited"), 2: broken}) == (2, broken)


def test_a_lost_worker_comes_before_the_users_error() -> None:
    lost = WorkerLost("host", 2, "killed")
    assert select_root_cause({0: RuntimeError("Connection reset"), 1: ValueError("x"), 2: lost}) == (2, lost)


def test_the_users_error_comes_before_broken_connections() -> None:
    own = ValueError("x")
    assert select_root_cause({0: RuntimeError("Connection reset"), 1: own}) == (1, own)


def test_a_hang_comes_before_the_workers_that_ended_with_it() -> None:
    hung = WorkerHung("host", 2, "step", 7, "no progress for 60 s")
    assert select_root_cause({0: CollectiveFault("closed"), 1: WorkerLost("host", 1, "exited"), 2: hung}) == (2, hung)


def test_a_device_that_reports_itself_broken_is_a_device_fault() -> None:
    error = translate_error(RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore"), 3, "node-7")
    assert isinstance(error, DeviceFault)
    assert str(error) == "worker 3 on node-7: CUDA error: uncorrectable ECC error encountered"
    assert rule_for(error).blames_node


def test_a_broken_connection_without_another_error_is_a_collective_fault() -> None:
    error = translate_error(RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer"), 0, "a")
    assert isinstance(error, CollectiveFault)
    assert (rule_for(error).exit_code, rule_for(error).blames_node) == (ExitCode.HARDWARE, False)


def test_a_users_error_is_not_translated() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert translate_error(error, 0, "a") is error


def test_rays_text_about_a_lost_worker_names_its_host_and_node() -> None:
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
    lost = parse_lost_worker(2, text)
    assert (lost.rank, lost.host) == (2, "node-7")
    assert lost.node_id == "b0c1d2e3f40516273849a0b1c2d3e4f5b0c1d2e3f40516273849a0b1"
    assert "died unexpectedly" in str(lost)


def test_a_lost_worker_without_any_text_still_has_a_message() -> None:
    assert str(parse_lost_worker(1, "")) == "worker 1 on an unknown host: no reason given"
