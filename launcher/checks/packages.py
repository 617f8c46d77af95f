"""Whether what the config asks for is installed here, in a version that works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator

from launcher.checks.finding import Check, Finding, failed, passed
from launcher.checks.needs import Needs
from launcher.config.schema import RunConfig

LEAST = {"torch": (2, 11), "torchvision": (0, 26)}  # pyproject.toml's
_PYTHONS = ((3, 11), (3, 13))  # oldest and newest


def checks(config: RunConfig | None, needs: Needs) -> list[Check]:
    """Nothing is imported."""
    return [Check("packages", lambda: packages(config, needs), 10)]


def packages(config: RunConfig | None, needs: Needs) -> Iterator[Finding]:
    """One finding a problem, or one that names the versions."""
    problems = [*_python(platform.python_version()), *_old(), *_missing(config, needs)]
    yield from problems
    if not problems:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LEAST)
        yield passed("packages", f"Python {platform.python_version()}, {versions}")


def _python(version: str) -> Iterator[Finding]:
    if not _PYTHONS[0] <= numbers(version) <= _PYTHONS[1]:
        oldest, newest = (".".join(map(str, one)) for one in _PYTHONS)
        yield failed("packages", f"Python {version}", f"Python {oldest} to {newest}")


def _old() -> Iterator[Finding]:
    for name, least in LEAST.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield failed("packages", f"{name} is not installed", f"pip install {name}")
            continue
        if numbers(version) < least:
            wanted = ".".join(map(str, least))
            yield failed("packages", f"{name} {version} is older than {wanted}", f"pip install '{name}>={wanted}'")


def _missing(config: RunConfig | None, needs: Needs) -> Iterator[Finding]:
    if config is None:
        return
    asked = {
        "ray": needs.ray or config.place == "ray",
        "deepspeed": config.engine.name == "zero",
        "nvidia.dali": config.data.decoder == "dali",
    }
    for module, is_asked in asked.items():
        if is_asked and not _is_there(module):
            extra = module.removeprefix("nvidia.")
            said = f"the config asks for {extra}, which is not installed here"
            yield failed("packages", said, f"pip install 'resnet-launcher[{extra}]'")


def _is_there(module: str) -> bool:
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
