"""Writes the samples of a split to tar files in WebDataset's layout, of about equal size, and goes on after a stop.

A shard appears under its name when it is whole, and then a part of the index with its rows: what is there is kept, and
the next shard begins with the row after it. The bytes depend only on the samples and the limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.prepare.in_order import in_order
from resnet_dist.data.index import columns

_END = bytes(2 * tarfile.BLOCKSIZE)  # of a tar file
_COLUMNS = {
    "rows": np.int64,
    "offsets": np.int64,
    "num_bytes": np.int64,
    "heights": np.int32,
    "widths": np.int32,
    "tails": np.uint32,
    "kinds": np.uint8,
    "orientations": np.uint8,
}


class Sample(NamedTuple):
    """An encoded image to write, the suffix of its name in the tar, its label, and its row in the index.

    `header` is (height, width, kind, orientation, number of bytes, tail), as `image_headers.Header`.
    """

    row: int
    label: int
    suffix: str
    content: bytes
    header: tuple[int, int, int, int, int, int]
    is_resized: bool


_Make = Callable[[int], Sample | None]


@dataclass(frozen=True)
class Part:
    """A finished shard, and the columns of its samples; `end` is the first row after it, of those to be packed."""

    name: str
    num_bytes: int
    sha256: str
    end: int
    num_resized: int
    columns: dict[str, NDArray[Any]]
    was_finished: bool = False  # by an earlier command

    @property
    def num_samples(self) -> int:
        return len(self.columns["rows"])


def write_shards(
    folder: Path,
    parts: Path,
    split: str,
    num: int,
    make: _Make,
    *,
    shard_bytes: int,
    threads: int,
) -> Iterator[Part]:
    """Write `make(0)` to `make(num - 1)` to folder/SPLIT-NNNNNN.tar; yield each shard when it is finished.

    `make` is called in threads; what it raises is raised here; None leaves the sample out. Shards have at most
    `shard_bytes`, unless one image has more. `parts` keeps what belongs to finished shards; those are yielded first.
    """
    number, start = 0, 0
    while (part := _finished(folder, parts, _name(split, number))) is not None:
        yield part
        number, start = number + 1, part.end
    samples = in_order(range(start, num), make, threads)
    try:
        held = next(samples, None)
        while held is not None:
            shard = _Shard(folder, _name(split, number))
            with shard:
                while held is not None and shard.has_room(held[1], shard_bytes):
                    shard.add(held[1])
                    held = next(samples, None)
                end = num if held is None else held[0]
            part = shard.finished(end)
            if part is None:
                break
            _save(parts, part)
            yield part
            number += 1
    finally:
        samples.close()


def _name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


class _Shard:
    """A tar file that is being written under a temporary name; without an error it gets its own name at the end."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._name = folder / name, name
        self._temporary = folder / f".{name}"
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._rows: list[tuple[int, ...]] = []
        self._num_resized = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> _Shard:
        self._stream = self._temporary.open("wb", buffering=2**20)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._stream is not None
        try:
            if kind is None and self._rows:
                self._write(_END)
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._temporary.replace(self._file)
        finally:
            self._close()

    def _close(self) -> None:
        """Close and delete what is not finished. A disk that is full is named by the error of the write."""
        assert self._stream is not None
        with contextlib.suppress(OSError):
            self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def has_room(self, sample: Sample | None, shard_bytes: int) -> bool:
        if sample is None or not self._rows:
            return True
        return self._num_bytes + _size(sample) + len(_END) <= shard_bytes

    def add(self, sample: Sample | None) -> None:
        if sample is None:
            return
        key = f"{sample.row:08d}"
        self._member(f"{key}.cls", str(sample.label).encode())
        offset = self._num_bytes + tarfile.BLOCKSIZE
        self._member(f"{key}.{sample.suffix}", sample.content)
        height, width, kind, orientation, num_bytes, tail = sample.header
        self._rows.append((sample.row, offset, num_bytes, height, width, tail, kind, orientation))
        self._num_resized += sample.is_resized

    def finished(self, end: int) -> Part | None:
        """The shard, if it has samples; `end`: the first number after it."""
        if not self._rows:
            return None
        made = zip(_COLUMNS.items(), zip(*self._rows, strict=True), strict=True)
        found = {name: np.array(values, dtype) for (name, dtype), values in made}
        return Part(self._name, self._num_bytes, self._digest.hexdigest(), end, self._num_resized, found)

    def _member(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)  # times, owners: 0
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))

    def _write(self, content: bytes) -> None:
        assert self._stream is not None
        self._stream.write(content)
        self._digest.update(content)
        self._num_bytes += len(content)


def _size(sample: Sample) -> int:
    """The bytes of a sample in a tar: two headers, the label and the image."""
    block = tarfile.BLOCKSIZE
    return 3 * block + len(sample.content) + (-len(sample.content) % block)


def _save(parts: Path, part: Part) -> None:
    facts = {"num_bytes": part.num_bytes, "sha256": part.sha256, "end": part.end, "num_resized": part.num_resized}
    columns.write(parts / f"{part.name}.safetensors", part.columns, {"part": json.dumps(facts)})


def _finished(folder: Path, parts: Path, name: str) -> Part | None:
    """The shard `name` if it was finished by an earlier call, and is still there with its size."""
    try:
        found, metadata = columns.read(parts / f"{name}.safetensors")
        part = Part(name=name, columns=found, was_finished=True, **json.loads(metadata["part"]))
        if set(found) != set(_COLUMNS) or (folder / name).stat().st_size != part.num_bytes:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return part
