"""JSON lines: files with one JSON object per line, appended by one process and read by others at any time.

A killed process or a full disk can leave an incomplete line. Readers skip lines that are not JSON objects, and
appending after an incomplete line starts a new one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]  # a JSON object

log = logging.getLogger(__name__)

TAIL_BYTES = 200_000  # enough for several hundred lines of metrics


def encode(record: Mapping[str, object]) -> bytes:
    r"""`record` as one line. NaN and infinity become null, since JSON has neither.

    >>> encode({"step": 3, "loss": float("nan")})
    b'{"step": 3, "loss": null}\n'
    """
    return (json.dumps(without_non_finite(record), allow_nan=False) + "\n").encode()


def append(path: Path, record: Mapping[str, object]) -> None:
    """Append a record and flush it to the disk. Raises OSError."""
    with path.open("ab+") as file:
        if ends_inside_a_line(file):
            file.write(b"\n")
        file.write(encode(record))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """All records of a file, oldest first. Logs the number of lines that are not records. Raises OSError."""
    lines = path.read_bytes().splitlines()
    records = list(_parsed(lines))
    num_ignored = sum(1 for line in lines if line.strip()) - len(records)
    if num_ignored:
        log.warning("%s: %d lines are not JSON objects and were ignored", path, num_ignored)
    return records


def read_tail(path: Path, num_lines: int) -> list[Record]:
    """The records in the last `num_lines` lines; an empty list if the file cannot be read."""
    return list(_parsed(line.encode() for line in last_lines(path, num_lines)))


def last_lines(path: Path, num_lines: int, at_most_bytes: int = TAIL_BYTES) -> list[str]:
    """The last lines of a text file; an empty list if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - at_most_bytes, 0))
            return file.read().decode(errors="replace").splitlines()[-num_lines:]
    except OSError:
        return []


def ends_inside_a_line(file: BinaryIO) -> bool:
    """Whether the last line of an open file is incomplete. Moves the file's position."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


class Follower:
    """Reads the records that are appended to a file after this object is created, once their lines are complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_records(self) -> Iterator[Record]:
        """The records since the last call. Raises OSError."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield from _parsed([line])


def without_non_finite(value: Any) -> Any:
    """`value` with NaN and infinity replaced by None, also inside mappings, lists and tuples.

    >>> without_non_finite({"top1": float("nan"), "losses": (0.5, float("inf"))})
    {'top1': None, 'losses': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_non_finite(item) for item in value]
    return value


def _parsed(lines: Iterable[bytes]) -> Iterator[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # incomplete, empty, or not UTF-8
            continue
        if isinstance(record, dict):
            yield record
