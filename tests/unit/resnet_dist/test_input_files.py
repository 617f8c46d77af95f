"""Files that others may have written: opened safely, parsed as strict JSON, checked by type."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_dist.input_files import MAX_DEPTH, open_regular, open_to_append, parse_json, read_whole, record_of


@dataclass(frozen=True)
class Record:
    """One field of each declared kind."""

    name: str
    size: int
    seconds: float = 0.0
    place: Literal["a", "b"] = "a"
    node: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    nodes: Sequence[str] = ()
    anything: Any = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(self.size)


FULL = {
    "name": "n", "size": 3, "seconds": 1.5, "place": "b", "node": None, "details": {"k": "v"}, "nodes": ["x"],
    "anything": [1],
}  # fmt: skip


def test_an_object_with_the_declared_types_is_a_record() -> None:
    assert record_of(Record, FULL) == Record("n", 3, 1.5, "b", None, {"k": "v"}, ["x"], [1])


def test_missing_optional_fields_have_their_defaults_and_unknown_keys_are_ignored() -> None:
    assert record_of(Record, {"name": "n", "size": 3, "of_a_newer_version": {}}) == Record("n", 3)


@pytest.mark.parametrize(
    "change",
    [
        {"name": None}, {"name": 3}, {"size": "3"}, {"size": 3.0}, {"size": True}, {"size": None}, {"seconds": "1"},
        {"seconds": False}, {"place": "c"}, {"place": 1}, {"node": 4}, {"details": {"k": 1}}, {"details": []},
        {"nodes": "x"}, {"nodes": [1]}, {"size": -1},
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_that_the_class_refuses_is_no_record(change: dict[str, Any]) -> None:
    assert record_of(Record, {**FULL, **change}) is None


@pytest.mark.parametrize("content", [{"name": "n"}, {}, [], [FULL], "text", 3, None, True])
def test_without_a_required_field_or_without_an_object_there_is_no_record(content: object) -> None:
    assert record_of(Record, content) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cc", "Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cc", "Cs"])), inner),
        max_leaves=20,
    )
)  # fmt: skip
def test_json_comes_back_as_it_was_written(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary())
def test_arbitrary_bytes_are_json_or_a_value_error(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"9" * 5000, "digits"),
        (b"-" + b"9" * 30, "digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\0\0\0\0", "Expecting value"),
        (b"", "Expecting value"),
        (b'{"torn": "li', "Unterminated"),
    ],
)
def test_what_is_not_json_or_out_of_all_bounds_is_a_value_error(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_json(content)


def test_numbers_that_are_not_finite_are_none_and_a_byte_order_mark_is_no_error() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [NaN, -Infinity, 1e999, 2.5]}\r\n') == {"a": [None, None, None, 2.5]}


def test_what_a_terminal_would_obey_and_half_characters_are_left_out() -> None:
    text = json.dumps({"a\x1b": ["red\x1b[31m", "\ud800", "one\ntwo\tthree", "\x9bx", "\U0001f600"]})
    assert parse_json(text.encode()) == {"a ": ["red", " ", "one\ntwo\tthree", "", "\U0001f600"]}


@pytest.fixture
def special(tmp_path: Path) -> dict[str, Path]:
    """Everything that is not a regular file, by kind."""
    paths = {name: tmp_path / name for name in ("a named pipe", "a socket", "a folder")}
    os.mkfifo(paths["a named pipe"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(paths["a socket"]))
    paths["a folder"].mkdir()
    return {**paths, "a device": Path("/dev/zero")}


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a folder", "a device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_not_a_regular_file_is_refused_at_once(
    special: dict[str, Path], tmp_path: Path, kind: str, linked: bool
) -> None:
    path = special[kind]
    if linked:
        path = tmp_path / "link"
        path.symlink_to(special[kind])
    for call in (open_regular, open_to_append, read_whole):
        with pytest.raises(OSError, match=f"is {kind}. Allowed: a regular file") as caught:
            call(path)
        assert caught.value.filename == str(path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_whole(tmp_path / "file", at_most_bytes=5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_whole(tmp_path / "file", at_most_bytes=4)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_to_append(tmp_path / "file").close()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_of_this_user_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    assert read_whole(tmp_path / "link") == b"1"


def test_a_link_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    if os.geteuid() == 0:
        os.lchown(tmp_path / "link", 12345, 12345)
    else:  # then this process is another user, whose files here would not have the link's owner either
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError()))
    for call in (open_regular, open_to_append):
        with pytest.raises(
            OSError, match=r"is a link that belongs to user [0-9]+\. Allowed: a link of your own or of root"
        ):
            call(tmp_path / "link")


def test_reading_files_imports_no_torch() -> None:
    code = "import sys, resnet_dist.input_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
