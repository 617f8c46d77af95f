"""Dockerfile and .dockerignore: linted, pinned, without root, and nothing in the image that does not belong there."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def instructions():
    joined = DOCKERFILE.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def _arguments(instructions, name):
    return [argument for instruction, argument in instructions if instruction == name]


def test_hadolint_has_nothing_to_say():
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_image_ends_as_a_user_without_root(instructions):
    last_stage = max(at for at, (instruction, _) in enumerate(instructions) if instruction == "FROM")
    assert _arguments(instructions[last_stage:], "USER") == ["1000:1000"]


def test_its_base_is_an_argument_with_a_tag_and_cuda_by_default(instructions):
    assert instructions[0] == ("ARG", "BASE=nvidia/cuda:13.0.0-base-ubuntu24.04")
    assert [source.split()[0] for source in _arguments(instructions, "FROM")] == ["${BASE}", "base", "base"]


def test_packages_are_those_of_the_constraints(instructions):
    installs = [command for command in _arguments(instructions, "RUN") if "pip install" in command]
    assert all("--constraint constraints.txt" in command for command in installs)
    assert len(installs) == 1


def test_everything_that_the_wheel_is_built_from_is_copied_and_let_through(instructions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]}
    needed |= {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    from_here = [argument.split()[:-1] for argument in _arguments(instructions, "COPY") if "--from" not in argument]
    copied = {source for sources in from_here for source in sources}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    assert copied == needed
    assert let_through == needed


def test_nothing_is_let_through_that_is_not_named():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert rules[-2:] == ["**/__pycache__/", "**/*.pyc"]


def test_no_secret_and_no_host_of_a_registry_stands_in_it():
    assert re.search(r"token|password|secret|https?://", DOCKERFILE, re.IGNORECASE) is None
