"""A run from Python: start one, or read one that is on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    path: Path

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return configs.load(self._directory.config)

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self._directory.is_finished()

    @property
    def summary(self) -> dict[str, Any] | None:
        """top1, top5, loss, num_samples, step, time_s of a finished run; None before.

        top1, top5 and loss are None where the last evaluation was not finite.
        """
        return self._directory.summary()

    @property
    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl as a table, a row a record: kind, step, epoch, loss, learning_rate, ... (needs pandas).

        A null of metrics.jsonl, which stands for a number that is not finite, is NaN.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("Run.metrics needs pandas: pip install 'resnet-launcher[notebook]'") from None
        return pandas.DataFrame(read_metrics(self._directory.metrics))

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.path.parent, self.path.name)


def fit(config: str | os.PathLike[str] | Mapping[str, Any], **overrides: Any) -> Run:
    """Train `config`, a YAML file or a mapping with its keys, and return the run.

    `overrides` are top-level keys; a mapping for a section changes only the keys it holds:
    `fit("configs/digits_cpu.yaml", place="local", batch={"size": 64})`. Raises what ended the run.
    """
    from launcher.train import train

    flat = dict(_flat(overrides))
    if isinstance(config, Mapping):
        resolved = configs.from_mapping(config, Path.cwd(), flat)
    else:
        resolved = configs.load(config, flat)
    _, directory = train(resolved)
    return Run(directory.path)


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`; UsageError where there is none."""
    folder = Path(path).expanduser()
    if not (folder / "attempts.jsonl").is_file():
        raise UsageError(f"{folder}: there is no run here. Allowed: a run directory, <storage>/<name>")
    return Run(folder)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        items += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return items
