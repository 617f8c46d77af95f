"""Columns of numbers in one file that is memory-mapped: opened in milliseconds, whatever its size.

The file is in the safetensors format (8 bytes of header length, a JSON header, the raw data), so that other programs
can read it. Source of the format: the safetensors project's README, "Format".
"""

from __future__ import annotations

import json
import math
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist import input_files

Columns = Mapping[str, NDArray[Any]]

_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ENCODED_TOGETHER = 4096  # texts
_METADATA = "__metadata__"  # reserved key of the header: a map of strings to strings


def write(file: Path, columns: Columns, metadata: Mapping[str, str]) -> None:
    """Write to `file` atomically, in place of what was there; create its parents. Raises OSError.

    Several processes may write the same file at once: each writes a temporary file, and the last rename wins.
    """
    # Large elements first: every column is aligned when the file is mapped.
    order = sorted(columns, key=lambda name: (-columns[name].itemsize, name))
    header: dict[str, object] = {_METADATA: dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + columns[name].nbytes
        dtype = _NAMES[columns[name].dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": list(columns[name].shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in order:
                stream.write(np.ascontiguousarray(columns[name]).data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The columns, read-only and memory-mapped, and the metadata. Raises OSError, or ValueError for a damaged file."""
    with input_files.open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = 8 + struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))[0]
        if start > size:
            raise ValueError("it is shorter than its header")
        header = json.loads(stream.read(start - 8))
        metadata = header.pop(_METADATA, {})
        whole = np.memmap(stream, dtype=np.uint8, mode="r") if size > start else np.zeros(start, np.uint8)
    columns = {}
    for name, part in header.items():
        first, end = part["data_offsets"]
        dtype, shape = _DTYPES[part["dtype"]], [int(number) for number in part["shape"]]
        if not 0 <= first <= end <= size - start or end - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"column {name!r} is not where the header says")
        columns[name] = whole[start + first : start + end].view(dtype).reshape(shape)
    return columns, metadata


class Texts(Sequence[str]):
    """Texts in two columns: all of them, as UTF-8 with a zero byte after each, and where they end.

    Also file names that are not valid UTF-8: no file name contains a zero byte. A million names take no time to open.
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """`texts` in this form; themselves if they have it already."""
        if isinstance(texts, Texts):
            return texts
        encoded = bytearray()
        for start in range(0, len(texts), _ENCODED_TOGETHER):  # bytes objects of single names would be large
            some = "\0".join([*texts[start : start + _ENCODED_TOGETHER], ""])
            encoded += some.encode("utf-8", "surrogateescape")
        content = np.frombuffer(encoded, dtype=np.uint8)
        return cls(content, np.flatnonzero(content == 0) + 1)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """All texts of `parts`, one part after the other."""
        starts = np.cumsum([0, *(len(part.content) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts[:-1].tolist(), strict=True)]
        return cls(np.concatenate([part.content for part in parts]), np.concatenate(ends))

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """The texts `rows`, in that order."""
        ends = self.ends[rows]
        starts = np.where(rows % len(self) == 0, 0, self.ends[rows - 1])
        whole = self.content.data
        parts = [whole[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return Texts(np.frombuffer(b"".join(parts), dtype=np.uint8), np.cumsum(ends - starts))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            first, end, step = number.indices(len(self))
            if step != 1 or first >= end:
                return [self[row] for row in range(first, end, step)]
            start = int(self.ends[first - 1]) if first else 0
            some = self.content[start : int(self.ends[end - 1]) - 1].tobytes()
            return some.decode("utf-8", "surrogateescape").split("\0")
        number = range(len(self))[number]
        start = int(self.ends[number - 1]) if number else 0
        return self.content[start : int(self.ends[number]) - 1].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.content, other.content)
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((len(self), self.content[:64].tobytes()))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Texts([{shown}{', ...' if len(self) > 3 else ''}])"
