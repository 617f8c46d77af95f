"""The metrics of a run: metrics.jsonl, written by rank 0, and the protocol of a sink, which others implement too.

Lines of metrics.jsonl are JSON objects with "kind" and "step" (completed steps):

    "train"   epoch loss learning_rate images_per_s step_time_s data_wait_s ...
              memory_bytes (host memory of rank 0's process now) gpu_memory_bytes (most that torch has used of its GPU)
              num_left_out (samples so far whose images are broken, where there may be such)
              trust_ratio_min trust_ratio_median trust_ratio_max (over the layers, with lars and lamb)
    "layers"  layers: {layer: {weight_norm gradient_norm trust_ratio activation_std output_gradient_std}}, each where it
              exists; see `resnet_dist.telemetry.layers`
    "eval"    epoch top1 top5 loss num_samples weights ("model", or "ema" for their moving average)
              num_nonfinite (samples with logits that are not finite; if there are any, top1, top5 and loss are null)
              num_bad (broken images, which are not among num_samples, if there are any)
              top5 is also null if the model predicts fewer than 6 classes
              train_top1 train_loss train_num_bad (on the training split, with evaluate.train)
              metrics (evaluate.metrics, by name)
              time_s; beside: true with evaluate.beside, whose records come after those of later steps
    "event"   event detail; every attempt writes the event "started" with the step that it continues from (with
              detail.from_memory, from the state that a worker has kept, not from a checkpoint), and then an
              event "warning", with detail.text, for each thing that was left out, replaced or initialised again;
              "epoch_complete": detail.epoch (1 is the first), num_samples and its hashes (see `data.ledger.Tally`);
              "evaluation_skipped": detail.text says why no evaluation of this step comes (evaluate.beside);
              "bad_image": detail.path, problem and rank (of the worker that met it) of an image that is left out;
              "indexing", before "started": detail.text says how far the making of the index is, every few seconds;
              "stage", around "started": a stage of the start begins (detail.begins, null after the first step), and
              another one has ended (detail.ended) after detail.time_s

NaN and infinity are written as null.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from resnet_dist.errors import StorageError
from resnet_dist.input_files import open_to_append, record_of
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.json_lines import Record

log = logging.getLogger(__name__)

_RECENT = 1000  # lines, more than the records of two steps: their broken images are named one by one
KINDS = ("train", "eval", "layers", "event")
EARLY_EVENTS = ("indexing", "stage")  # an attempt may write them before "started"
BOTTLENECK_EVENTS = ("bottleneck", "verdict")  # the newer name first; version 0.1 wrote "verdict"


class Sink(Protocol):
    """Takes the records of a run. Every worker has one; only that of rank 0 writes."""

    def write(self, record: Mapping[str, object]) -> None:
        """Write a record: "kind" (train, eval, layers or event), "step", and plain Python values."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class NoSink:
    """The sink of all workers except rank 0, which writes nothing."""

    def write(self, record: Mapping[str, object]) -> None:
        """Ignore the record."""

    def close(self) -> None:
        """Do nothing."""


class MetricsFile:
    """Appends records to metrics.jsonl. Raises StorageError if the file cannot be opened.

    A disk that is full later does not end the training: lines are kept in memory and written with a later record or on
    closing. Lines that are lost then are logged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""  # bytes that could not be written yet
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = open_to_append(path)
            self._waiting = b"\n" if json_lines.ends_inside_a_line(opened) else b""
            self._file = opened.detach()  # without a buffer: the operating system has what was written
            self._append_waiting()
        except OSError as error:
            raise StorageError(str(path), error.strerror or str(error)) from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append a record. Unless the disk is full, the operating system has it when the call returns."""
        if record.get("kind") not in KINDS or type(record.get("step")) is not int:
            raise ValueError(f"a record needs a step and a kind ({', '.join(KINDS)}): {dict(record)}")
        refused_before = bool(self._waiting)
        self._waiting += json_lines.encode(record)
        try:
            self._append_waiting()
        except OSError as error:
            if not refused_before:
                log.warning(
                    "%s: %s; lines are kept in memory until they can be written", self._path, error.strerror or error
                )

    def close(self) -> None:
        """Flush everything to the disk."""
        if self._file.closed:
            return
        try:
            self._append_waiting()
            os.fsync(self._file.fileno())
        except OSError as error:
            lost = self._waiting.count(b"\n")
            log.error("%s: %s; %d lines could not be written", self._path, error.strerror or error, lost)
        finally:
            self._file.close()

    def _append_waiting(self) -> None:
        while self._waiting:  # a raw write may write only a part
            self._waiting = self._waiting[self._file.write(self._waiting) :]


