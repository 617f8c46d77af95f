"""The run on this machine that a text names: its directory, its name, or its config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import listed
from launcher.run.directory import RunDirectory
from launcher.run.status import exists
from resnet_dist.checkpoint.disk import storage_errors

CONFIGS = (".yaml", ".yml")
USUAL_STORAGES = (Path("~/resnet_runs"), Path("~/resnet_demo/runs"))  # of configs/digits_cpu.yaml, of `launcher demo`


def find_here(text: str) -> RunDirectory:
    """The run on this machine that `text` names. Raises UsageError if there is none, ConfigError for a wrong config."""
    run, _ = run_of(text, [])
    if not exists(run):
        raise no_run(run)
    return run


def run_of(text: str, overrides: Sequence[str]) -> tuple[RunDirectory, RunConfig | None]:
    """The run that `text` names, which may not exist yet, and the config if it is one. Raises as `find_here`."""
    path = _named(text)
    if path.is_dir():
        if overrides:
            raise UsageError(f"{text}: this is a run directory, and overrides are for configs: leave them out")
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        return RunDirectory.at(absolute), None
    if path.is_file() and path.suffix not in CONFIGS:
        raise _no_config(path)
    if not path.exists() and path.suffix not in CONFIGS:
        raise no_run(RunDirectory.at(path))
    config = configs.load(text, overrides)
    return RunDirectory(Path(config.storage), config.name), config


def no_run(run: RunDirectory, more: str = "") -> UsageError:
    """The error for a folder without a run; `more` is also allowed."""
    if run.path.is_dir():
        of = RunDirectory.at(run.path.parent.parent)
        if of.checkpoints == run.path.parent and exists(of):
            return UsageError(f"{run.path}: this is a checkpoint of a run. Allowed: the run directory, {of.path}")
        with storage_errors(run.path):
            inside = sorted(one.name for one in run.path.iterdir() if exists(RunDirectory(run.path, one.name)))
        if inside:
            return UsageError(f"{run.path}: this folder contains runs. Allowed: the path of one: {listed(inside)}")
    return UsageError(
        f"{run.path}: there is no run here. Allowed: a run directory (launcher list STORAGE shows them), or a config"
        f"{more}"
    )


def _no_config(file: Path) -> UsageError:
    """The error for a file that is no config: it names the run that the file belongs to."""
    folder = Path(os.path.abspath(file.parent))  # noqa: PTH100 - as above
    of = RunDirectory.at(folder)
    if RunDirectory.at(folder.parent.parent).checkpoints == folder.parent:
        of = RunDirectory.at(folder.parent.parent)
    if exists(of):
        return UsageError(f"{file}: this is a file of a run. Allowed: the run directory, {of.path}")
    return UsageError(f"{file}: is not a config. Allowed: a run directory, or a config ({', '.join(CONFIGS)})")


def distinct_names(runs: Sequence[RunDirectory]) -> list[str]:
    """The names of runs: of the path that names a run, as few parts as tell the runs apart."""
    for parts in (1, 2, None):
        names = [str(run.path) if parts is None else "/".join(run.path.parts[-parts:]) for run in runs]
        if len(set(names)) == len({run.path for run in runs}):
            break
    return names


def _named(text: str) -> Path:
    """The file or folder that `text` names: a path, or the name of a run in this folder or in the usual ones."""
    path = Path(text).expanduser()
    if path.exists() or path.name != text or path.suffix in CONFIGS:
        return path
    usual = [storage.expanduser() for storage in USUAL_STORAGES]
    for storage in usual:
        if (storage / text).is_dir():
            return storage / text
    raise UsageError(
        f"{text}: there is no such file, and no run with this name in {', '.join(map(str, [Path.cwd(), *usual]))}. "
        f"Allowed: a run directory, STORAGE/{text}, or the run's config (launcher list STORAGE shows runs)"
    )
