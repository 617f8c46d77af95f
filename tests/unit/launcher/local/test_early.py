"""The first process of a command: started where the config probably trains in processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.local import early
from launcher.local.early import Started

STARTED = "started"


@pytest.fixture(autouse=True)
def _without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)

    def start(*, piped: bool, environment: Mapping[str, str] | None = None) -> str:
        return STARTED

    monkeypatch.setattr(early, "start", start)


def has_ray(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    monkeypatch.setattr(early.importlib.util, "find_spec", lambda name: name if installed else None)


def write(folder: Path, content: str) -> str:
    file = folder / "config.yaml"
    file.write_text(content)
    return str(file)


@pytest.mark.parametrize(
    ("content", "overrides", "expected"),
    [
        ("schema: 1\nplace: local\n", [], True),
        ("place:   local  # no cluster", [], True),
        ("place: ray\n", [], False),
        ("place: auto\n", [], False),
        ("schema: 1\n", [], False),
        ("schema: 1\n", ["place=local"], True),
        ("place: ray\n", ["--resume", "never", "place=local"], True),
        ("place: local\n", ["place=ray"], False),
        ("model:\n  place: local\n", [], False),
        ("{", [], False),
    ],
)
def test_a_process_is_started_if_the_config_or_an_override_says_local(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, overrides: list[str], expected: bool
) -> None:
    has_ray(monkeypatch, installed=True)
    started = early.start_first([*overrides, write(tmp_path, content)])
    assert (started == STARTED) is expected


def test_without_ray_a_config_that_says_nothing_trains_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_ray(monkeypatch, installed=False)
    assert early.start_first([write(tmp_path, "schema: 1\n")]) == STARTED
    assert early.start_first([write(tmp_path, "place: ray\n")]) is None


def test_none_is_started_without_a_config_nor_in_the_processes_of_torchrun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has_ray(monkeypatch, installed=False)
    for arguments in ([], ["--help"], [str(tmp_path), "place=local"], ["x" * 1000, "place=local"]):
        assert early.start_first(arguments) is None
    monkeypatch.setenv("RANK", "1")
    assert early.start_first([write(tmp_path, "place: local\n")]) is None


def test_a_pipe_and_standard_input_keep_the_config_for_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "config")
    assert early.start_first([str(tmp_path / "config"), "place=local"]) is None  # reading would wait for a writer
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # as for `< config.yaml`
    assert early.start_first(["/dev/stdin", "place=local"]) is None


def test_a_system_without_room_for_a_process_is_left_to_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*, piped: bool, environment: Mapping[str, str] | None = None) -> Started:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(early, "start", fails)
    assert early.start_first([write(tmp_path, "place: local\n")]) is None
