"""From a listing to an index: the header of every image is read, so that broken files are found before training."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.headers.image import header_of
from resnet_dist.data.index.columns import Texts
from resnet_dist.data.index.parts import COLUMNS, Parts, Table, new_table
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.names import why
from resnet_dist.data.sources.listing import Listing
from resnet_dist.data.storage.files import files_of
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.data.storage.parallel import in_chunks
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe

Rows = NDArray[np.int64]
_Found = tuple[tuple[int, ...], str]  # values of COLUMNS, and what is wrong with a broken image
Report = Callable[[int, int], object]  # called after every few hundred images: how many are done, of how many

_NAMED = 5  # files that a message lists
# Errors of this process or machine, and of disks and networks: none of a file. They are tried again, or raised.
_OF_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_OF_PLACE = _OF_PROCESS | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EAGAIN}


def unread_index(listing: Listing, root: str, source: str) -> Index:
    """The index of `listing` before its images are read: sizes are 0, and kinds unknown."""
    num = len(listing.paths)
    return Index(
        root=root,
        classes=listing.classes,
        paths=listing.paths,
        labels=np.asarray(listing.labels, dtype=np.int64),
        heights=np.broadcast_to(np.int32(0), num),
        widths=np.broadcast_to(np.int32(0), num),
        folder_times_ns=listing.folder_times_ns,
        notes=listing.notes,
        source=source,
        shards=listing.shards,
        shard_numbers=listing.shard_numbers,
        offsets=listing.offsets,
        num_bytes=listing.num_bytes,
        times_ns=listing.times_ns,
        image_key=listing.image_key,
    )


def build_index(
    listing: Listing,
    root: str,
    source: str,
    *,
    data: DataRecipe | None = None,
    report: Report = lambda done, total: None,
    parts: Path | None = None,
    known: Index | None = None,
) -> Index:
    """The index of the samples of `listing`. Broken images are in it, with `Kind.BROKEN`: `check_whole` refuses them.

    `data` says how a storage is read and cached. `parts`: a folder that keeps what has been read, so that a call after
    an interruption continues. `known`: an index that has just been read; images with names that it has are not read
    again. Raises what the storage raises if it does not answer.
    """
    index, num = unread_index(listing, root, source), len(listing.paths)
    table, problems, saved = new_table(num), dict[int, str](), Parts(parts, index)
    done = saved.load(table, problems)
    changed = np.union1d(_outdated(index, table, np.arange(done)), np.array(list(problems), dtype=np.int64))
    for row in changed.tolist():
        problems.pop(row, None)
    rows = np.concatenate([changed, np.arange(done, num)])
    if known is not None:
        rows = _without_known(index, known, table, problems, rows)
    for end in _read(index, rows, table, problems, data):
        report(num - len(rows) + end, num)
        if end:  # rows before it are complete: `rows` are ascending
            saved.save(table, problems, int(rows[end - 1]) + 1)
    saved.delete()
    return _filled(index, table, problems)


def refreshed(index: Index, *, data: DataRecipe | None = None, report: Report = lambda done, total: None) -> Index:
    """`index` itself if no file has changed since; else an index with what is in the changed files now.

    Read are the files with another size or time than recorded, which one `stat` per file finds, and the broken ones,
    since somebody may have repaired them. Shards have no such times; `resnet_dist.data.index.shared` compares theirs.
    """
    recorded = {name: getattr(index, name) for name in COLUMNS}
    broken = np.flatnonzero(index.kinds == Kind.BROKEN)
    rows = np.union1d(broken, _outdated(index, recorded, np.arange(len(index)), report))
    if not len(rows):
        return index
    table, read_again = new_table(len(index)), set(rows.tolist())
    for name, column in recorded.items():
        if len(column):
            table[name][:] = column
    problems = {row: text for row, text in index.problems.items() if row not in read_again}
    for _ in _read(index, rows, table, problems, data):
        pass
    same = all(not len(column) or np.array_equal(column[rows], table[name][rows]) for name, column in recorded.items())
    return index if same and problems == dict(index.problems) else _filled(index, table, problems)


def check_whole(*indices: Index, known_bad: frozenset[str] = frozenset()) -> None:
    """Raise one DataError for all broken images of `indices`, except for those with names in `known_bad`."""
    found = [
        (index.path(row), problem)
        for index in indices
        for row, problem in sorted(index.problems.items())
        if not known_bad or index.paths[row] not in known_bad
    ]
    if not found:
        return
    lines = [f"  {path}: {problem}" for path, problem in found[1:_NAMED]]
    if len(found) > _NAMED:
        lines.append(f"  and {len(found) - _NAMED:,} more")
    counted = [f". The first of {len(found):,} broken files; the others are", *lines] if lines else []
    raise DataError(found[0][0], found[0][1] + "\n".join(counted))


def _filled(index: Index, table: Table, problems: Mapping[int, str]) -> Index:
    """`index` with the columns of `table`."""
    found: dict[str, Any] = dict(table)
    if index.shards:
        found["times_ns"] = table["times_ns"][:0]
    return dataclasses.replace(index, **found, paths=Texts.of(index.paths), problems=dict(sorted(problems.items())))


def _read(index: Index, rows: Rows, table: Table, problems: dict[int, str], data: DataRecipe | None) -> Iterator[int]:
    """Read `rows`, and put what is found into `table` and `problems`; yield how many of them are done."""
    read_one = _file_reader(index) if _is_local(index) else _stored_reader(index, data)

    def read(first: int, end: int) -> tuple[Iterable[tuple[int, ...]], dict[int, str]]:
        some, found, broken = rows[first:end], [], {}
        for row, name in zip(some.tolist(), _names(index, some), strict=True):
            values, problem = read_one(row, name)
            found.append(values)
            if problem:
                broken[row] = problem
        return zip(*found, strict=True), broken

    for first, end, (part, broken) in in_chunks(len(rows), read):
        for name, values in zip(COLUMNS, part, strict=True):
            table[name][rows[first:end]] = values
        problems |= broken
        yield end


def _names(index: Index, rows: Rows) -> Sequence[str]:
    paths = index.paths
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:  # ascending: all rows between them
        return paths[int(rows[0]) : int(rows[-1]) + 1]
    return paths.take(rows)[:] if isinstance(paths, Texts) else [paths[row] for row in rows.tolist()]


def _is_local(index: Index) -> bool:
    """Whether each image is a file of its own on a file system."""
    return not index.shards and "://" not in index.root


def _values(name: str, num_bytes: int, read: Callable[[int, int], bytes], time_ns: int) -> _Found:
    """The values of `COLUMNS` of an image, and what is wrong with it."""
    try:
        return (*header_of(name, num_bytes, read), time_ns), ""
    except DataError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_PROCESS:
            raise
        return _broken(error, num_bytes, time_ns)


def _broken(error: DataError | OSError, num_bytes: int = 0, time_ns: int = 0) -> _Found:
    problem = error.problem if isinstance(error, DataError) else f"cannot be read: {why(error)}"
    return (1, 1, Kind.BROKEN, 1, num_bytes, 0, time_ns), problem


def _file_reader(index: Index) -> Callable[[int, str], _Found]:
    storage = storage_of(index.root)

    def read_one(row: int, name: str) -> _Found:
        try:
            return _read_file(f"{index.root}/{name}")
        except OSError as error:
            return _read_again(storage, name) if error.errno in _OF_PLACE else _broken(error)

    return read_one


def _read_file(path: str) -> _Found:
    """What is in a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return _broken(DataError(path, "is not a regular file; delete it"))
        return _values(path, status.st_size, partial(os.pread, descriptor), status.st_ctime_ns)
    finally:
        os.close(descriptor)


