"""Whether the packages that the config requires are installed, in versions that work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator

from launcher.checks.finding import Finding, failed, passed
from launcher.checks.host_requirements import HostRequirements
from launcher.config.schema import RunConfig

LEAST = {"torch": (2, 11), "torchvision": (0, 26)}  # as in pyproject.toml
_PYTHONS = ((3, 11), (3, 13))  # oldest and newest


def packages(config: RunConfig | None, required: HostRequirements) -> Iterator[Finding]:
    """One failure per problem, or the versions."""
    problems = [*_old_versions(), *_missing(config, required)]
    yield from problems
    if not problems:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LEAST)
        yield passed("packages", f"Python {platform.python_version()}, {versions}")


def _old_versions() -> Iterator[Finding]:
    python = platform.python_version()
    if not _PYTHONS[0] <= numbers(python) <= _PYTHONS[1]:
        oldest, newest = (".".join(map(str, one)) for one in _PYTHONS)
        yield failed("packages", f"Python {python}", f"use Python {oldest} to {newest}")
    for name, least in LEAST.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield failed("packages", f"{name} is not installed", f"pip install {name}")
            continue
        if numbers(version) < least:
            wanted = ".".join(map(str, least))
            yield failed("packages", f"{name} {version} is older than {wanted}", f"pip install '{name}>={wanted}'")


def _missing(config: RunConfig | None, required: HostRequirements) -> Iterator[Finding]:
    if config is None:
        return
    modules = {
        "ray": required.ray or config.place == "ray",
        "deepspeed": config.engine.name == "zero",
        "nvidia.dali": config.data.decoder == "dali",
    }
    for module, is_required in modules.items():
        if is_required and not _is_installed(module):
            extra = module.removeprefix("nvidia.")
            found = f"the config requires {extra}, which is not installed"
            yield failed("packages", found, f"pip install 'resnet-launcher[{extra}]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def numbers(version: str) -> tuple[int, int]:
    """Major and minor of a version.

    >>> numbers("2.14.1+cu130")
    (2, 14)
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
