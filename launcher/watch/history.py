"""The records of a growing metrics.jsonl, thinned: a file of any size needs little memory, and is read once.

Most lines of a long run are train records of which a chart cannot show a hundredth. Between two that are kept, lines
that begin as our writer begins them are passed over without being parsed, which is fifty times as fast.
"""

from __future__ import annotations

import itertools
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.formatting import first_line
from launcher.watch.snapshot import EVALS, SPENT, TRAIN, Column, Mark, bounded
from resnet_dist.input_files import open_regular, parse_json
from resnet_dist.telemetry.json_lines import MAX_LINE_BYTES, Record
from resnet_dist.telemetry.metrics_file import BOTTLENECK_EVENTS, metrics_record

MAX_POINTS = 2_000  # of a curve that are kept: four per dot of a wide terminal
MAX_EVENTS = 200
NUM_NEWEST = 20  # records over which the newest times are averaged
_CHUNK_BYTES = 1_000_000
_TRAIN, _LAYERS = b'{"kind": "train", ', b'{"kind": "layers", '  # as json_lines.encode writes them
_TARGETS = {"target_reached": "target of stop_at reached", "target_missed": "target of stop_at missed"}
# Events that are no news, or are shown as something else.
_QUIET = (
    "checkpoint",
    "epoch_complete",
    "indexing",
    "started",
    "stage",
    "finished",
    "mirrored",
    "straggler",
    *_TARGETS,
)


@dataclass
class _Point:
    """A train or eval record that is kept."""

    values: tuple[float | None, ...]  # the columns without time_s
    spent: tuple[float, ...]  # seconds by SPENT up to it, without the repeated

    @property
    def step(self) -> float:
        return self.values[0] or 0.0

    @property
    def time_s(self) -> float:
        return sum(self.spent)


