"""The tasks that a host can be asked to carry out, through Ray or torchrun's store. JSON in, JSON out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.checks.children import Answer
from launcher.checks.collective import reduce_here
from launcher.checks.finding import run_checks
from launcher.checks.host_facts import host_facts
from launcher.checks.host_requirements import requirements_of
from launcher.checks.network import unused_port
from launcher.checks.storage import existing
from launcher.checks.suite import host_checks
from launcher.config import load as configs
from launcher.config import yaml_source

_SEE_POLL_S = 0.1


def run_task(task: str, arguments: Mapping[str, Any]) -> Answer:
    """Carry out a task on this host. The caller handles exceptions."""
    return _TASKS[task](**arguments)


def _findings(
    config: str, workers: int, gpus: int, cpus: int, seconds: float, quick: bool, profile: Mapping[str, str]
) -> Answer:
    """All checks of one host; `config` is YAML as `launcher.config.load.to_yaml` writes it, or empty."""
    run = configs.from_mapping(yaml_source.parse(config, "config").data, "/") if config else None
    required = requirements_of(run).on_host(workers, gpus, cpus)
    return {"findings": [one.described() for one in run_checks(host_checks(run, required, profile), seconds, quick)]}


def _write(folder: str, name: str, content: str) -> Answer:
    """Write a file into a shared folder as checkpoints are written: under another name, then renamed."""
    target = Path(folder, name)
    target.parent.mkdir(exist_ok=True)  # no parents: a mount point that is not mounted must stay empty
    temporary = Path(folder, f"{name}.tmp")
    with temporary.open("x") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(target)
    return {}


def _see(folder: str, contents: Mapping[str, str], seconds: float) -> Answer:
    """Which of the files that the hosts wrote cannot be read here, and how long it took to see all of them."""
    started = time.monotonic()
    while True:
        missing = [name for name, content in contents.items() if _content(Path(folder, name)) != content]
        waited_s = time.monotonic() - started
        if not missing or waited_s > seconds:
            return {"missing": missing, "waited_s": waited_s}
        time.sleep(_SEE_POLL_S)


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _remove(folder: str, names: list[str]) -> Answer:
    """Remove the files that `write` wrote, and the folder if it is empty."""
    for name in (*names, *(f"{name}.tmp" for name in names)):
        with contextlib.suppress(OSError):
            Path(folder, name).unlink()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()
    return {}


_TASKS: dict[str, Callable[..., Answer]] = {
    "facts": host_facts,
    "clock": lambda: {"time_s": time.time()},
    "port": lambda: {"port": unused_port()},
    "findings": _findings,
    "existing": lambda path: {"path": str(existing(Path(path)))},
    "write": _write,
    "see": _see,
    "remove": _remove,
    "reduce": reduce_here,
}