def _read_again(storage: Storage, name: str) -> _Found:
    """What is in a file that could not be read for a reason that may pass: the storage waits, and raises if it stays.

    Only a file whose bytes the disk does not return (EIO) is broken. The time is 0: the next start reads it again.
    """
    try:
        content = storage.read(name)
    except DataError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
            return _broken(error)
        raise
    return _values(f"{storage.root}/{name}", len(content), lambda num, offset: content[offset : offset + num], 0)


def _stored_reader(index: Index, data: DataRecipe | None) -> Callable[[int, str], _Found]:
    # Headers follow each other in a shard. What is read ahead is kept for the run.
    ahead = None if data is None else dataclasses.replace(data, order="shards")
    files, storage = files_of(index, ahead), storage_of(index.root, ahead)

    def read_one(row: int, name: str) -> _Found:
        size = int(index.num_bytes[row]) if len(index.num_bytes) else 0
        if size == 0:  # unknown before the image is read
            try:
                content = files.read(row)
            except DataError as error:
                return _broken(error)
            return _values(name, len(content), lambda num, offset: content[offset : offset + num], 0)
        file, start, time_ns, version = name, 0, 0, ""
        if index.shards:
            file, start = index.shards[int(index.shard_numbers[row])], int(index.offsets[row])
            version = str(index.folder_times_ns.get(file, ""))
        elif len(index.times_ns):
            time_ns = int(index.times_ns[row])

        def read(num: int, at: int) -> bytes:
            return storage.read(file, start + at, max(0, min(num, size - at)), version=version)

        return _values(name, size, read, time_ns)

    return read_one


def _outdated(index: Index, table: Table, rows: Rows, report: Report = lambda done, total: None) -> Rows:
    """Those of `rows` whose files have another size or time than in `table`, or are gone."""
    if not _is_local(index) or not len(table["times_ns"]):
        return rows[:0]

    def outdated(first: int, end: int) -> list[int]:
        some, prefix, found = rows[first:end], f"{index.root}/", []
        recorded = (column[some].tolist() for column in (table["num_bytes"], table["times_ns"]))
        for row, name, size, time_ns in zip(some.tolist(), _names(index, some), *recorded, strict=True):
            try:
                status = os.stat(prefix + name)  # noqa: PTH116  Path objects are slow
                if (status.st_size, status.st_ctime_ns) != (size, time_ns):
                    found.append(row)
            except OSError:
                found.append(row)
        return found

    changed: list[int] = []
    for _, end, found in in_chunks(len(rows), outdated):
        changed += found
        report(end, len(rows))
    return np.array(changed, dtype=np.int64)


def _without_known(index: Index, known: Index, table: Table, problems: dict[int, str], rows: Rows) -> Rows:
    """Those of `rows` whose names are not in `known`; what it has of the others goes into `table`."""
    numbers = {name: number for number, name in enumerate(known.paths)}
    found = np.array([numbers.get(name, -1) for name in _names(index, rows)], dtype=np.int64)
    have = found >= 0
    for name, column in table.items():
        if len(recorded := getattr(known, name)):
            column[rows[have]] = recorded[found[have]]
    pairs = zip(rows.tolist(), found.tolist(), strict=True)
    problems |= {row: known.problems[old] for row, old in pairs if old in known.problems}
    return rows[~have]