class History:
    """What was read of the file so far. `read` continues where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = 0
        self._reset()

    def _reset(self) -> None:
        self.total_steps: int | None = None
        self.newest: Record = {}  # the newest train record of the newest attempt
        self.best_top1: float | None = None
        self.bottleneck = ""
        self.stage = ""  # what the start of the newest attempt does, until its first step
        self.stragglers: dict[int, Mapping[str, Any]] = {}  # of the newest attempt: rank -> detail
        self.num_unreadable = 0
        self._offset, self._size, self._rest = 0, 0, b""
        self._stride = 0  # one train record of so many is kept; 0: not chosen yet
        self._num_train = 0
        self._passed_over = b""  # the newest such line
        self._started = 0  # step that the newest attempt continues from
        self._train: list[_Point] = []
        self._evals: list[_Point] = []
        self._spent = dict.fromkeys(SPENT, 0.0)
        self._recent: deque[tuple[float, float]] = deque(maxlen=NUM_NEWEST)
        self._marks: deque[Mark] = deque(maxlen=MAX_EVENTS)
        self._events: deque[str] = deque(maxlen=MAX_EVENTS)

    @property
    def is_empty(self) -> bool:
        """Whether the file is missing or empty."""
        return not self._size

    @property
    def fraction_read(self) -> float:
        """Of the file."""
        return self._offset / self._size if self._size else 1.0

    def read(self, budget_s: float) -> bool:
        """Read what was appended, for about `budget_s`; returns whether there is more. Raises OSError."""
        end = time.monotonic() + budget_s
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            return False
        with file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:  # another run of this name
                self._reset()
                self._inode = found.st_ino
            self._size = found.st_size
            if self._offset == self._size:
                return False
            file.seek(self._offset)
            while chunk := file.read(min(_CHUNK_BYTES, self._size - self._offset)):
                self._offset += len(chunk)
                self._take(chunk)
                if time.monotonic() > end:
                    break
        if self._passed_over:
            self._note_newest(_parsed(self._passed_over) or {})
            self._passed_over = b""
        return self._offset < self._size

    def train(self, max_points: int) -> dict[str, Column]:
        """The columns TRAIN with at most about `max_points` rows; the last is the newest record."""
        points = self._train[:: max(-(-len(self._train) // max_points), 1)]
        last = self._train[-1:] if self._train and points[-1] is not self._train[-1] else []
        rows = [(*point.values[:2], point.time_s, *point.values[2:]) for point in [*points, *last]]
        step = self.newest.get("step")
        if step is not None and (not rows or step > (rows[-1][0] or 0.0)):
            values = _values(self.newest, TRAIN)
            rows.append((*values[:2], self._time_s(step), *values[2:]))
        return {name: [row[number] for row in rows] for number, name in enumerate(TRAIN)}

    def evals(self, max_points: int) -> dict[str, Column]:
        """The columns EVALS, as `train`."""
        step = max(-(-len(self._evals) // max_points), 1)
        points = self._evals[::-1][::step][::-1]  # the newest is among them
        rows = [(*point.values[:2], self._time_s(point.step), *point.values[2:]) for point in points]
        return {name: [row[number] for row in rows] for number, name in enumerate(EVALS)}

    @property
    def spent(self) -> dict[str, float]:
        """Seconds by what they were used for."""
        return dict(self._spent)

    @property
    def marks(self) -> list[Mark]:
        """The marks, oldest first."""
        return list(self._marks)

    @property
    def events(self) -> list[str]:
        """The events that a person should know, newest first."""
        return list(self._events)[::-1]

    @property
    def top1(self) -> float | None:
        """Of the newest evaluation."""
        return self._evals[-1].values[2] if self._evals else None

    def recent(self) -> tuple[float, float] | None:
        """(step_time_s, data_wait_s): means over the newest train records that were kept."""
        if not self._recent:
            return None
        step_s, wait_s = (sum(column) / len(self._recent) for column in zip(*self._recent, strict=True))
        return step_s, wait_s

    def _take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = b""
        if not self._stride:
            self._stride = self._first_stride(lines)
        for line in lines:
            if line.startswith(_LAYERS):
                continue
            if line.startswith(_TRAIN):
                self._num_train += 1
                if self._num_train % self._stride:
                    self._passed_over = line
                    continue
            record = _parsed(line)
            if record is not None:
                self._add(record)
            elif line.strip():
                self.num_unreadable += 1

    def _first_stride(self, lines: Sequence[bytes]) -> int:
        """A power of 2 with which the file, if all its lines are train records, has at most 2 × MAX_POINTS points."""
        if not lines:
            return 0
        per_line = sum(map(len, lines)) / len(lines) + 1
        num_lines, stride = self._size / per_line, 1
        while num_lines / stride > 2 * MAX_POINTS:
            stride *= 2
        return stride

    def _add(self, record: Record) -> None:
        if record["kind"] == "train":
            self._add_train(record)
        elif record["kind"] == "eval":
            self._add_eval(record)
        elif record["kind"] == "event":
            self._add_event(record, record.get("detail", {}))

    def _add_train(self, record: Record) -> None:
        before = self._train[-1].step if self._train else 0.0
        num_steps = max(record["step"] - max(before, self._started), 0)
        step_s = max(record.get("step_time_s") or 0.0, 0.0)
        wait_s = min(max(record.get("data_wait_s") or 0.0, 0.0), step_s)
        self._spent["data wait"] += wait_s * num_steps
        self._spent["compute"] += (step_s - wait_s) * num_steps
        if step_s:
            self._recent.append((step_s, wait_s))
        if self._train and record["step"] <= before:  # of several records of one step the last counts
            self._train.pop()
        self._train.append(_Point(_values(record, TRAIN), self._without_repeated()))
        self._note_newest(record)
        self._passed_over = b""
        if len(self._train) > 2 * MAX_POINTS:
            del self._train[1::2]
            self._stride *= 2

    def _note_newest(self, record: Record) -> None:
        if record:
            self.newest, self.stage = record, ""

    def _add_eval(self, record: Record) -> None:
        if not record.get("beside"):
            self._spent["evaluation"] += max(record.get("time_s") or 0.0, 0.0)
        if self._evals and self._evals[-1].step == record["step"]:
            self._evals.pop()
        self._evals.append(_Point(_values(record, EVALS), self._without_repeated()))
        top1 = record.get("top1")
        if top1 is not None and (self.best_top1 is None or top1 > self.best_top1):
            self.best_top1 = top1
        if len(self._evals) > 2 * MAX_POINTS:
            del self._evals[1::2]

    def _add_event(self, record: Record, detail: Mapping[str, Any]) -> None:
        event, step = record["event"], record["step"]
        if event == "started":
            self._begin_attempt(step, detail)
        elif event == "stage":
            self.stage = str(detail.get("begins") or "")
        elif event == "indexing":
            self.stage = first_line(detail.get("text"))
        elif event == "checkpoint":
            self._spent["saving"] += max(detail.get("stalled_s") or 0.0, 0.0)
        elif event in BOTTLENECK_EVENTS:
            self.bottleneck = first_line(detail.get("text"))
        elif event == "straggler":
            rank = detail.get("rank")
            if isinstance(rank, int):
                self.stragglers[rank] = detail
            self._marks.append(Mark(step=step, sign="s", text=f"step {step:,}: rank {rank} is a straggler"))
        elif event in _TARGETS:
            self._marks.append(Mark(step=step, sign="T", text=f"step {step:,}: {_TARGETS[event]}"))
        if event not in (*_QUIET, *BOTTLENECK_EVENTS):
            self._events.append(f"step {step:,}: {_described(event, detail)}")

    def _begin_attempt(self, step: int, detail: Mapping[str, Any]) -> None:
        """Drop what the attempt repeats: what follows `step`."""
        self.total_steps = detail.get("total_steps") or self.total_steps
        before = sum(self._without_repeated())
        for points in (self._train, self._evals):
            while points and points[-1].step > step:
                points.pop()
        kept = max(self._train[-1:] + self._evals[-1:], key=lambda point: point.time_s, default=None)
        spent = dict.fromkeys(SPENT, 0.0) if kept is None else dict(zip(SPENT, (*kept.spent, 0.0), strict=True))
        if step == 0:
            self.best_top1 = None
        else:
            tops = [point.values[2] for point in self._evals if point.values[2] is not None]
            self.best_top1 = max(tops, default=None)
        spent["repeated"] = self._spent["repeated"] + before - sum(spent.values())
        self._spent, self._started = spent, step
        self.newest, self._passed_over, self.stragglers = {}, b"", {}
        self._recent.clear()

    def _without_repeated(self) -> tuple[float, ...]:
        return tuple(self._spent[name] for name in SPENT[:-1])

    def _time_s(self, step: float) -> float:
        """The time at a step: between the train records around it, in proportion."""
        points = self._train
        right = bisect_left(points, step, key=lambda point: point.step)
        if right == len(points):
            return sum(self._without_repeated())
        after, left = points[right], points[right - 1] if right else _Point((0.0,), (0.0,))
        part = (step - left.step) / (after.step - left.step) if after.step > left.step else 1.0
        return left.time_s + min(max(part, 0.0), 1.0) * (after.time_s - left.time_s)


def _values(record: Record, columns: Sequence[str]) -> tuple[float | None, ...]:
    return tuple(record.get(name) for name in columns if name != "time_s")


def _parsed(line: bytes) -> Record | None:
    try:
        return metrics_record(bounded(parse_json(line))) if len(line) <= MAX_LINE_BYTES else None
    except ValueError:
        return None


def _described(event: str, detail: Mapping[str, Any]) -> str:
    """An event in one line."""
    text = first_line(str(detail["text"])) if detail.get("text") else ""
    if text:
        return text if event == "warning" else f"{event.replace('_', ' ')}: {text}"
    some = itertools.islice(detail.items(), 4)
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in some]
    return f"{event.replace('_', ' ')}{': ' if parts else ''}{', '.join(parts)}"
