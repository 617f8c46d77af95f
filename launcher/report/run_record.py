"""What a run directory records, read once. What cannot be read is absent, as in a run of another version."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config import yaml_source
from launcher.config.dotted_keys import flatten
from launcher.config.old_keys import with_new_names
from launcher.errors import ConfigError
from launcher.run.directory import RunDirectory
from launcher.run.named import distinct_names
from launcher.run.progress import newest_state
from launcher.run.record_types import Attempt, Facts, read_record, warn_unreadable
from launcher.run.status import RunStatus, read_status
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.input_files import printable, read_whole
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.json_lines import Record
from resnet_dist.telemetry.metrics_file import metrics_record, uninterrupted

_LARGEST = 1e100  # assumption: a larger number is not one of a run; float32 ends at 3.4e38


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory; None is "not recorded"."""

    name: str  # for a person; distinct from those of the other runs that are read with it
    directory: RunDirectory
    written: Sequence[Record]  # metrics.jsonl, with the steps that were repeated later
    config: Facts | None  # config.yaml, nested, under the present names
    environment: Facts | None  # of the newest attempt, without its time
    attempts: Sequence[Attempt]
    summary: Facts  # FINISHED; empty for a run that is not finished
    val_data: str | None  # fingerprint of the val split, from the newest checkpoint

    @functools.cached_property
    def records(self) -> list[Record]:
        """The records of metrics.jsonl as an uninterrupted run would have written them."""
        return uninterrupted(self.written)

    def of_kind(self, kind: str) -> list[Record]:
        """The records of kind "train", "eval" or "event", by step."""
        return sorted((one for one in self.records if one["kind"] == kind), key=lambda one: one["step"])

    def events(self, *names: str) -> list[Record]:
        """The events with one of these names."""
        return [one for one in self.records if one.get("event") in names]

    @functools.cached_property
    def keys(self) -> Mapping[str, Any]:
        """The config by dotted key; empty if it is not recorded."""
        return flatten(self.config or {})

    @functools.cached_property
    def environment_keys(self) -> Mapping[str, Any]:
        """The environment by dotted key; empty if it is not recorded."""
        return flatten(self.environment or {})

    @functools.cached_property
    def started(self) -> Mapping[str, Any]:
        """total_steps, batch_size and num_samples, as the newest attempt recorded them; empty before its first step."""
        details = [one["detail"] for one in self.events("started") if isinstance(one.get("detail"), dict)]
        return details[-1] if details else {}

    @functools.cached_property
    def status(self) -> RunStatus:
        """The state, without asking a scheduler. Raises StorageError."""
        return read_status(self.directory, None, stale_lease_wait_s=0.0)


def read_all(runs: Sequence[RunDirectory]) -> list[RunRecord]:
    """Read run directories. Raises StorageError if a disk cannot be read."""
    return [read(run, name) for run, name in zip(runs, distinct_names(runs), strict=True)]


def read(run: RunDirectory, name: str = "") -> RunRecord:
    """Read a run directory. Raises StorageError if its disk cannot be read."""
    with storage_errors(run.path):
        return RunRecord(
            name=printable(name or run.name),
            directory=run,
            written=json_lines.read(run.metrics, metrics_record) if run.metrics.exists() else [],
            config=_config(run.config),
            environment=_environment(run.environment),
            attempts=run.attempts(),
            summary=run.summary() or {},
            val_data=_val_data(run),
        )


def number(record: Facts, key: str) -> float | None:
    """A finite number of a record; None for anything else, and for one that is too large to be added up."""
    value = record.get(key)
    if type(value) is not float and type(value) is not int:  # by type: a long run has a million numbers
        return None
    return float(value) if -_LARGEST < value < _LARGEST else None


def _val_data(run: RunDirectory) -> str | None:
    try:
        _, state = newest_state(run) or (None, {})
    except ValueError:
        return None
    fingerprint = state.get("val_data")
    return fingerprint if isinstance(fingerprint, str) else None


def _config(file: Path) -> Facts | None:
    """The keys of config.yaml, not checked: a run of another version has other keys. None if it cannot be read."""
    if not file.exists():
        return None
    try:
        return with_new_names(yaml_source.parse(yaml_source.decode(read_whole(file), str(file)), str(file)).data)
    except ConfigError:
        warn_unreadable(file)
        return None


def _environment(file: Path) -> Facts | None:
    content = read_record(file, lambda content: content if isinstance(content, dict) else None)
    return None if content is None else {key: value for key, value in content.items() if key != "time"}
