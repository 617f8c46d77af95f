"""The commands of docs/data.md are commands of the launcher, and its keys are keys of a config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    launcher ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)


def test_it_has_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("train ")])
def test_a_command_can_be_parsed(command: str) -> None:
    given = cli.parser_of().parse_args(shlex.split(command.replace("\\\n", " "), comments=True))
    assert callable(given.run)


def test_the_example_of_progressive_resizing_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "config.yaml"
    file.write_text(
        text.replace("data:\n", "data:\n  root: images\n")
        + """
schema: 1
name: page
storage: runs
duration: 10 epochs
batch: {size: 256}
schedule: {peak_lr: 0.1}
"""
    )
    config = configs.load(file)
    assert list(config.data.progressive.values()) == [128, 160, 224]


def test_it_names_the_keys_about_the_images() -> None:
    for key in (
        "on_error",
        "max_bad_images",
        "known_bad",
        "progressive",
        "classes",
        "subset",
        "order",
        "shuffle_window",
    ):
        assert f"data.{key}" in PAGE
