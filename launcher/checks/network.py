"""The address of this host, free ports, and proxies that would intercept cluster traffic."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from launcher.checks.finding import Finding, failed, graded, passed
from launcher.checks.host_requirements import HostRequirements

# In the order in which gRPC, and so Ray, reads them; the others are read by HTTP clients.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

TORCHRUN_PORT = 29500  # torchrun's default rendezvous
RAY_PORT = 6379  # a Ray head's default


def host_name(*, several_nodes: bool) -> Finding:
    """The addresses of this host's name, which gloo sends to the other hosts."""
    name = socket.gethostname()
    advice = f"give {name} its network address in /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return graded("host name", f"{name} has no address ({error.strerror})", advice, fail=several_nodes, warn=True)
    addresses = sorted({str(info[4][0]) for info in infos})
    found = f"{name} is {', '.join(addresses)}"
    if not several_nodes or not all(ipaddress.ip_address(one.split("%")[0]).is_loopback for one in addresses):
        return passed("host name", found)
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return passed("host name", f"{found}; GLOO_SOCKET_IFNAME selects the interface")
    return failed("host name", f"{found}, which no other host can reach", advice)


def ports(wanted: Mapping[int, str]) -> Finding:
    """Whether this host can connect to its own ports, and whether the `wanted` ports (port: user) are free."""
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("", 0))
        listener.listen(1)
        caller.settimeout(2)
        try:
            caller.connect(("127.0.0.1", listener.getsockname()[1]))
        except OSError as error:
            advice = "allow connections on the loopback device: the processes of one host use it"
            return failed("ports", f"this host cannot connect to its own port ({error})", advice)
    taken = {port: user for port, user in wanted.items() if not is_free(port)}
    shown = ", ".join(f"{port} ({user})" for port, user in (taken or wanted).items())
    found = f"{shown} in use" if taken else f"{shown} free" if wanted else "a free port is available"
    advice = "end the process that listens there, or give this run another port: two jobs on one node conflict"
    return graded("ports", found, advice, warn=bool(taken))


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of every address of this host."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of a server that has ended counts as free
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def proxies(addresses: Sequence[str], environment: Mapping[str, str], *, alone: bool) -> Finding:
    """Whether a proxy variable applies to the hosts that the run connects to; `alone`: a run on one host.

    Only the names of the variables are shown: their values may contain passwords.
    """
    lower = {name.lower(): value for name, value in environment.items() if value}
    present = " and ".join(name for name in _PROXIES if name in lower)
    if not present:
        return passed("proxies", "no proxy variable is set")
    exceptions = [entry.strip() for name in _EXCEPTIONS for entry in lower.get(name, "").split(",") if entry.strip()]
    caught = sorted({address for address in addresses if not is_excepted(address, exceptions)})
    if not caught:
        return passed("proxies", f"{present}: no_proxy excepts every address of the run")
    advice = f"no_proxy={','.join(caught)} (and the same in NO_PROXY), or unset the proxy for the job"
    return graded("proxies", f"{present} would apply to {', '.join(caught)}", advice, fail=not alone, warn=True)


def is_excepted(address: str, exceptions: Sequence[str]) -> bool:
    """Whether an entry of no_proxy covers `address`: equal, a parent domain, a network, or `*`.

    >>> is_excepted("n1.cluster.local", [".cluster.local"]), is_excepted("10.0.0.7", ["10.0.0.0/8"])
    (True, True)
    >>> is_excepted("10.0.0.7", ["localhost", "0.7"])
    False
    """
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(address)
        return any(entry == "*" or _contains(entry, number) for entry in exceptions)
    domains = [entry.lstrip(".") for entry in exceptions]
    return any(domain == "*" or address == domain or address.endswith(f".{domain}") for domain in domains)


def _contains(network: str, number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return number in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def addresses(environment: Mapping[str, str]) -> list[str]:
    """The hosts that the run connects to, as far as they are known here: this one, and those in the environment."""
    found = ["127.0.0.1", own_address(), environment.get("MASTER_ADDR", "")]
    ray = environment.get("RAY_ADDRESS", "")
    if ray not in ("auto", "local"):
        found.append(urlsplit(ray if "//" in ray else f"//{ray}").hostname or ray)
    return sorted(set(filter(None, found)))


def own_address(towards: str = "") -> str:
    """The address that this host uses towards the host `towards`, or towards others in general; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards or "10.255.255.255", 9))
        except OSError:  # no route, or no such host
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def wanted_ports(required: HostRequirements, environment: Mapping[str, str]) -> dict[int, str]:
    """The fixed ports that the run will use; under torchrun or on a Ray cluster the run itself holds them already."""
    if "RANK" in environment or required.joins_a_cluster or required.workers == 0:
        return {}
    if required.ray:
        return {RAY_PORT: "Ray's head"} if required.nodes > 1 else {}
    if required.workers * required.nodes > 1:
        port = environment.get("MASTER_PORT", "")
        return {int(port) if port.isdigit() else TORCHRUN_PORT: "torchrun's rendezvous"}
    return {}


def unused_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
