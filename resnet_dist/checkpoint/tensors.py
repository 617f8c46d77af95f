"""The safetensors file format: 8 bytes of header length (little-endian), a JSON header, the raw data.

This implementation needs torch only, and hashes a file in the pass that writes or reads it. It uses no pickle, so
reading a file runs no code from it. Source of the format: the safetensors project's README, "Format"; its package
reads the files written here and vice versa. Stricter than the format: eight dtypes, and names that are not paths.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_dist.checkpoint.disk import checkpoint_errors
from resnet_dist.checkpoint.format import FileRecord
from resnet_dist.errors import CheckpointError
from resnet_dist.input_files import open_regular

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"  # reserved key of the header: a map of strings to strings
_MAX_HEADER_BYTES = 100_000_000  # the safetensors package's own limit


@dataclass(frozen=True)
class TensorFile:
    """The content of a file: its tensors on the CPU, its metadata, and its size and hash."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    record: FileRecord


class _Hashed:
    """Counts and hashes the bytes written to or read from a file."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes | memoryview) -> None:
        self.file.write(content)
        self._count(content)

    def read_into(self, buffer: bytearray) -> None:
        if self.file.readinto(buffer) != len(buffer):
            raise ValueError("the file is too short")
        self._count(buffer)

    def _count(self, content: bytes | bytearray | memoryview) -> None:
        self.hash.update(content)
        self.size_bytes += len(content)

    def record(self) -> FileRecord:
        return FileRecord(self.size_bytes, self.hash.hexdigest())


def check(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a name or a dtype that the file format does not allow."""
    for name, tensor in tensors.items():
        if problem := _name_problem(name):
            raise ValueError(f"tensor {name!r}: {problem}")
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"tensor {name!r}: dtype {tensor.dtype} is not supported. Allowed: {', '.join(map(str, _NAMES))}"
            )


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> FileRecord:
    """Write a new file and flush it to the disk. Raises OSError, and ValueError as `check` does.

    Tensors may be on any device and in any memory layout; they are written in row-major order.
    """
    check(tensors)
    # Large elements first, as the safetensors package does: every tensor is aligned in a memory-mapped file.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {_METADATA: {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        hashed = _Hashed(file)
        hashed.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in order:
            rows = tensors[name].detach().cpu().contiguous().reshape(-1)
            hashed.write(rows.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    return hashed.record()


def read(path: Path) -> TensorFile:
    """Read a whole file. Raises CheckpointError if it cannot be read or its header is invalid.

    Every size in the header is checked against the file's size before memory is allocated.
    """
    try:
        with checkpoint_errors(path), open_regular(path) as file:
            return _read(_Hashed(file), os.fstat(file.fileno()).st_size)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"is not a safetensors file: {error}") from error


def _read(hashed: _Hashed, size_bytes: int) -> TensorFile:
    prefix = bytearray(8)
    hashed.read_into(prefix)
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER_BYTES, size_bytes - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size_bytes}")
    encoded = bytearray(length)
    hashed.read_into(encoded)
    header = json.loads(encoded, object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{_METADATA} must map strings to strings")
    entries = sorted((_Entry.parse(name, entry) for name, entry in header.items()), key=lambda entry: entry.offsets)
    position = 0
    for entry in entries:
        if entry.offsets[0] != position:
            raise ValueError(f"tensor {entry.name!r} starts at {entry.offsets[0]}; expected {position}")
        position = entry.offsets[1]
    if position != size_bytes - 8 - length:
        raise ValueError(f"the tensors take {position} bytes, but {size_bytes - 8 - length} bytes follow the header")
    tensors = {entry.name: entry.read(hashed) for entry in entries}
    return TensorFile(tensors, metadata, hashed.record())


@dataclass(frozen=True)
class _Entry:
    """A tensor's entry in the header. Offsets count from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, int]

    @classmethod
    def parse(cls, name: str, entry: object) -> _Entry:
        if problem := _name_problem(name):
            raise ValueError(f"tensor {name!r}: {problem}")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} must have the keys dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"tensor {name!r}: dtype {dtype!r} is not supported. Allowed: {', '.join(DTYPES)}")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"tensor {name!r}: shape and data_offsets must be lists of non-negative integers")
        size_bytes = math.prod(shape) * DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != size_bytes:
            raise ValueError(f"tensor {name!r}: shape {shape} takes {size_bytes} bytes, but data_offsets are {offsets}")
        if math.prod(max(length, 1) for length in shape) >= 2**63:  # torch uses int64, for empty tensors too
            raise ValueError(f"tensor {name!r}: shape {shape} is too large")
        return cls(name, DTYPES[dtype], tuple(shape), (offsets[0], offsets[1]))

    def read(self, hashed: _Hashed) -> Tensor:
        buffer = bytearray(self.offsets[1] - self.offsets[0])
        if not buffer:  # torch.frombuffer refuses an empty buffer
            return torch.empty(self.shape, dtype=self.dtype)
        hashed.read_into(buffer)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _name_problem(name: str) -> str:
    """Return why `name` is invalid, or "". A tool that unpacks tensors into files must not leave its folder."""
    if name == _METADATA:
        return "is a reserved key of the format"
    if "\\" in name or not name.isprintable():
        return "must be printable and have no backslashes"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "must not be a path (no empty part, . or .. between slashes)"
    return ""


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("the header has a duplicate key")
    return seen
