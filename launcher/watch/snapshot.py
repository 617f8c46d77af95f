"""What `launcher watch` shows of a run at one moment: plain values, the same from this machine and from a cluster.

A snapshot is one line of JSON between `launcher watch RUN --json`, which prints it where the run directory is, and the
view. Curves are columns of equal length.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from resnet_dist.input_files import parse_json, record_of
from resnet_dist.telemetry.json_lines import without_non_finite

T = TypeVar("T")

Column = Sequence[float | None]
TRAIN = ("step", "epoch", "time_s", "loss", "learning_rate", "images_per_s")  # columns of `train`
EVALS = ("step", "epoch", "time_s", "top1", "loss")
LARGEST = 1e100  # assumption: a larger number is not one of a run; float32 ends at 3.4e38
SPENT = ("compute", "data wait", "evaluation", "saving", "repeated")
NO_RECORDS = "metrics.jsonl is missing or empty"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker, from its heartbeat."""

    rank: int
    host: str
    phase: str
    step: int
    beat_s: float  # since it has written its heartbeat
    progress_s: float  # since its last progress, when it wrote that
    note: str = ""  # what is unusual: straggler, hung, waiting, or how it ended

    @property
    def needs_attention(self) -> bool:
        """Whether a person should see it first."""
        return self.note.startswith(("straggler", "hung", "silent"))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment that is marked on the curves."""

    step: int
    sign: str  # one character
    text: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment. Numbers that are unknown or not finite are None."""

    run: str  # its directory
    name: str
    state: str = "unknown"
    reason: str = ""
    job: str = ""
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    time_left_s: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    images_per_s: float | None = None
    top1: float | None = None  # of the newest evaluation
    best_top1: float | None = None
    attempt: int | None = None
    num_workers: int | None = None
    last_beat_s: float | None = None
    train: Mapping[str, Column] = field(default_factory=dict)
    evals: Mapping[str, Column] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)  # seconds, by SPENT
    step_time_s: float | None = None  # mean over the newest records
    data_wait_s: float | None = None  # of that
    bottleneck: str = ""
    marks: Sequence[Mark] = ()
    attempts: Sequence[str] = ()  # a line each, oldest first
    events: Sequence[str] = ()  # a line each, newest first
    workers: Sequence[Worker] = ()
    rank: int = 0  # of the log
    ranks: Sequence[int] = ()  # that have a log
    log: Sequence[str] = ()  # its last lines
    lacks_records: bool = False  # it is finished, and its metrics.jsonl is missing or empty

    def to_json(self) -> str:
        """As one line of JSON, with five digits of the curves."""
        content = dataclasses.asdict(self)
        for curves in (content["train"], content["evals"]):
            for name, column in curves.items():
                curves[name] = [float(f"{value:.5g}") if isinstance(value, float) else value for value in column]
        return json.dumps(without_non_finite(content), allow_nan=False, separators=(",", ":"))


def bounded(content: Any) -> Any:
    """`content`, parsed JSON, with None for numbers beyond LARGEST, so that sums and axes stay finite.

    >>> bounded({"loss": 1e308, "detail": {"stalled_s": 0.5}, "losses": [-1e200, 3]})
    {'loss': None, 'detail': {'stalled_s': 0.5}, 'losses': [None, 3]}
    """
    if isinstance(content, float):
        return content if -LARGEST < content < LARGEST else None
    if isinstance(content, dict):
        return {key: bounded(value) for key, value in content.items()}
    return [bounded(value) for value in content] if isinstance(content, list) else content


def from_json(line: str) -> Snapshot | None:
    """The snapshot that `to_json` made; None if it is none. Texts become printable."""
    try:
        content = bounded(parse_json(line.encode(errors="replace")))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    content["marks"] = _all(Mark, content.get("marks"))
    content["workers"] = _all(Worker, content.get("workers"))
    found = record_of(Snapshot, content)
    if found is None:
        return None
    train, evals = _columns(found.train, TRAIN), _columns(found.evals, EVALS)
    return dataclasses.replace(found, train=train, evals=evals)


def _all(kind: type[T], content: object) -> list[T]:
    rows: list[Any] = content if isinstance(content, list) else []
    return [row for one in rows if (row := record_of(kind, one)) is not None]


def _columns(given: Mapping[str, Column], names: Sequence[str]) -> dict[str, Column]:
    """The columns `names`, all of the same length; none if one is missing."""
    if not all(name in given for name in names):
        return {}
    length = min(len(given[name]) for name in names)
    return {name: given[name][:length] for name in names}
