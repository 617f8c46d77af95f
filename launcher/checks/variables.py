"""NCCL's and gloo's variables: those of the site's profile, the user's own, and where the two disagree."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from cluster.profile import KubernetesProfile, SlurmProfile
from launcher.checks.finding import Check, Finding, failed, passed, warned
from launcher.checks.needs import Needs

_FAMILIES = ("NCCL_", "GLOO_", "TORCH_NCCL_")
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

# NCCL's guide calls these means to debug: set for good, they take a transport or the choice of an algorithm away.
_COSTLY = {
    "NCCL_P2P_DISABLE": "GPUs of one host do not exchange directly",
    "NCCL_SHM_DISABLE": "processes of one host exchange through the network",
    "NCCL_IB_DISABLE": "RDMA is not used",
    "NCCL_LAUNCH_MODE": "NCCL's own choice is overruled",
    "NCCL_ALGO": "NCCL's own choice is overruled",
    "NCCL_PROTO": "NCCL's own choice is overruled",
}
_OFF = ("", "0")


def of_profile(profile: SlurmProfile | KubernetesProfile) -> dict[str, str]:
    """The variables that a site's profile sets for every worker."""
    interface = profile.network.interface
    named = {} if interface is None else dict.fromkeys(_INTERFACES, interface)
    return named | profile.network.environment | profile.environment


def checks(needs: Needs, profile: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> list[Check]:
    """`profile`: the variables that the site's profile sets."""
    return [Check("variables", lambda: variables(needs, profile, environment), 5)]


def variables(
    needs: Needs,
    profile: Mapping[str, str],
    environment: Mapping[str, str] = os.environ,
    interfaces: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """One finding a problem, or one that all is well. `interfaces` are this host's, asked of the kernel where None."""
    known = [name for _, name in socket.if_nameindex()] if interfaces is None else list(interfaces)
    effective = {**{name: value for name, value in environment.items() if name.startswith(_FAMILIES)}, **profile}
    problems = [
        *conflicts(profile, environment),
        *_unknown_interfaces(effective, known),
        *_costly(effective, needs),
    ]
    yield from problems
    if not problems:
        names = ", ".join(sorted(effective))
        said = f"{names}: no conflict" if names else "none is set: NCCL and gloo choose for themselves"
        yield passed("variables", said)


def conflicts(profile: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """The user's own variables that say something else than the profile's; a job gets the profile's."""
    for name, value in profile.items():
        own = environment.get(name)
        if own is not None and own != value:
            said = f"{name} is {own!r} in your environment and {value!r} in the profile; a job gets the profile's"
            yield warned("variables", said, f"unset {name}, or change the profile if yours is right")


def _unknown_interfaces(effective: Mapping[str, str], known: Sequence[str]) -> Iterator[Finding]:
    for name in _INTERFACES:
        value = effective.get(name, "")
        if value and not _matches(name, value, known):
            said = f"{name}={value} names no interface of this host, which has {', '.join(known)}"
            yield failed("variables", said, f"unset {name}, or name one of these")


def _matches(name: str, value: str, known: Sequence[str]) -> bool:
    """NCCL: prefixes, `=` before exact names, `^` before those to leave out. gloo: exact names."""
    if name == "GLOO_SOCKET_IFNAME":
        return all(part in known for part in value.split(","))
    sign = value[0] if value[0] in "=^" or value.startswith("^=") else ""
    parts = value.lstrip("^=").split(",")
    exact = "=" in value[:2]
    chosen = [one for one in known if any(one == part if exact else one.startswith(part) for part in parts)]
    return len(chosen) < len(known) if sign == "^" else bool(chosen)


def _costly(effective: Mapping[str, str], needs: Needs) -> Iterator[Finding]:
    if needs.gpus == 0:
        return
    for name, effect in _COSTLY.items():
        if effective.get(name, "") not in _OFF:
            yield warned("variables", f"{name}={effective[name]}: {effect}", f"unset {name} unless this site needs it")
    if effective.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        said = f"NCCL_DEBUG={effective['NCCL_DEBUG']} writes lines for every communicator of every worker"
        yield warned("variables", said, "NCCL_DEBUG=WARN, once what it was set for is found")
