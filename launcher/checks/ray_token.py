"""Ray's token: it exists, only its owner can read it, and no command line or environment exposes it.

Anyone who has the token can run code on the cluster; without a token, anyone who can reach a port can. The token is
never printed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.checks.finding import Finding, failed, graded, passed, skipped, warned
from launcher.checks.host_requirements import HostRequirements
from launcher.formatting import count, listed

_NAME = "Ray token"
_SHORTEST = 8  # characters: a shorter text occurs by chance, and is no token


def token(
    required: HostRequirements, environment: Mapping[str, str] = os.environ, processes: Path = Path("/proc")
) -> Iterator[Finding]:
    """Whether the token exists, and who can read it."""
    if not required.ray:
        yield skipped(_NAME, "the run does not use Ray")
        return
    mode = environment.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        found = f"RAY_AUTH_MODE={mode}: anyone who can reach a port of the cluster can run code on it"
        yield failed(_NAME, found, "set RAY_AUTH_MODE=token on every host, and for ray start")
        return
    content = environment.get("RAY_AUTH_TOKEN", "")
    if not content:
        file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if not file.is_file():
            found = f"{file} does not exist"
            found += "" if required.joins_a_cluster else "; the run creates it, mode 0600, when it starts Ray"
            advice = "copy the cluster's token to this file, mode 0600"
            yield graded(_NAME, found, advice, fail=required.joins_a_cluster)
            return
        if problem := _readable_by_others(file):
            yield failed(_NAME, problem, f"chmod 600 {file}; chmod 700 {file.parent}; then create a new token")
            return
        try:
            content = file.read_text().strip()
        except OSError as error:
            yield failed(_NAME, f"{file} cannot be read: {error.strerror}", "its owner must be the user of the job")
            return
    yield _exposed(content, environment, processes)


def _readable_by_others(file: Path) -> str:
    """Why other users can read or replace `file`; empty if they cannot."""
    state = file.stat()
    if state.st_uid != os.getuid():
        return f"{file} belongs to user {state.st_uid}, not to you"
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{file} has mode {stat.S_IMODE(state.st_mode):04o}: other users can read it"
    if file.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write to {file.parent}: they can replace the token"
    return ""


def _exposed(content: str, environment: Mapping[str, str], processes: Path) -> Finding:
    """Whether other processes expose the token. This process's environment is not searched: its children inherit it."""
    secret = content.encode()
    if len(secret) < _SHORTEST:
        found = f"the token has only {count(len(secret), 'character')}"
        return failed(_NAME, found, "create one with: ray get-auth-token --generate")
    commands, environments = [], []
    pids = sorted((folder.name for folder in processes.glob("[0-9]*") if folder.name.isdigit()), key=int)
    for pid in pids:
        if secret in _read(processes / pid / "cmdline"):
            commands.append(pid)
        elif pid != str(os.getpid()) and secret in _read(processes / pid / "environ"):
            environments.append(pid)
    if commands:
        found = f"the token is in the command line of {_processes(commands)}, which every user of this host can read"
        return failed(_NAME, found, "end these, create a new token, and pass it in a file: RAY_AUTH_TOKEN_PATH")
    if environments and "KUBERNETES_SERVICE_HOST" not in environment:  # a pod's environment is its own
        found = f"the token is in the environment of {_processes(environments)}: children and core dumps inherit it"
        return warned(_NAME, found, "unset RAY_AUTH_TOKEN and use a file instead: RAY_AUTH_TOKEN_PATH")
    return passed(_NAME, "exists, and no other process exposes it")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # another user's process, or one that has ended
        return b""


def _processes(pids: list[str]) -> str:
    return f"{count(len(pids), 'process')} ({listed(pids)})"
