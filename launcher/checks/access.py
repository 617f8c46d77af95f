"""Ray's token: there, its owner's alone, and in no command line or environment where others would find it.

Whoever has it runs code on the cluster; without it, whoever reaches a port does. It is never printed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.checks.finding import Check, Finding, failed, number, passed, skipped, warned
from launcher.checks.needs import Needs

_NAMED = 5  # processes that a finding names
_SHORTEST = 8  # characters: a shorter text is found everywhere, and is no token


def checks(needs: Needs, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Skipped for a run without Ray."""
    return [Check("Ray token", lambda: token(needs, environment), 15)]


def token(
    needs: Needs, environment: Mapping[str, str] = os.environ, processes: Path = Path("/proc")
) -> Iterator[Finding]:
    """Where the token is and who could read it."""
    if not needs.ray:
        yield skipped("Ray token", "the run does not go through Ray")
        return
    mode = environment.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        said = f"RAY_AUTH_MODE={mode}: whoever reaches a port of the cluster runs code on it"
        yield failed("Ray token", said, "RAY_AUTH_MODE=token on every host, and for ray start")
        return
    content = environment.get("RAY_AUTH_TOKEN", "")
    if not content:
        file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if not file.is_file():
            yield _missing(needs, file)
            return
        problem = _readable_by_others(file)
        if problem:
            yield failed("Ray token", problem, f"chmod 600 {file}; chmod 700 {file.parent}; then make a new token")
        try:
            content = file.read_text().strip()
        except OSError as error:
            yield failed("Ray token", f"{file} cannot be read: {error.strerror}", "its owner must be who runs the job")
            return
        if problem:
            return
    yield from _exposed(content, environment, processes)


def _missing(needs: Needs, file: Path) -> Finding:
    if not needs.joins_a_cluster:
        return passed("Ray token", f"made when the run starts its own Ray, in {file}, mode 0600")
    return failed("Ray token", f"{file} is not there", "copy the cluster's token there, mode 0600")


def _readable_by_others(file: Path) -> str:
    """Why others can read or replace `file`, or an empty text."""
    state = file.stat()
    if state.st_uid != os.getuid():
        return f"{file} belongs to user {state.st_uid}, not to you"
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{file} has mode {stat.S_IMODE(state.st_mode):04o}: others can read it"
    if file.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{file.parent} can be written by others: they can replace the token"
    return ""


def _exposed(content: str, environment: Mapping[str, str], processes: Path) -> Iterator[Finding]:
    """Processes that carry the token where it does not belong; this process's own children inherit what it has."""
    secret = content.encode()
    if len(secret) < _SHORTEST:
        yield failed("Ray token", f"it has {len(secret)} characters", "make one with: ray get-auth-token --generate")
        return
    commands, environments = [], []
    for folder in processes.iterdir() if processes.is_dir() else ():
        if not folder.name.isdigit():
            continue
        if secret in _read(folder / "cmdline"):
            commands.append(folder.name)
        elif folder.name != str(os.getpid()) and secret in _read(folder / "environ"):
            environments.append(folder.name)
    if commands:
        said = f"it stands in the command line of {_pids(commands)}, which every user of this host can read"
        yield failed("Ray token", said, "end these, make a new token, and pass it in a file: RAY_AUTH_TOKEN_PATH")
    elif environments and "KUBERNETES_SERVICE_HOST" not in environment:  # there each pod has its environment to itself
        said = f"it stands in the environment of {_pids(environments)}: their children and core dumps carry it"
        yield warned("Ray token", said, "unset RAY_AUTH_TOKEN and name a file instead: RAY_AUTH_TOKEN_PATH")
    else:
        yield passed("Ray token", "there, and in no other process's command line or environment")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # another user's, or ended meanwhile
        return b""


def _pids(pids: list[str]) -> str:
    shown = ", ".join(sorted(pids, key=int)[:_NAMED])
    return f"{number(len(pids), 'process').replace('processs', 'processes')} ({shown}{', ...' * (len(pids) > _NAMED)})"
