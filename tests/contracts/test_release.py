"""A release: one version everywhere, and a workflow that can publish it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def workflow() -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true
    found: dict[str, Any] = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)
    return found


def test_the_changelog_begins_with_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version()


def test_image_tags_in_profiles_are_those_of_the_version() -> None:
    files = [*(ROOT / "cluster" / "profiles").glob("*.yaml"), *(ROOT / "cluster" / "kustomize").rglob("*.yaml")]
    tags = {
        (file.name, tag)
        for file in files
        for tag in re.findall(r"resnet-launcher:([0-9][0-9.]*)|newTag: ([0-9.]+)", file.read_text())
        for tag in tag
        if tag
    }
    assert len(tags) >= 3
    assert {tag for _, tag in tags} == {version()}


def test_the_workflow_pushes_the_tags_of_the_profiles() -> None:
    steps = workflow()["jobs"]["image"]["steps"]
    line = next(step["run"] for step in steps if step.get("id") == "version")
    with tempfile.NamedTemporaryFile("r") as output:
        environment = {**os.environ, "GITHUB_REF_NAME": f"v{version()}", "GITHUB_OUTPUT": output.name}
        subprocess.run(["bash", "-c", line], env=environment, check=True)
        assert output.read() == f"version={version()}\n"
    pushed = next(step["with"]["tags"] for step in steps if "build-push" in step.get("uses", ""))
    assert pushed == "${{ vars.REGISTRY }}:${{ steps.version.outputs.version }}${{ matrix.suffix }}"
    suffixes = {image["suffix"] for image in workflow()["jobs"]["image"]["strategy"]["matrix"]["include"]}
    assert suffixes == {"", "-cpu"}  # as in cluster/profiles


def test_every_job_may_read_the_repository() -> None:
    for job in workflow()["jobs"].values():
        assert job.get("permissions", workflow()["permissions"])["contents"] == "read"


def test_the_workflow_is_one() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_workflow_publishes_nothing_that_was_not_checked() -> None:
    jobs = workflow()["jobs"]
    assert set(jobs) == {"check", "wheel", "image"}
    assert jobs["wheel"]["needs"] == jobs["image"]["needs"] == "check"
    commands = [step.get("run", "") for step in jobs["check"]["steps"]]
    assert any("bash .ci/run" in command for command in commands)
    assert any(command == "make audit" for command in commands)


def test_the_workflow_runs_on_version_tags_only_and_names_no_registry() -> None:
    found = workflow()
    assert list(found["on"]) == ["push"]
    assert found["on"]["push"] == {"tags": ["v[0-9]+.[0-9]+.[0-9]+*"]}
    login = next(step for step in found["jobs"]["image"]["steps"] if "login" in step.get("uses", ""))
    assert login["with"]["registry"] == "${{ vars.REGISTRY }}"


def test_the_images_are_those_of_the_dockerfile() -> None:
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    build = next(step for step in workflow()["jobs"]["image"]["steps"] if "build-push" in step.get("uses", ""))
    assert {line.partition("=")[0] for line in build["with"]["build-args"].splitlines()} <= arguments
