"""The address of this host, free ports, and proxies that would intercept cluster traffic."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.checks.finding import Finding, failed, graded, passed
from launcher.checks.host_requirements import HostRequirements

# In the order in which gRPC, and so Ray, reads them; the others are read by HTTP clients.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

_ELSEWHERE = ("10.255.255.255", "2001:db8::1")  # addresses that no host has
_SIOCGIFADDR = 0x8915  # netdevice(7)
_NO_ADDRESS = ipaddress.IPv4Address(0)

_Number = ipaddress.IPv4Address | ipaddress.IPv6Address

TORCHRUN_PORT = 29500  # torchrun's default rendezvous
RAY_PORT = 6379  # a Ray head's default

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"


def host_name(*, several_nodes: bool, head: str = "") -> Finding:
    """Whether gloo can give the other hosts an address of this one: that of its name, or of an interface.

    `head` is the address of rank 0's host, if it is known.
    """
    name = socket.gethostname()
    advice = f"give {name} its network address in /etc/hosts or DNS, or set {INTERFACE_VARIABLE} and NCCL_SOCKET_IFNAME"
    addresses, found = _addresses_of(name)
    if not several_nodes:
        return graded("host name", found, advice, warn=not addresses)
    if not _is_loopback(announced_address(name)):
        return passed("host name", found)
    selected = os.environ.get(INTERFACE_VARIABLE)
    if selected:
        return passed("host name", f"{found}; {INTERFACE_VARIABLE} selects {selected}")
    interface = interface_towards(head)
    if interface is not None:
        return passed("host name", f"{found}; a run uses the interface {interface} instead")
    return failed("host name", f"{found}, which no other host can reach", advice)


def select_interface(head: str) -> Finding:
    """Let gloo use the interface towards `head`, rank 0's host, if this host's name leads to the loopback device.

    Every worker of a run on several nodes calls this before the process group is made. It sets GLOO_SOCKET_IFNAME,
    unless that is set already; the finding fails if no interface is suitable. NCCL ignores the host name and selects an
    interface itself (NCCL, socket.cc: ncclFindInterfaces).
    """
    if _is_loopback(head):  # all workers are on this host
        return host_name(several_nodes=False)
    if not os.environ.get(INTERFACE_VARIABLE) and _is_loopback(announced_address(socket.gethostname())):
        interface = interface_towards(head)
        if interface is not None:
            os.environ[INTERFACE_VARIABLE] = interface
    return host_name(several_nodes=True, head=head)


def announced_address(name: str) -> str:
    """The address that gloo gives to other hosts if the host name is `name`: the first one that it can listen on.

    Without one it is the loopback address (PyTorch, ProcessGroupGloo.cpp: createDefaultDevice).
    """
    for family, kind, address in _addresses_of(name)[0]:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return str(address[0])
    return "127.0.0.1"


def interface_towards(head: str = "") -> str | None:
    """The interface of this host's address towards `head`; None if there is only the loopback device.

    On the head itself, whose name may be a loopback address, it is the interface towards other networks, or else the
    only one with an address.
    """
    names = [name for _, name in socket.if_nameindex()]
    for address in (own_address(head), own_address()):
        number = _number(address)
        if not number.is_loopback:
            return next((name for name in names if number in _numbers(name, number)), None)
    others = [name for name in names if any(not number.is_loopback for number in _numbers(name))]
    return others[0] if len(others) == 1 else None


def _addresses_of(name: str) -> tuple[list[tuple[int, int, Any]], str]:
    """The socket addresses of a host name, each with its family and kind, and a text about them."""
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is too long
        return [], f"{name} has no address ({getattr(error, 'strerror', error)})"
    shown = ", ".join(sorted({str(info[4][0]) for info in infos}))
    return [(family, kind, address) for family, kind, _, _, address in infos], f"{name} is {shown}"


def _numbers(interface: str, wanted: _Number | None = None) -> set[_Number]:
    """Addresses of an interface on Linux: one of IPv4, which is `wanted` if the interface has it, and all of IPv6."""
    found: set[_Number] = set()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH2x4s8x", interface.encode(), socket.AF_INET, (wanted or _NO_ADDRESS).packed[:4])
        found.add(ipaddress.IPv4Address(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            number, *_, name = line.split()
            if name == interface:
                found.add(ipaddress.IPv6Address(int(number, 16)))
    return found


def _number(address: str) -> _Number:
    """`address` without the name of an interface: fe80::1%eth0."""
    return ipaddress.ip_address(address.partition("%")[0])


def _is_loopback(host: str) -> bool:
    try:
        return _number(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


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
    for target in (towards,) if towards else _ELSEWHERE:
        with contextlib.suppress(OSError, UnicodeError):  # no such host
            for family, kind, _, _, address in socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM):
                with contextlib.suppress(OSError), socket.socket(family, kind) as probe:  # no route
                    probe.connect(address)
                    return str(probe.getsockname()[0])
    return "127.0.0.1"


def wanted_ports(required: HostRequirements, environment: Mapping[str, str]) -> dict[int, str]:
    """The fixed ports that the run will use; under torchrun or on a Ray cluster the run itself holds them already."""
    if "RANK" in environment or required.joins_a_cluster or required.workers == 0:
        return {}
    if required.ray:
        return {RAY_PORT: "Ray's head"} if required.nodes > 1 else {}
    if required.workers * required.nodes > 1 and not required.supervised:
        port = environment.get("MASTER_PORT", "")
        return {int(port) if port.isdigit() else TORCHRUN_PORT: "torchrun's rendezvous"}
    return {}


def unused_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
