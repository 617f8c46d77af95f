"""The commands in README and docs are commands of the launcher, and the files that they name exist.

tests/distributed/test_quick_start.py runs those of docs/quick-start.md.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher import cli
from launcher.arguments import Parser, train_arguments

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_LAUNCHER = r"(?:python -m )?launcher(?: |\.train )(?:.*\\\n)*.*"
_INDENTED = re.compile(rf"^    (?:[$] )?((?:[A-Z_]+=\S+ )*{_LAUNCHER})$", re.MULTILINE)
_FENCED = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FENCED_COMMAND = re.compile(rf"^({_LAUNCHER})$", re.MULTILINE)
_SHELL = re.compile(r"\s(?:[|>&;]|2>|&&)")  # the rest of the line is the shell's


def commands(page: Path) -> list[str]:
    """The launcher's commands in the code blocks of a page, each on one line."""
    text = page.read_text(encoding="utf-8")
    found = _INDENTED.findall(_FENCED.sub("", text))
    found += [command for block in _FENCED.findall(text) for command in _FENCED_COMMAND.findall(block)]
    joined = (re.sub(r"\s*\\\n\s*", " ", command) for command in found)
    return [command for command in joined if "..." not in command and "VERB" not in command]


COMMANDS = [(page.relative_to(ROOT), command) for page in PAGES for command in commands(page)]


def words(command: str) -> list[str]:
    """The arguments of the launcher in a command line."""
    line = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:python -m )?launcher", "", _SHELL.split(command)[0])
    return shlex.split(line.replace("<<", " "), comments=True)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(value))
def test_a_command_can_be_parsed(page: Path, command: str) -> None:
    arguments = words(command)
    if arguments[:1] in ([".train"], ["train"]):
        parser = Parser(prog="launcher.train")
        train_arguments(parser)
        parser.parse_intermixed_args(arguments[1:])
        return
    assert callable(cli.parser_of().parse_args(arguments).run)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(value))
def test_the_files_of_the_repository_that_it_names_exist(page: Path, command: str) -> None:
    for word in words(command):
        if word.startswith(("configs/", "cluster/", "docs/", "benchmarks/")):
            assert (ROOT / word).exists()
