"""The one place for what a run says of itself: metrics.jsonl and TensorBoard on rank 0, nothing on the others.

Lines of metrics.jsonl, one JSON object each, with "kind" and "step" (completed steps) in all of them:

    "train"   epoch loss learning_rate images_per_s step_time_s data_wait_s ...
    "eval"    epoch top1 top5 loss num_samples weights ("model", or "ema" for their moving average)
              num_nonfinite (samples with logits that are not finite; with any, top1, top5 and loss are null)
    "event"   event detail; the event "started" is written by every attempt, with the step that it goes on from

JSON has no NaN and no infinity: such a number is written as null.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from resnet_dist.errors import StorageError
from resnet_dist.telemetry import json_lines

log = logging.getLogger(__name__)

KINDS = ("train", "eval", "event")


class Sink(Protocol):
    """Takes the run's records. Every worker has one; only rank 0's writes."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record: "kind" (train, eval or event), "step", and plain Python values."""
        ...

    def close(self) -> None:
        """Nothing more will be written."""
        ...


class NoSink:
    """The sink of every worker but rank 0."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Rank 0 has the same record and writes it."""

    def close(self) -> None:
        """Nothing was opened."""


class MetricsFile:
    """Appends to metrics.jsonl, a line at a time, and draws the numbers of train and eval records in TensorBoard.

    `tensorboard` is the folder of its event files, or None for none. Opening raises StorageError when the disk refuses.
    Later a full disk does not end the training: lines wait in memory until the file takes them again, which is tried
    with each new one and at the end; what could not be written by then is logged.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self._path = path
        self._tensorboard = tensorboard
        self._waiting = b""  # lines that the file did not take, or the rest of one
        self._writer: Any = None  # a SummaryWriter from the first record on: a resumed run's needs its step
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
            if json_lines.ends_inside_a_line(self._file):
                self._waiting = b"\n"
                self._append_waiting()
        except OSError as error:
            raise StorageError(str(path), error.strerror or str(error)) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it has left this process when the call returns, unless the disk is full."""
        if record.get("kind") not in KINDS or type(record.get("step")) is not int:
            raise ValueError(f"a record needs a step and a kind ({', '.join(KINDS)}): {dict(record)}")
        refused_before = bool(self._waiting)
        self._waiting += json_lines.encode(record)
        try:
            self._append_waiting()
            if self._tensorboard is not None:
                self._draw(record, self._tensorboard)
        except OSError as error:
            if not refused_before:
                log.warning("%s: %s; its lines wait in memory", self._path, error.strerror or error)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file.closed:
            return
        try:
            self._append_waiting()
            os.fsync(self._file.fileno())
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            lost = self._waiting.count(b"\n")
            log.error("%s: %s; %d lines could not be written", self._path, error.strerror or error, lost)
        finally:
            self._file.close()

    def _append_waiting(self) -> None:
        while self._waiting:  # a raw write may take less than all of it
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def _draw(self, record: Mapping[str, Any], folder: Path) -> None:
        if self._writer is None:
            self._writer = _summary_writer(folder, record)
            if self._writer is None:
                self._tensorboard = None
                return
        if record["kind"] == "event":
            return
        for key, value in record.items():
            if key not in ("step", "epoch") and type(value) in (int, float) and math.isfinite(value):
                self._writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])


def _summary_writer(folder: Path, first: Mapping[str, Any]) -> Any:
    """A SummaryWriter, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed: metrics go to metrics.jsonl only (pip install tensorboard)")
        return None
    # What an earlier attempt drew beyond the step that this one goes on from is hidden: it will be drawn again.
    purge_step = first["step"] + 1 if first.get("event") == "started" else None
    return SummaryWriter(str(folder), purge_step=purge_step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl as one uninterrupted run would have written them, in the file's order.

    An attempt that went on from step k does the steps after k again: what earlier attempts wrote of them is dropped.
    Of train records of the same step the last one counts, and so for eval; events of the same step are all kept.
    Lines that are not records are ignored, and logged. Raises OSError.
    """
    records: list[dict[str, Any]] = []
    num_ignored = 0
    for record in json_lines.read(path):
        if record.get("kind") not in KINDS or type(record.get("step")) is not int:
            num_ignored += 1
            continue
        if record.get("event") == "started":
            records = [earlier for earlier in records if earlier["step"] <= record["step"]]
        records.append(record)
    if num_ignored:
        log.warning("%s: %d records without a kind or a step were ignored", path, num_ignored)
    last = {(record["kind"], record["step"]): number for number, record in enumerate(records)}
    return [
        record
        for number, record in enumerate(records)
        if record["kind"] == "event" or last[record["kind"], record["step"]] == number
    ]
