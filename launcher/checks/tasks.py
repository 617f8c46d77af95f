"""What a host can be asked to do: the same few tasks, through Ray or through torchrun's store. JSON in, JSON out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.checks.collective import reduce_here
from launcher.checks.finding import run_checks
from launcher.checks.needs import needs_of
from launcher.checks.network import unused_port
from launcher.checks.report import node_report
from launcher.checks.storage import existing
from launcher.checks.suite import host_checks
from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.config.schema import RunConfig

_SEE_POLL_S = 0.1

Answer = dict[str, Any]


def perform(task: str, arguments: Mapping[str, Any]) -> Answer:
    """Carry out a task of this host. What it raises is for the transport to hand over."""
    return _TASKS[task](**arguments)


def _findings(
    config: str, workers: int, gpus: int, cpus: int, seconds: float, quick: bool, profile: Mapping[str, str]
) -> Answer:
    """All checks of one host; `config` is YAML as `launcher.config.load.to_yaml` writes it, or empty."""
    run = parsed(config)
    needs = needs_of(run).on_host(workers, gpus, cpus)
    return {"findings": [one.described() for one in run_checks(host_checks(run, needs, profile), seconds, quick)]}


def parsed(config: str) -> RunConfig | None:
    """The run that a resolved config's text describes."""
    return configs.from_mapping(yaml_source.parse(config, "config").data, "/") if config else None


def _write(folder: str, name: str, content: str) -> Answer:
    """Leave a file in a shared folder as checkpoints are left: written under another name, then renamed."""
    home = Path(folder)
    home.mkdir(exist_ok=True)  # no parents: a mount point that is not mounted must stay empty
    temporary = home / f"{name}.tmp"
    with temporary.open("x") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(home / name)
    return {}


def _nearest(path: str) -> Answer:
    """`path`, or its nearest parent that is there."""
    return {"path": str(existing(Path(path)))}


def _see(folder: str, contents: Mapping[str, str], seconds: float) -> Answer:
    """Which of the files that the hosts have left cannot be read here, and how long it took to see all."""
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
    """Take away what `write` has left."""
    for name in (*names, *(f"{name}.tmp" for name in names)):
        with contextlib.suppress(OSError):
            Path(folder, name).unlink()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()
    return {}


_TASKS: dict[str, Callable[..., Answer]] = {
    "report": node_report,
    "clock": lambda: {"time_s": time.time()},
    "port": lambda: {"port": unused_port()},
    "findings": _findings,
    "nearest": _nearest,
    "write": _write,
    "see": _see,
    "remove": _remove,
    "reduce": reduce_here,
}