@dataclass(frozen=True)
class _Detail:
    """The values in the details of events that readers use."""

    total_steps: int = 0
    text: str = ""
    stalled_s: float | None = None
    write_s: float | None = None


@dataclass(frozen=True)
class _Known:
    """The values of a record that readers use; null is a number that is not finite."""

    kind: Literal["train", "eval", "layers", "event"]
    step: int
    event: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    epoch: float | None = None
    loss: float | None = None
    top1: float | None = None
    top5: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    images_per_s: float | None = None
    step_time_s: float | None = None
    data_wait_s: float | None = None
    time_left_s: float | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    time_s: float | None = None
    sample_ids: int | None = None
    num_samples: int | None = None
    num_nonfinite: int | None = None
    beside: bool = False
    num_bad: int | None = None
    num_left_out: int | None = None
    train_top1: float | None = None
    train_loss: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.step < 0 or (self.kind == "event") != bool(self.event) or record_of(_Detail, self.detail) is None:
            raise ValueError("not a record of metrics.jsonl")


def metrics_record(content: object) -> Record | None:
    """`content`, parsed JSON, if it is a record of metrics.jsonl; else None."""
    return content if isinstance(content, dict) and record_of(_Known, content) is not None else None


def read_metrics(path: Path) -> list[Record]:
    """The records of metrics.jsonl as an uninterrupted run would have written them, in the file's order.

    Lines that are not records are ignored and logged. Raises OSError.
    """
    return uninterrupted(json_lines.read(path, metrics_record))


def unwritten(path: Path | None, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of some recent `records` of steps that the file does not have; all of them without a file.

    Records that differ only in what was measured (times, memory) are the same.
    """
    if path is None or not records:
        return list(records)
    found = uninterrupted(json_lines.read_tail(path, _RECENT, metrics_record))
    written = {_identity(record) for record in found}
    return [record for record in records if _identity(record) not in written]


def _identity(record: Mapping[str, Any]) -> str:
    """What tells the records of a file apart."""
    detail = record.get("detail", {})
    found = [record["kind"], record["step"], record.get("event"), *map(detail.get, ("epoch", "path", "rank"))]
    return json.dumps(found)


def uninterrupted(written: Iterable[Record]) -> list[Record]:
    """The records of metrics.jsonl, in the order in which they were `written`, without those of repeated steps.

    An attempt that continues from step k repeats the steps after k: their records of earlier attempts are dropped. Of
    several train (or eval) records of one step the last is used; events are all kept. An evaluation beside training is
    put where one in turn with training is. Events of earlier versions have their present names.
    """
    records: list[Record] = []
    for record in written:
        if record.get("event") == "started":
            records = [earlier for earlier in records if earlier["step"] <= record["step"]]
        if record.get("event") in BOTTLENECK_EVENTS:
            record = {**record, "event": BOTTLENECK_EVENTS[0]}
        place = len(records)
        while record.get("beside") and place and records[place - 1]["step"] > record["step"]:
            place -= 1
        records.insert(place, record)
    last = {(record["kind"], record["step"]): number for number, record in enumerate(records)}
    return [
        record
        for number, record in enumerate(records)
        if record["kind"] == "event" or last[record["kind"], record["step"]] == number
    ]
