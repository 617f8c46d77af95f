"""launcher submit, status and cancel on a real SLURM. The training is stood in for by a script."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.places import slurm as slurm_jobs
from launcher.places.programs import Answer
from launcher.run import submissions
from launcher.run.directory import RunDirectory

pytestmark = pytest.mark.lab

# `python -m launcher.train ...` trains until it is told to save; the rest is Python's own.
PYTHON = """#!/bin/bash
[ "$1 $2" = "-m launcher.train" ] || exec {python} "$@"
trap 'echo saved; exit 75' USR2
echo training
while :; do sleep 0.1; done
"""
RAY = """#!/bin/bash
for word; do case $word in --port=*) port=${word#*=} ;; esac; done
[ -n "$port" ] || exec sleep infinity
exec {python} -c 'import socket, sys, time; s = socket.create_server(("", int(sys.argv[1]))); time.sleep(1e6)' "$port"
"""


@pytest.fixture
def command(slurm: Any, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """slurm CONFIG --profile SITE; the launcher's calls of SLURM's programs reach the lab."""

    def call(program: str, *arguments: str, given: str | None = None, timeout_s: float = 60.0) -> Answer:
        text = tmp_path / "standard-input"
        text.write_text(given or "")
        line = ("sh", "-c", 'exec "$@" < "$0"', str(text), program, *arguments)
        pipe = subprocess.PIPE
        process = slurm.hosts["control"].popen(
            *line, cwd=slurm.jobs_folder, env=slurm.environment, stdout=pipe, stderr=pipe
        )
        out, err = process.communicate(timeout=timeout_s)
        return Answer(process.returncode, out, err)

    monkeypatch.setattr(slurm_jobs, "call", call)
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("python", PYTHON), ("ray", RAY)):
        (programs / name).write_text(text.replace("{python}", sys.executable))
        (programs / name).chmod(0o755)
    site = tmp_path / "site.yaml"
    site.write_text(f"kind: slurm\nvenv: {programs.parent}\nscratch: {scratch}\nnotice_s: 9\n")
    config = tmp_path / "small.yaml"
    config.write_text(
        f"schema: 1\nname: small\nstorage: {tmp_path / 'runs'}\nduration: 100 steps\n"
        f"model: {{name: resnet20, num_classes: 10}}\ndata: {{root: {tmp_path}}}\nbatch: {{size: 8}}\n"
        "schedule: {peak_lr: 0.1}\n"
    )
    return ["slurm", str(config), "--profile", str(site)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs", "small")


def output(run: RunDirectory, text: str) -> str:
    """What the job has printed, once `text` is in it."""
    deadline = time.monotonic() + 90
    while True:
        printed = "".join(file.read_text() for file in (run.path / "logs").glob("slurm-*.out"))
        if text in printed:
            return printed
        assert time.monotonic() < deadline, printed
        time.sleep(0.2)


def state(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    capsys.readouterr()
    cli.main(["status", str(run.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    return found["state"], found["reason"]


def test_a_cancelled_run_saves_and_is_not_requeued(
    slurm: Any, command: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", *command]) == 0
    job = submissions.read(run)[0].id
    output(run, "training")
    assert state(run, capsys) == ("starting", f"slurm job {job} has begun")  # the stand-in leaves no attempt
    assert cli.main(["submit", *command]) == 64
    assert f"slurm job {job}" in capsys.readouterr().err
    assert cli.main(["cancel", str(run.path), "--save"]) == 0
    ended = slurm.wait(job, "FAILED", "COMPLETED", "CANCELLED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "0")
    assert "saved" in output(run, "saved")
    assert slurm.leftovers(job) == []
    assert cli.main(["submit", *command]) == 0  # it has ended, so it may go on
    assert cli.main(["cancel", str(run.path), "--now"]) == 0


def test_a_killed_run_is_gone_at_once(
    slurm: Any, command: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", *command]) == 0
    job = submissions.read(run)[0].id
    output(run, "training")
    assert cli.main(["cancel", str(run.path), "--now"]) == 0
    ended = slurm.wait(job, "FAILED", "CANCELLED", "COMPLETED")
    assert ended["Restarts"] == "0"
    assert "saved" not in output(run, "training")


def test_what_the_cluster_does_not_have_is_told_with_the_line_that_asks_for_it(
    slurm: Any, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["workers=9", "batch.size=9", "cluster.nodes=9", "batch_norm.span=1"]
    assert cli.main(["submit", *command, *overrides]) == 78
    assert "command line: cluster.nodes=9: cluster.nodes: sbatch --test-only refuses it" in capsys.readouterr().err


def test_a_job_that_waits_says_why(
    slurm: Any, command: list[str], run: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site = tmp_path / "held.yaml"
    site.write_text(Path(command[-1]).read_text() + "sbatch: [--hold]\n")
    assert cli.main(["submit", *command[:-1], str(site)]) == 0
    assert state(run, capsys) == ("pending", "held by its owner: scontrol release (JobHeldUser)")
    assert cli.main(["cancel", str(run.path)]) == 0
    assert state(run, capsys)[0] == "failed"  # it ended before anything began
