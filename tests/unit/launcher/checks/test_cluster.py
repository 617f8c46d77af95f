"""Several hosts together: hosts of threads here, each with a fault of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from launcher.checks.cluster import cluster_findings, merged, reduce_over
from launcher.checks.finding import Finding, failed, passed, warned
from launcher.checks.hosts import Call, Host
from launcher.checks.store_hosts import StoreHosts, register, registered, serve
from launcher.checks.tasks import run_task
from launcher.config import load as configs
from launcher.config.schema import RunConfig

Answer = dict[str, Any] | str
Fault = Callable[[str, str, Mapping[str, Any]], Answer | None]  # host, task, arguments -> another answer, or None

EQUAL = {"python": "3.12", "packages": {}, "variables": {}, "code": "a", "cuda": None}


class FakeHosts:
    """Hosts whose tasks run here one after the other, unless a fault answers in their place."""

    def __init__(self, count: int, fault: Fault = lambda host, task, arguments: None) -> None:
        host = Host("127.0.0.1", workers=1, gpus=0, cpus=1)
        self.hosts: Mapping[str, Host] = {f"n{number}": host for number in range(count)}
        self._fault = fault

    def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Answer]:
        return {host: self._answer(host, *call) for host, call in calls.items()}

    def _answer(self, host: str, task: str, arguments: Mapping[str, Any]) -> Answer:
        answer = self._fault(host, task, arguments)
        if answer is not None:
            return answer
        match task:
            case "facts":
                return dict(EQUAL)
            case "findings":
                return {"findings": [passed("CPUs", "1 allowed").described()]}
            case "reduce":
                return {"problems": [], "wrong": 0, "bus_bytes_per_s": 1e9}
        return run_task(task, arguments)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return configs.from_mapping(
        {
            "schema": 1, "name": "run", "storage": str(tmp_path), "duration": "1 steps", "place": "local", "workers": 4,
            "batch": {"size": 4}, "model": {"name": "resnet20", "num_classes": 2}, "data": {"root": "images"},
            "schedule": {"peak_lr": 0.1}, "cluster": {"nodes": 4},
        },
        tmp_path,
    )  # fmt: skip


def bad(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(one.name, one.host, one.status) for one in findings if one.status in ("warn", "fail")]


def test_hosts_without_a_fault_pass_every_check(config: RunConfig, tmp_path: Path) -> None:
    findings = cluster_findings(FakeHosts(4), config, 60)
    assert bad(findings) == []
    names = ["reached", "resources", "versions", "clocks", "shared storage", "CPUs", "all-reduce"]
    assert [finding.name for finding in findings] == names
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_answer_is_named_and_the_others_are_looked_at(config: RunConfig) -> None:
    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        return "no answer within 60 s" if host == "n2" else None

    findings = cluster_findings(FakeHosts(4, fault), config, 60)
    assert bad(findings) == [("reached", "n2", "fail"), ("resources", "", "fail")]  # 3 of 4 CPUs are left
    assert findings[-1].name == "all-reduce"


def test_a_host_with_its_own_storage_is_named(config: RunConfig, tmp_path: Path) -> None:
    own = tmp_path / "of_n3"
    own.mkdir()

    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        if host != "n3" or task not in ("write", "see", "remove"):
            return None
        elsewhere = arguments["folder"].replace(str(tmp_path), str(own))
        more = {"seconds": 0.1} if task == "see" else {}
        return run_task(task, {**arguments, "folder": elsewhere, **more})

    findings = cluster_findings(FakeHosts(4, fault), config, 1, quick=True)
    storage = [finding for finding in findings if finding.name == "shared storage"]
    assert {finding.host for finding in storage} == {"n0", "n1", "n2", "n3"}
    assert "does not see the files of n3 in" in storage[0].found
    assert "does not see the files of n0, n1, n2 in" in storage[3].found
    assert list(own.iterdir()) == []


def test_a_mount_that_is_missing_on_one_host_is_named_and_stays_empty(config: RunConfig, tmp_path: Path) -> None:
    missing = tmp_path / "not_mounted"

    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        if host == "n1" and task == "write":
            try:
                run_task(task, {**arguments, "folder": f"{missing}/.doctor-x"})
            except FileNotFoundError as error:
                return f"FileNotFoundError: {error}"
        return None

    findings = cluster_findings(FakeHosts(4, fault), config, 60, quick=True)
    assert ("shared storage", "n1", "fail") in bad(findings)
    assert not missing.exists()


def test_a_clock_that_is_wrong_is_named(config: RunConfig) -> None:
    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        if task == "clock" and host == "n1":
            return {"time_s": run_task("clock", {})["time_s"] + 100}
        return None

    findings = cluster_findings(FakeHosts(4, fault), config, 60, quick=True)
    (clocks,) = [finding for finding in findings if finding.name == "clocks"]
    assert clocks.status == "fail"
    assert "100 s apart, n1 the most" in clocks.found


def test_a_host_that_breaks_the_all_reduce_is_named_by_pairs(config: RunConfig) -> None:
    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        return None

    class Broken(FakeHosts):
        def run(self, calls: Mapping[str, Call], seconds: float) -> dict[str, Answer]:
            answers = super().run(calls, seconds)
            if "n2" in calls and calls["n2"][0] == "reduce":
                timed_out = {"problems": ["timed out"], "wrong": 0, "bus_bytes_per_s": 0.0}
                return dict.fromkeys(calls, timed_out)
            return answers

    findings = cluster_findings(Broken(8, fault), config, 600)
    assert bad(findings) == [("all-reduce", "", "fail"), ("bad host", "n2", "fail")]


def test_a_sum_that_is_wrong_counts_like_one_that_never_comes(config: RunConfig) -> None:
    def fault(host: str, task: str, arguments: Mapping[str, Any]) -> Answer | None:
        return {"problems": [], "wrong": 7, "bus_bytes_per_s": 1.0} if task == "reduce" and host == "n0" else None

    problems, _ = reduce_over(FakeHosts(2, fault), ["n0", "n1"], False, 1024, 60)
    assert problems == ["n0: 7 elements of the sum wrong"]


def test_quick_leaves_the_all_reduce_out(config: RunConfig) -> None:
    findings = cluster_findings(FakeHosts(2), config, 60, quick=True)
    assert findings[-1] == Finding("all-reduce", "skipped", "left out by --quick")


def test_passes_of_many_hosts_are_merged_and_warnings_are_not() -> None:
    good = [passed("CPUs", "8 allowed"), passed("disk", "9 GiB")]
    worse = [passed("CPUs", "8 allowed"), warned("disk", "1 GiB", "free some")]
    findings = merged({"n0": good, "n1": good, "n2": worse})
    assert findings == [
        passed("CPUs", "3 hosts: 8 allowed"),
        passed("disk", "2 hosts: 9 GiB"),
        warned("disk", "1 GiB", "free some").on("n2"),
    ]


def test_hosts_answer_through_a_store(config: RunConfig) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    received: list[list[Finding]] = []
    other = threading.Thread(target=lambda: received.append(serve(store, 1, 20)))
    other.start()
    for number in (0, 1):
        register(store, number, 2, config)
    hosts = StoreHosts(store, registered(store, 2))
    assert [host.cpus for host in hosts.hosts.values()] == [2, 2]
    first, second = hosts.hosts
    answers = hosts.run({first: ("port", {}), second: ("clock", {})}, 20)
    assert set(answers[first]) == {"port"}
    assert set(answers[second]) == {"time_s"}
    refused = hosts.run({second: ("write", {"folder": "/no/such/folder", "name": "a", "content": ""})}, 20)
    assert "FileNotFoundError" in refused[second]
    again = hosts.run({second: ("clock", {})}, 20)  # an error does not end the service
    assert set(again[second]) == {"time_s"}
    finding = failed("disk", "full", "empty it")
    hosts.end([finding])
    other.join(20)
    assert received == [[finding]]


def test_a_host_that_is_gone_is_not_waited_for_longer_than_asked(config: RunConfig) -> None:
    store = HashStore()
    store.set("1/host", '["gone", {"address": "10.0.0.9", "workers": 1, "gpus": 0, "cpus": 1}]')
    register(store, 0, 1, config)
    hosts = StoreHosts(store, registered(store, 2))
    assert hosts.run({"gone": ("clock", {})}, 0.1)["gone"] == "no answer within 0.1 s"


def test_the_files_of_a_storage_test_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / ".doctor-1"
    run_task("write", {"folder": str(folder), "name": "0", "content": "x"})
    assert run_task("see", {"folder": str(folder), "contents": {"0": "x"}, "seconds": 0})["missing"] == []
    assert run_task("see", {"folder": str(folder), "contents": {"0": "y"}, "seconds": 0})["missing"] == ["0"]
    run_task("remove", {"folder": str(folder), "names": ["0"]})
    assert not folder.exists()
    assert shutil.disk_usage(tmp_path).total
