"""The commands in README and docs are commands of the launcher, and the files that they name exist.

Those of the pages in RUN are run here, on a small run; tests/distributed/test_quick_start.py runs docs/quick-start.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


RUN = ("README.md", "docs/planning.md", "docs/watching.md", "docs/reports.md", "docs/models.md")
NOT_RUN = (
    " prepare ",  # the small run has images of its own
    " study ",  # minutes
    " --calibrate",  # a minute
    " --count 6",  # a minute
    " --score STORAGE",  # needs runs of three configurations
    " export digits ",  # as the ONNX of docs/models.md
    ".train ",  # the fixture trains with the same configs, for fewer steps
    "--profile ",  # a cluster
    "--address ",
)
SMALL = [
    "workers=1",
    "place=local",
    "duration=2 steps",
    "schedule.warmup=1 step",
    "model.name=resnet8",
    "batch.size=16",
    "resources.cpus_per_worker=1",
    "faults.max_failures=0",  # in this process
    "log.tensorboard=false",
    "log.every_steps=1",
]
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


PRINTED = re.compile(r"^    \$ (launcher plan configs/.*)\n((?:    .*\n|\n)*?) +\.\.\.$", re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if PRINTED.search(page.read_text(encoding="utf-8"))])
def test_a_plan_is_as_printed_on_the_page(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    for command, printed in PRINTED.findall(page.read_text(encoding="utf-8")):
        assert cli.main(words(command)) == 0
        assert capsys.readouterr().out.startswith(textwrap.dedent(printed))


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with the runs that the pages name; it is also the home folder."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for split, label in ((split, label) for split in ("train", "val") for label in range(10)):
        folder = home / "resnet_data" / "digits" / split / str(label)
        folder.mkdir(parents=True)
        for number in (9, 14):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number:04d}.jpg")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (home / "digits.yaml").write_text(text)
    threads, before = torch.get_num_threads(), os.environ.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))  # matplotlib's list of fonts takes seconds
        patch.setenv("HOME", str(home))
        for config in (str(ROOT / "configs" / "digits_cpu.yaml"), "digits.yaml"):
            assert cli.main(["train", config, *SMALL]) == 0
        for name in ("a", "b", "base", "seed-1", "batch-256"):
            shutil.copytree("resnet_runs/digits", f"runs/{name}")
        yield home
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


def typed(command: str, home: Path) -> list[str]:
    """The arguments of a page's command, with a run in place of RUN, as the shell expands them."""
    run = "~/resnet_runs/digits-cpu"
    found = [re.sub("^~", str(home), run if word == "RUN" else word) for word in words(command)]
    return [str(ROOT / word) if word.startswith("configs/") else word for word in found]


@pytest.mark.parametrize(
    ("page", "command"),
    [
        (page, command)
        for page, command in COMMANDS
        if str(page) in RUN and not any(part in command for part in NOT_RUN)
    ],
    ids=lambda value: str(value),
)
def test_a_command_works(
    page: Path, command: str, small_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = typed(command, small_runs)
    assert cli.main(arguments) in ((0, 1) if arguments[0] == "compare" else (0,))
    assert len(capsys.readouterr().out) > 20
