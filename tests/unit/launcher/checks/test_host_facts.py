"""Facts of hosts, and what differs between them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.checks.finding import Finding
from launcher.checks.host_facts import compare_hosts, host_facts


def facts(**changes: Any) -> dict[str, Any]:
    common = {"python": "3.12.1", "cuda": "13.0", "code": "abc", "driver": "13.0", "gpus": ["H100"]}
    return {**common, "num_cpus_allowed": 8, "packages": {"torch": "2.14.1"}, "variables": {}, **changes}


def compare(**odd: Any) -> list[Finding]:
    """Three hosts, of which n2 differs in `odd`."""
    return compare_hosts({"n0": facts(), "n1": facts(), "n2": facts(**odd)})


def test_facts_are_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_TOKEN", "hidden-value")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden-value")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    text = json.dumps(host_facts())
    assert "hidden-value" not in text
    found = json.loads(text)
    assert found["variables"]["NCCL_DEBUG"] == "WARN"
    assert found["packages"]["torch"]
    assert found["code"] == host_facts()["code"]


def test_equal_hosts_pass_and_one_host_has_nothing_to_compare() -> None:
    assert [finding.status for finding in compare()] == ["pass"]
    assert compare_hosts({"n0": facts()}) == []


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"packages": {"torch": "2.13.0"}}, "torch: 2.14.1 on n0, n1; 2.13.0 on n2"),
        ({"packages": {}}, "torch: 2.14.1 on n0, n1; none on n2"),
        ({"python": "3.11.7"}, "python: 3.12.1 on n0, n1; 3.11.7 on n2"),
        ({"code": "abd"}, "code: abc on n0, n1; abd on n2"),
        ({"cuda": None}, "cuda: 13.0 on n0, n1; none on n2"),
    ],
)
def test_versions_that_differ_fail_and_name_the_odd_host(odd: dict[str, Any], said: str) -> None:
    (finding,) = compare(**odd)
    assert (finding.status, finding.found) == ("fail", said)


@pytest.mark.parametrize(
    "odd", [{"driver": "12.8"}, {"gpus": []}, {"num_cpus_allowed": 4}, {"variables": {"NCCL_IB_HCA": "mlx5"}}]
)
def test_what_only_costs_speed_is_a_warning(odd: dict[str, Any]) -> None:
    (finding,) = compare(**odd)
    assert finding.status == "warn"
    assert "n2" in finding.found


@pytest.mark.parametrize(("ahead_s", "status"), [(0.0, "pass"), (3.0, "warn"), (-3.0, "warn"), (120.0, "fail")])
def test_clocks_that_differ_name_the_odd_host(ahead_s: float, status: str) -> None:
    ahead = {"n0": (-0.01, 0.01), "n1": (-0.02, 0.0), "n2": (ahead_s - 0.01, ahead_s + 0.01)}
    findings = compare_hosts({host: facts(ahead_s=bounds) for host, bounds in ahead.items()})
    clocks = findings[-1]
    assert (clocks.name, clocks.status) == ("clocks", status)
    if status != "pass":
        assert "n2 the most" in clocks.found


def test_what_a_slow_network_may_explain_is_no_skew() -> None:
    findings = compare_hosts({"n0": facts(ahead_s=(-4.0, 4.0)), "n1": facts(ahead_s=(-0.1, 5.0))})
    assert findings[-1].status == "pass"
