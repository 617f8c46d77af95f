"""NCCL's and gloo's variables: the profile's, the user's own, and what neither should be."""

from __future__ import annotations

import pytest

from cluster.profile import KubernetesProfile, Network, SlurmProfile
from launcher.checks import variables

HERE = ("lo", "eth0", "ib0", "ib1")


def statuses(profile: dict[str, str], environment: dict[str, str], gpus: int = 8) -> list[tuple[str, str]]:
    found = variables.variables(profile, environment, HERE, on_gpu=gpus > 0)
    return [(finding.status, finding.found) for finding in found]


def test_the_profiles_variables() -> None:
    network = Network(interface="ib0", environment={"NCCL_IB_HCA": "mlx5"})
    expected = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib0", "NCCL_IB_HCA": "mlx5", "OMP_NUM_THREADS": "4"}
    assert variables.of_profile(SlurmProfile(network=network, environment={"OMP_NUM_THREADS": "4"})) == expected
    assert variables.of_profile(KubernetesProfile(image="ray:1", network=Network())) == {}


def test_a_conflict_names_both_values() -> None:
    ((status, found),) = statuses({"NCCL_IB_HCA": "mlx5_0"}, {"NCCL_IB_HCA": "mlx5_1"})
    assert status == "warn"
    assert "'mlx5_1' in your environment and 'mlx5_0' in the profile" in found


def test_equal_and_absent_variables_are_no_conflict() -> None:
    assert statuses({"NCCL_IB_HCA": "mlx5"}, {"NCCL_IB_HCA": "mlx5"}) == [("pass", "NCCL_IB_HCA: no conflict")]
    assert statuses({}, {"PATH": "/bin"})[0][0] == "pass"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", "pass"),
        ("GLOO_SOCKET_IFNAME", "eth", "fail"),  # gloo knows no prefixes
        ("GLOO_SOCKET_IFNAME", "eth0,ib0", "pass"),
        ("NCCL_SOCKET_IFNAME", "ib", "pass"),
        ("NCCL_SOCKET_IFNAME", "=ib", "fail"),
        ("NCCL_SOCKET_IFNAME", "=ib0,ib1", "pass"),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", "pass"),
        ("NCCL_SOCKET_IFNAME", "^lo,eth,ib", "fail"),
        ("NCCL_SOCKET_IFNAME", "enp", "fail"),
    ],
)
def test_an_interface_that_is_not_here_fails(name: str, value: str, status: str) -> None:
    assert statuses({}, {name: value})[0][0] == status


def test_the_profiles_interface_is_looked_for_too() -> None:
    assert statuses({"NCCL_SOCKET_IFNAME": "hsn"}, {})[0][0] == "fail"


def test_the_kernel_is_asked_for_this_hosts_interfaces() -> None:
    (finding,) = variables.variables({}, {"GLOO_SOCKET_IFNAME": "no-such-interface"}, on_gpu=False)
    assert finding.status == "fail"


@pytest.mark.parametrize("name", ["NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE"])
def test_disabling_a_transport_is_a_warning(name: str) -> None:
    assert statuses({}, {name: "1"})[0][0] == "warn"
    assert statuses({}, {name: "0"})[0][0] == "pass"
    assert statuses({}, {name: "1"}, gpus=0)[0][0] == "pass"  # gloo does not read it


def test_a_debug_level_that_fills_the_logs_is_a_warning() -> None:
    assert statuses({}, {"NCCL_DEBUG": "info"})[0][0] == "warn"
    assert statuses({}, {"NCCL_DEBUG": "WARN"})[0][0] == "pass"
