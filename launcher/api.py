"""The Python API: start a run, or read one from its directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config import load as configs
from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Run:
    """A run, read from its directory."""

    path: Path

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return configs.load(self._directory.config, recorded=True)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self._directory.is_finished()

    @property
    def summary(self) -> dict[str, Any] | None:
        """top1, top5, loss, num_samples, step, time_s of a finished run; else None.

        top1, top5 and loss are None if the last evaluation was not finite; top5 also with fewer than 6 classes.
        """
        return self._directory.summary()

    @property
    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl as a table, one row per record: kind, step, epoch, loss, learning_rate, ... (needs pandas).

        Numbers that are not finite, null in metrics.jsonl, are NaN.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("Run.metrics needs pandas: pip install 'resnet-launcher[notebook]'") from None
        return pandas.DataFrame(read_metrics(self._directory.metrics))

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory.at(self.path)


def fit(config: str | os.PathLike[str] | Mapping[str, Any], **overrides: Any) -> Run:
    """Train `config`, a YAML file or a mapping with the same keys, and return the run.

    `overrides` are top-level keys; a mapping for a section changes only the keys it holds:
    `fit("configs/digits_cpu.yaml", place="local", batch={"size": 64})`. Raises the error that ended the run.
    """
    from launcher.train import train

    flat = flatten(overrides)
    if isinstance(config, Mapping):
        resolved = configs.from_mapping(config, Path.cwd(), flat)
    else:
        resolved = configs.load(config, flat)
    _, directory = train(resolved)
    return Run(directory.path)


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`. Raises UsageError if there is none."""
    folder = Path(path).expanduser()
    if not RunDirectory.at(folder).attempts_file.is_file():
        raise UsageError(f"{folder}: there is no run here. Allowed: a run directory, <storage>/<name>")
    return Run(folder)
