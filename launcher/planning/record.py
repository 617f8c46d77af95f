"""forecast.json: what was predicted of a run when it was started for the first time.

format         1
time           of the start
configuration  `launcher.planning.work.configuration`
forecast       the fields of `launcher.planning.forecast.Forecast`
accuracy       top-1 at the end, a fraction: low, median, high; or null
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig, resolve_place
from launcher.planning import accuracy as accuracies
from launcher.planning.forecast import Evidence, Forecast, Interval
from launcher.planning.history import as_local, earlier_runs
from launcher.planning.prediction import predict
from launcher.planning.work import configuration
from launcher.run.directory import RunDirectory
from launcher.run.record_types import utc_now
from resnet_dist.checkpoint.disk import replace_whole
from resnet_dist.input_files import read_json, record_of

log = logging.getLogger(__name__)

FORMAT = 1
_READING_S = 0.15  # of runs that are not remembered: a start must not wait for its forecast
_INTERVALS = ("wall_s", "start_s", "training_s", "evaluation_s", "saving_s", "failures_s", "images_per_s")


@dataclass(frozen=True)
class Recorded:
    """A forecast as it was recorded."""

    forecast: Forecast
    accuracy: Interval | None
    configuration: str
    time: str


@dataclass(frozen=True)
class _Head:
    """The fields of the file beside the forecast."""

    configuration: str
    time: str


@dataclass(frozen=True)
class _Others:
    """The fields of a forecast that are no intervals."""

    workers: int
    gpus: int
    evidence: Evidence
    source: str
    notes: Sequence[str] = ()


def write(config: RunConfig, run: RunDirectory, accuracy: Interval | None = None) -> None:
    """Record the forecast of a run that has not been started before, if there is one. Raises nothing.

    `accuracy`: default is what `launcher.planning.accuracy` expects.
    """
    try:
        if run.forecast.exists() or run.attempts():
            return
        if resolve_place(config.place) == "local":
            config = as_local(config)
        found = predict(config, earlier=earlier_runs(Path(config.storage), _READING_S))
        if found is None:
            return
        expected = accuracies.expected(config) if accuracy is None else accuracy
        content = {
            "format": FORMAT,
            "time": utc_now(),
            "configuration": configuration(config),
            "forecast": asdict(found),
            "accuracy": None if expected is None else asdict(expected),
        }
        replace_whole(run.forecast, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    except Exception as error:  # a forecast that cannot be made is no reason not to train
        log.warning("the time of the run cannot be predicted: %s: %s", type(error).__name__, error)


def read(run: RunDirectory) -> Recorded | None:
    """The recorded forecast; None without one, and if it cannot be read."""
    try:
        return _recorded(read_json(run.forecast))
    except (OSError, ValueError):
        return None


def _recorded(content: object) -> Recorded | None:
    if not isinstance(content, dict) or not isinstance(content.get("forecast"), dict):
        return None
    fields: dict[str, Any] = content["forecast"]
    intervals = {name: record_of(Interval, fields.get(name)) for name in _INTERVALS}
    others = {name: value for name, value in fields.items() if name not in _INTERVALS}
    known, head = record_of(_Others, others), record_of(_Head, content)
    if known is None or head is None:
        return None
    whole = {name: interval for name, interval in intervals.items() if interval is not None}
    if len(whole) < len(_INTERVALS):
        return None
    parts: dict[str, Any] = {**whole, **asdict(known), "notes": tuple(known.notes)}
    forecast = Forecast(**parts)
    return Recorded(forecast, record_of(Interval, content.get("accuracy")), head.configuration, head.time)
