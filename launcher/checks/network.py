"""Whether other hosts can find this one, whether ports are free, and whether a proxy would catch what they say."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from launcher.checks.finding import Check, Finding, failed, passed, warned
from launcher.checks.needs import Needs

# In the order in which gRPC, and so Ray, looks; the others are what HTTP clients read.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")

TORCHRUN_PORT = 29500  # torchrun's default rendezvous
RAY_PORT = 6379  # a Ray head's default


def checks(needs: Needs, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Each needs milliseconds, but for a name server that does not answer."""
    return [
        Check("host name", lambda: host_name(needs), 10),
        Check("ports", lambda: ports(_wanted_ports(needs, environment)), 5),
        Check("proxies", lambda: proxies(needs, _addresses(environment), environment), 10),
    ]


def host_name(needs: Needs) -> Finding:
    """The address that this host's name stands for: gloo offers it to the other hosts."""
    name = socket.gethostname()
    advice = f"give {name} its network address in /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    try:
        found = {info[4][0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        said = f"{name} has no address ({error.strerror})"
        return failed("host name", said, advice) if needs.nodes > 1 else warned("host name", said, advice)
    addresses = sorted(map(str, found))
    said = f"{name} is {', '.join(addresses)}"
    if needs.nodes > 1 and all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in addresses):
        if os.environ.get("GLOO_SOCKET_IFNAME"):
            return passed("host name", f"{said}; GLOO_SOCKET_IFNAME says where to listen")
        return failed("host name", f"{said}, which no other host can reach", advice)
    return passed("host name", said)


def ports(wanted: Mapping[int, str]) -> Finding:
    """Whether a port can be had and reached here at all, and whether the `wanted` ones (port: whose) are free."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("", 0))
        listener.listen(1)
        caller = stack.enter_context(socket.socket())
        caller.settimeout(2)
        try:
            caller.connect(("127.0.0.1", listener.getsockname()[1]))
        except OSError as error:
            advice = "allow connections on the loopback device: processes of one host meet there"
            return failed("ports", f"a port of this host cannot be reached from itself ({error})", advice)
    taken = {port: whose for port, whose in wanted.items() if not is_free(port)}
    if taken:
        said = ", ".join(f"{port} ({whose}) is taken" for port, whose in taken.items())
        return warned(
            "ports", said, "end what listens there, or give this run another port: two jobs on one node clash"
        )
    named = ", ".join(f"{port} ({whose})" for port, whose in wanted.items())
    return passed("ports", f"{named} free" if named else "any free port will do, and one can be had")


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


def proxies(needs: Needs, addresses: Sequence[str], environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether a proxy variable would catch cluster traffic. Names are told, never values: they may hold passwords.

    `addresses` are hosts, by name or number, that the run talks to.
    """
    lower = {name.lower(): value for name, value in environment.items() if value}
    present = [name for name in _PROXIES if name in lower]
    if not present:
        return passed("proxies", "no proxy variable is set")
    exceptions = [entry.strip() for name in _EXCEPTIONS for entry in lower.get(name, "").split(",") if entry.strip()]
    caught = sorted({address for address in addresses if not is_excepted(address, exceptions)})
    if not caught:
        return passed("proxies", f"{' and '.join(present)}: no_proxy excepts every address of the run")
    said = f"{' and '.join(present)} would catch what is sent to {', '.join(caught)}"
    advice = f"no_proxy={','.join(caught)} (and the same in NO_PROXY), or unset the proxy for the job"
    alone = needs.nodes == 1 and not needs.joins_a_cluster
    return warned("proxies", said, advice) if alone else failed("proxies", said, advice)


def is_excepted(address: str, exceptions: Sequence[str]) -> bool:
    """Whether an entry of no_proxy covers `address`: equal, a parent domain, a network, or `*`.

    >>> is_excepted("n1.cluster.local", [".cluster.local"]), is_excepted("10.0.0.7", ["10.0.0.0/8"])
    (True, True)
    >>> is_excepted("10.0.0.7", ["localhost", "0.7"])
    False
    """
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(address)
        return any(entry == "*" or _holds(entry, number) for entry in exceptions)
    return any(
        entry == "*" or address == entry.lstrip(".") or address.endswith(f".{entry.lstrip('.')}")
        for entry in exceptions
    )


def _holds(entry: str, number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return number in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _addresses(environment: Mapping[str, str]) -> list[str]:
    """Hosts that the run will talk to, as far as they are known here: itself, and who is named in the environment."""
    return list(dict.fromkeys(_named(environment)))


def _named(environment: Mapping[str, str]) -> Iterator[str]:
    yield "127.0.0.1"
    address = environment.get("RAY_ADDRESS", "")
    if address and address not in ("auto", "local"):
        yield urlsplit(address if "//" in address else f"//{address}").hostname or address
    if environment.get("MASTER_ADDR"):
        yield environment["MASTER_ADDR"]
    yield own_address()


def own_address(towards: str = "") -> str:
    """The address with which this host speaks to the host `towards`, or to others in general; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards or "10.255.255.255", 9))
        except OSError:  # no route, or no such host
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _wanted_ports(needs: Needs, environment: Mapping[str, str]) -> dict[int, str]:
    """Ports that the run will want by number; inside torchrun or on a Ray cluster they are taken rightly."""
    if "RANK" in environment or needs.joins_a_cluster or needs.workers == 0:
        return {}
    if needs.ray:
        return {RAY_PORT: "Ray's head"} if needs.nodes > 1 else {}
    if needs.workers * needs.nodes > 1:
        port = environment.get("MASTER_PORT", "")
        return {int(port) if port.isdigit() else TORCHRUN_PORT: "torchrun's rendezvous"}
    return {}


def unused_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
