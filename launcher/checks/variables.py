"""The variables of NCCL and gloo: the site profile's, the user's own, and conflicts between the two."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence

from cluster.profile import KubernetesProfile, SlurmProfile
from launcher.checks.finding import Finding, failed, passed, warned

_FAMILIES = ("NCCL_", "GLOO_", "TORCH_NCCL_")
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

# Variables for debugging, by NCCL's guide: they disable a transport or fix the algorithm.
_COSTLY = {
    "NCCL_P2P_DISABLE": "GPUs of one host do not exchange data directly",
    "NCCL_SHM_DISABLE": "processes of one host exchange data through the network",
    "NCCL_IB_DISABLE": "RDMA is not used",
    **dict.fromkeys(("NCCL_LAUNCH_MODE", "NCCL_ALGO", "NCCL_PROTO"), "it overrides NCCL's own choice"),
}


def of_profile(profile: SlurmProfile | KubernetesProfile) -> dict[str, str]:
    """The variables that a site's profile sets for every worker."""
    return profile.network.variables | profile.environment


def variables(
    profile: Mapping[str, str],
    environment: Mapping[str, str] = os.environ,
    interfaces: Sequence[str] | None = None,
    *,
    on_gpu: bool,
) -> Iterator[Finding]:
    """One finding per problem, or one pass. `interfaces` are the names of this host's (default: ask the kernel)."""
    known = [name for _, name in socket.if_nameindex()] if interfaces is None else list(interfaces)
    effective = {**{name: value for name, value in environment.items() if name.startswith(_FAMILIES)}, **profile}
    problems = [*conflicts(profile, environment), *_unknown_interfaces(effective, known)]
    if on_gpu:
        problems += _costly(effective)
    yield from problems
    if not problems:
        names = ", ".join(sorted(effective))
        yield passed("variables", f"{names}: no conflict" if names else "none is set: NCCL and gloo use their defaults")


def conflicts(profile: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Warnings for the user's own variables that differ from the profile's; a job gets the profile's values."""
    for name, value in profile.items():
        own = environment.get(name)
        if own is not None and own != value:
            found = f"{name} is {own!r} in your environment and {value!r} in the profile; a job gets the profile's"
            yield warned("variables", found, f"unset {name}, or change the profile if yours is right")


def _unknown_interfaces(effective: Mapping[str, str], known: Sequence[str]) -> Iterator[Finding]:
    for name in _INTERFACES:
        value = effective.get(name, "")
        if value and not _matches(name, value, known):
            found = f"{name}={value} matches no interface of this host ({', '.join(known)})"
            yield failed("variables", found, f"unset {name}, or set it to one of these")


def _matches(name: str, value: str, known: Sequence[str]) -> bool:
    """NCCL: prefixes; `=` precedes exact names, `^` names to exclude. gloo: exact names."""
    if name == "GLOO_SOCKET_IFNAME":
        return all(part in known for part in value.split(","))
    parts, exact = value.lstrip("^=").split(","), "=" in value[:2]
    chosen = [one for one in known if any(one == part if exact else one.startswith(part) for part in parts)]
    return len(chosen) < len(known) if value[0] == "^" else bool(chosen)


def _costly(effective: Mapping[str, str]) -> Iterator[Finding]:
    for name, effect in _COSTLY.items():
        if effective.get(name, "") not in ("", "0"):
            yield warned("variables", f"{name}={effective[name]}: {effect}", f"unset {name} unless this site needs it")
    if effective.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        found = f"NCCL_DEBUG={effective['NCCL_DEBUG']} logs lines for every communicator of every worker"
        yield warned("variables", found, "set NCCL_DEBUG=WARN after debugging")
