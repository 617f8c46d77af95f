"""JSON lines: files with one JSON object per line, appended by one process and read by others at any time.

A killed process or a full disk can leave an incomplete line, and another version or a person other lines. Readers
leave out what they cannot read and name it once. Appending after an incomplete line starts a new one.

Readers take a function that converts parsed JSON to a record, or to None if it is not one:
`functools.partial(record_of, Submission)`.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from resnet_dist.input_files import open_regular, open_to_append, parse_json

T = TypeVar("T")

Record = dict[str, Any]  # a JSON object

log = logging.getLogger(__name__)

TAIL_BYTES = 200_000  # enough for several hundred lines of metrics
MAX_LINE_BYTES = 1_000_000  # assumption: a thousand times a line of metrics
MAX_FILE_BYTES = 2_000_000_000  # assumption: metrics of four million steps; a larger file is not one of a run
_QUOTED = 40  # bytes of a line that cannot be read


def encode(record: Mapping[str, object]) -> bytes:
    r"""`record` as one line. NaN and infinity become null, since JSON has neither.

    >>> encode({"step": 3, "loss": float("nan")})
    b'{"step": 3, "loss": null}\n'
    """
    return (json.dumps(without_non_finite(record), allow_nan=False) + "\n").encode()


def append(path: Path, record: Mapping[str, object]) -> None:
    """Append a record and flush it to the disk. Raises OSError."""
    with open_to_append(path) as file:
        if ends_inside_a_line(file):
            file.write(b"\n")
        file.write(encode(record))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, convert: Callable[[object], T | None]) -> list[T]:
    """All records of a file, oldest first. Logs what cannot be read, once in a process. Raises OSError."""
    records: list[T] = []
    unreadable: list[tuple[int, bytes]] = []
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise OSError(errno.EINVAL, f"has more than {MAX_FILE_BYTES:,} bytes: it is not a file of a run", str(path))
        for number, line in enumerate(_lines(file), 1):
            record = _parsed(line, convert)
            if record is not None:
                records.append(record)
            elif line.strip() and line.endswith(b"\n"):  # an incomplete last line is being written
                unreadable.append((number, line[:_QUOTED]))
    if unreadable:
        number, start = unreadable[0]
        lines = "1 line" if len(unreadable) == 1 else f"{len(unreadable)} lines"
        quote = ascii(start.decode(errors="replace"))
        _warn_once(f"{path}: ignored {lines} that cannot be read; line {number} begins with {quote}")
    return records


def read_tail(path: Path, num_lines: int, convert: Callable[[object], T | None]) -> list[T]:
    """The records in the last `num_lines` lines; an empty list if the file cannot be read."""
    lines = (line.encode() for line in last_lines(path, num_lines))
    return [record for line in lines if (record := _parsed(line, convert)) is not None]


def last_lines(path: Path, num_lines: int, at_most_bytes: int = TAIL_BYTES) -> list[str]:
    """The last lines of a text file; an empty list if it cannot be read."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - at_most_bytes, 0))
            text = file.read(at_most_bytes).decode(errors="replace")
            return text.splitlines()[-num_lines:]
    except OSError:
        return []


def ends_inside_a_line(file: BinaryIO) -> bool:
    """Whether the last line of an open file is incomplete. Moves the file's position."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


class Follower(Generic[T]):
    """Reads the records that are appended to a file after this object is created, once their lines are complete."""

    def __init__(self, path: Path, convert: Callable[[object], T | None]) -> None:
        self._path, self._convert = path, convert
        self._offset = path.stat().st_size if path.exists() else 0

    def new_records(self) -> Iterator[T]:
        """The records since the last call. Lines that cannot be read are left out. Raises OSError."""
        if not self._path.exists():
            return
        with open_regular(self._path) as file:
            file.seek(self._offset)
            while line := file.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                    return
                self._offset += len(line)
                record = _parsed(line, self._convert)
                if record is not None:
                    yield record


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


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of a line that is too long only the beginning, which is no record."""
    while line := file.readline(MAX_LINE_BYTES):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
            if rest:
                line = line[:_QUOTED] + b"...\n"
        yield line


def _parsed(line: bytes, convert: Callable[[object], T | None]) -> T | None:
    try:
        return convert(parse_json(line))
    except ValueError:
        return None


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)
