"""Files that another process, user or version may have written: opened safely, read up to a size, checked by type.

What a file holds is input, not truth: it can be torn by a full disk, written by a newer version, or placed by somebody
else. Nothing here follows a link of another user, waits for a named pipe, or returns a value of an undeclared type.
"""

from __future__ import annotations

import codecs
import dataclasses
import errno
import functools
import io
import json
import math
import os
import re
import stat
import tempfile
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

T = TypeVar("T")

MAX_BYTES = 16_000_000  # of a file that is read into memory; the largest, a manifest of 4,096 parts, has 1 MB
MAX_DEPTH = 50  # of nested JSON; records of a run have 4
_TAR_BLOCK = 512  # bytes
_MAX_DIGITS = 20  # of an integer: those of 64 bits fit

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Escaped or literal characters that a terminal would obey, and halves of a surrogate pair, which cannot be encoded.
_UNPRINTABLE = re.compile(r"[\x7f-\x9f]|\\u(?:00[0189]|007[fF]|[dD][89a-fA-F])")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Escape sequences of terminals (ECMA-48): commands such as colours, texts such as titles, and short ones.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]P^_X]|[\x9d\x90]).*?(?:\a|\x1b\\|\x9c)|\x1b[ -/]*[0-~]", re.DOTALL
)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises OSError, also for everything that is not a regular file.

    A link is followed if it belongs to this user or to root.
    """
    return open(path, "rb", opener=_open)


def open_to_append(path: Path) -> io.BufferedRandom:
    """Open a regular file, which is created if needed, to read it and to append to it. Raises as `open_regular`."""
    return open(path, "ab+", opener=_open)


def read_whole(path: Path, at_most_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises OSError, also if the file is larger than `at_most_bytes`."""
    with open_regular(path) as file:
        content = file.read(at_most_bytes + 1)
    if len(content) > at_most_bytes:
        raise OSError(errno.EINVAL, f"has more than {at_most_bytes:,} bytes: it is not a file of a run", str(path))
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError, and ValueError as `parse_json` does."""
    return parse_json(read_whole(path))


def parse_json(content: bytes) -> Any:
    r"""JSON as Python values. Raises ValueError if `content` is not JSON, nested too deeply, or has too large integers.

    NaN and infinity become None, as `resnet_dist.telemetry.json_lines` writes them. Texts with characters that a
    terminal would obey become `printable`.

    >>> parse_json(b'{"step": 3, "loss": NaN, "cause": "killed\\u001b[2J"}')
    {'step': 3, 'loss': None, 'cause': 'killed'}
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode()
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return _with_printable_texts(value) if _UNPRINTABLE.search(text) else value


def printable(text: str) -> str:
    r"""The text of another program or file for a person: without escape sequences of terminals and control characters.

    Lines and tabs are kept. Other control characters, and halves of surrogate pairs, become spaces.

    >>> printable("\x1b[36mray::Worker()\x1b[39m (pid=7)"), printable("two\nlines")
    ('ray::Worker() (pid=7)', 'two\nlines')
    """
    stripped = _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return _CONTROL_CHARACTER.sub(" ", stripped)


def record_of(kind: type[T], content: object) -> T | None:
    """`content`, parsed JSON, as the dataclass `kind`; None if it is not such a record.

    It is not if it is no object, lacks a field without a default, has a value of another type than the field declares,
    or if `kind` refuses it with a ValueError. Keys that `kind` does not have are ignored: a newer version wrote them.

    >>> @dataclasses.dataclass
    ... class Skip:
    ...     step: int
    ...     samples: int = 0
    >>> record_of(Skip, {"step": 3, "more": None}), record_of(Skip, {"step": "3"})
    (Skip(step=3, samples=0), None)
    """
    if not isinstance(content, dict):
        return None
    hints, required = _declared(kind)  # type: ignore[arg-type] # mypy: a type variable is not hashable
    given = {name: content[name] for name in hints if name in content}
    if not required <= given.keys():
        return None
    for name, value in given.items():
        hint, exact = hints[name]
        if type(value) not in exact and not _fits(value, hint):
            return None
    try:
        return kind(**given)
    except ValueError:
        return None


def ends_as_tar(file: BinaryIO, offset: int) -> bool:
    """Whether a tar file has its mark of the end, an empty block, at `offset`, which is behind its last member.

    tarfile takes the end of a file that is cut short between two members, and a broken header, for the end.
    """
    file.seek(offset)
    return file.read(_TAR_BLOCK) == bytes(_TAR_BLOCK)


def is_ours(owner: int, folder: Path) -> bool:
    """Whether `owner`, a user id, is this process's in the file system of `folder`, which may translate ids."""
    if owner == os.geteuid():
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # root on NFS is usually another user there
            return os.fstat(file.fileno()).st_uid == owner
    except OSError:
        return False


def check_link(path: Path) -> None:
    """Raise OSError if `path` is a link that belongs neither to this user nor to root."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid != 0 and not is_ours(found.st_uid, path.parent):
        problem = f"is a link that belongs to user {found.st_uid}. Allowed: a link of your own or of root"
        raise OSError(errno.EINVAL, problem, str(path))


def _open(path: str, flags: int) -> int:
    _check_kind(path, flags)  # first: opening a device can have an effect
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        check_link(Path(path))
        descriptor = os.open(path, flags, 0o666)
    try:
        _check_kind(path, flags, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(path: str, flags: int, descriptor: int | None = None) -> None:
    try:
        mode = (Path(path).stat() if descriptor is None else os.fstat(descriptor)).st_mode
    except FileNotFoundError:
        if flags & os.O_CREAT:
            return
        raise
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}. Allowed: a regular file; move it away", str(path))


@functools.cache
def _declared(kind: Any) -> tuple[dict[str, tuple[Any, set[type]]], set[str]]:
    """The fields of a dataclass by name: type, and the classes all of whose values fit. The fields without a default.

    With the classes, a file of a million values is checked fast.
    """
    missing, hints = dataclasses.MISSING, typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    return {field.name: (hints[field.name], _classes(hints[field.name])) for field in fields}, required


def _classes(hint: Any) -> set[type]:
    """The classes all of whose values fit `hint`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    found = {one for one in (typing.get_args(hint) if union else (hint,)) if isinstance(one, type)}
    return found | ({int} if float in found else set())


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    return type(value) in _classes(hint)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=lambda _: None)


def _check_depth(value: object, levels: int = MAX_DEPTH) -> None:
    if levels == 0:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, levels - 1)


def _with_printable_texts(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _with_printable_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_printable_texts(item) for item in value]
    return value
