"""Addresses, ports and proxies: taken ports are taken for real."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.checks import network
from launcher.checks.finding import require
from launcher.checks.host_requirements import HostRequirements
from launcher.checks.suite import host_checks
from launcher.errors import ClusterUnavailable


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen(1)
        yield server.getsockname()[1]


def test_a_port_in_use_is_named_with_its_user(taken_port: int) -> None:
    finding = network.ports({taken_port: "torchrun's rendezvous"})
    assert finding.status == "warn"
    assert f"{taken_port} (torchrun's rendezvous) in use" in finding.found


def test_a_free_port_is_free() -> None:
    port = network.unused_port()
    assert network.is_free(port)
    assert network.ports({port: "ours"}).status == "pass"
    assert network.ports({}).status == "pass"


def test_a_port_that_cannot_be_reached_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert network.ports({}).status == "fail"


def test_the_rendezvous_port_is_wanted_before_torchrun_and_not_inside_it() -> None:
    required = HostRequirements(workers=2)
    assert network.wanted_ports(required, {"MASTER_PORT": "12345"}) == {12345: "torchrun's rendezvous"}
    assert network.wanted_ports(required, {"RANK": "0"}) == {}
    assert network.wanted_ports(HostRequirements(workers=2, supervised=True), {}) == {}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the system say that this host's name has these addresses, and that these interfaces exist, with theirs.

    No other name is known, and there are no routes.
    """

    def make(names: list[str], interfaces: dict[str, str]) -> None:
        def resolve(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
            if name != socket.gethostname() or not names:
                raise socket.gaierror(-2, "Name or service not known")
            families = {False: socket.AF_INET, True: socket.AF_INET6}
            return [(families[":" in one], socket.SOCK_STREAM, 6, "", (one, 0)) for one in names]

        def ioctl(_: object, __: int, request: bytes) -> bytes:
            name = request[:16].rstrip(b"\0").decode()
            if name not in interfaces:
                raise OSError(99, "Cannot assign requested address")
            return request[:20] + ipaddress.ip_address(interfaces[name]).packed + request[24:]

        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(["lo", *interfaces], start=1)))
        monkeypatch.setattr(fcntl, "ioctl", ioctl)

    return make


Machine = Callable[..., None]
NOWHERE = "192.0.2.77"  # an address of no host: nothing can listen there
LOOPBACK_NAMES = [["127.0.1.1"], ["127.0.1.1", NOWHERE], [NOWHERE, "127.0.0.1"], [NOWHERE], ["::1"], []]


@pytest.mark.parametrize("names", LOOPBACK_NAMES)
def test_gloo_gets_the_interface_of_a_host_whose_name_leads_only_to_itself(
    names: list[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(names, {"eth7": "10.1.2.3"})
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # restored after the test
    foreseen = network.host_name(several_nodes=True)
    assert (foreseen.status, "eth7" in foreseen.found) == ("pass", True)
    assert os.environ["GLOO_SOCKET_IFNAME"] == ""
    assert network.select_interface("n0").status == "pass"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.parametrize("interfaces", [{}, {"eth7": "10.1.2.3", "eth8": "10.1.3.3"}])
@pytest.mark.parametrize("names", LOOPBACK_NAMES)
def test_a_host_without_a_suitable_interface_fails_with_several_nodes(
    names: list[str], interfaces: dict[str, str], machine: Machine
) -> None:
    machine(names, interfaces)
    with pytest.raises(ClusterUnavailable, match="or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"):
        require([network.select_interface("n0")])
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert network.host_name(several_nodes=True).status == "fail"
    assert network.host_name(several_nodes=False).status == ("pass" if names else "warn")


def test_the_users_own_interface_is_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(["127.0.1.1"], {"eth7": "10.1.2.3"})
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert "ib0" in network.select_interface("n0").found
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost", "::1"])
def test_workers_of_one_host_need_no_interface(head: str, machine: Machine) -> None:
    machine(["127.0.1.1"], {})
    assert network.select_interface(head).status == "pass"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_a_name_with_an_address_of_this_host_is_left_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine([NOWHERE, "10.1.2.3"], {"eth7": "10.1.2.3"})
    bind = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", lambda one, at: None if at[0] == "10.1.2.3" else bind(one, at))
    assert network.select_interface("n0").status == "pass"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_interface_is_that_of_the_route() -> None:
    address, interface = network.own_address(), network.interface_towards()
    if ipaddress.ip_address(address).is_loopback:  # on a machine without a network
        assert interface in (None, *(name for _, name in socket.if_nameindex()))
    else:
        assert interface is not None
        assert interface != "lo"
        assert Path("/sys/class/net", interface).exists()
    assert network.own_address("127.0.0.1") == "127.0.0.1"
    assert network.own_address("::1") in ("::1", "127.0.0.1")  # the latter on a machine without IPv6
    assert network.own_address("no-such-host.invalid") == "127.0.0.1"


PROXY = {"http_proxy": "http://user:hidden@proxy:3128"}


def test_a_proxy_that_would_apply_to_cluster_traffic() -> None:
    finding = network.proxies(["10.0.0.5", "127.0.0.1"], {**PROXY, "no_proxy": "127.0.0.1"}, alone=False)
    assert finding.status == "fail"
    assert "10.0.0.5" in finding.advice
    assert "127.0.0.1" not in finding.advice
    assert "hidden" not in finding.found + finding.advice  # a proxy's address may hold a password
    assert network.proxies(["10.0.0.5"], PROXY, alone=True).status == "warn"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "grpc_proxy", "ALL_PROXY"])
def test_every_proxy_variable_counts(variable: str) -> None:
    assert network.proxies(["n1"], {variable: "http://proxy:3128"}, alone=False).status == "fail"


@pytest.mark.parametrize("exceptions", ["*", "10.0.0.5", "10.0.0.0/8", "localhost, 10.0.0.5"])
def test_exceptions_are_understood(exceptions: str) -> None:
    assert network.proxies(["10.0.0.5"], {**PROXY, "NO_PROXY": exceptions}, alone=False).status == "pass"


def test_no_proxy_at_all() -> None:
    assert network.proxies(["10.0.0.5"], {}, alone=False).status == "pass"


def test_addresses_that_the_environment_names_are_looked_at() -> None:
    environment = {**PROXY, "RAY_ADDRESS": "ray-head.site:6379", "MASTER_ADDR": "n0", "no_proxy": "127.0.0.1"}
    check = next(
        check for check in host_checks(None, HostRequirements(nodes=2), {}, environment) if check.name == "proxies"
    )
    finding = check.run()
    assert "n0" in finding.found  # type: ignore[union-attr]
    assert "ray-head.site" in finding.found  # type: ignore[union-attr]
