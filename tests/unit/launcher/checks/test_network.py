"""Addresses, ports and proxies: taken ports are taken for real."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from launcher.checks import network
from launcher.checks.host_requirements import HostRequirements
from launcher.checks.suite import host_checks


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


def test_a_name_that_resolves_to_the_loopback_address_fails_with_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("127.0.1.1", 0))])
    assert network.host_name(several_nodes=False).status == "pass"
    assert network.host_name(several_nodes=True).status == "fail"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert network.host_name(several_nodes=True).status == "pass"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.1.2.3", 0))])
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert network.host_name(several_nodes=True).status == "pass"


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert network.host_name(several_nodes=False).status == "warn"
    assert network.host_name(several_nodes=True).status == "fail"


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
