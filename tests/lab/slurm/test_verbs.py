"""launcher submit, status and cancel on a real SLURM. The training is stood in for by a script."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.places import slurm as slurm_jobs
from launcher.places.programs import call_once
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
    clients = tmp_path / "clients"
    clients.mkdir()
    for program in ("sbatch", "squeue", "scancel", "scontrol", "sacct"):
        line = shlex.join([*slurm.hosts["control"].enter(str(slurm.jobs_folder)), str(shutil.which(program))])
        path = shlex.quote(os.environ["PATH"])  # the job's, too
        (clients / program).write_text(f'#!/bin/bash\nexport PATH={path}\nexec {line} "$@"\n')
        (clients / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{clients}:{os.environ['PATH']}")
    for name in os.environ.keys() - slurm.environment.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
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


def pid_outside(pid: str, name: str) -> tuple[int, int]:
    """The process id, and its parent's, of a program with the id `pid` on one of the lab's hosts."""
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            status = dict(line.split(":", 1) for line in file.read_text().splitlines())
            ids = status["NSpid"].split()
            if status["Name"].strip() == name and len(ids) > 1 and ids[-1] == pid:
                return int(ids[0]), int(status["PPid"])
    raise AssertionError(f"{name} {pid} does not run")


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


def test_variables_of_the_shell_and_of_an_outer_job_do_not_change_a_job(
    slurm: Any,
    command: list[str],
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = {
        "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "urgent", "SBATCH_NO_REQUEUE": "1", "SBATCH_EXPORT": "NONE",
        "SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "1", "SLURM_NTASKS": "64", "SLURM_CPUS_PER_TASK": "64",
        "SQUEUE_STATES": "FAILED", "SQUEUE_FORMAT": "%i", "SCANCEL_NAME": "other",
    }  # fmt: skip
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["submit", *command]) == 0
    assert "variables of this shell that sbatch does not get: SBATCH_EXPORT, " in capsys.readouterr().out
    job = slurm.job(submissions.read(run)[0].id)
    assert (job["TimeLimit"], job["Partition"], job["Requeue"]) == ("UNLIMITED", "normal", "1")
    assert (job["NumTasks"], job["MinMemoryNode"]) == ("1", "0")
    output(run, "training")
    assert slurm_jobs.ask(job["JobId"]).state == "running"
    assert cli.main(["cancel", str(run.path), "--now"]) == 0
    slurm.wait(job["JobId"])


def test_a_requeued_job_says_so(slurm: Any, command: list[str], run: RunDirectory, capsys: Any) -> None:
    assert cli.main(["submit", *command]) == 0
    job = submissions.read(run)[0].id
    output(run, "training")
    slurm("scontrol", "requeue", job)
    slurm.wait(job, "PENDING")
    found, reason = state(run, capsys)
    assert (found, reason.partition(":")[0]) == ("pending", "requeued, restart 1")
    assert cli.main(["cancel", str(run.path)]) == 0


def test_a_job_whose_submission_got_no_answer_is_found_and_not_submitted_again(
    slurm: Any, command: list[str], run: RunDirectory, tmp_path: Path
) -> None:
    """The controller is frozen while sbatch waits for it, and takes the job when it goes on."""
    controller, parent = pid_outside((slurm.root / "slurmctld.pid").read_text().strip(), "slurmctld")
    # Its parent, nsenter, stops with it.
    freeze = f"kill -STOP {controller}; (sleep 15; kill -CONT {parent} {controller}) > /dev/null 2>&1 < /dev/null &"
    client, frozen = tmp_path / "clients" / "sbatch", tmp_path / "frozen"
    once = f'case "$*" in *--parsable*) [ -e {frozen} ] || {{ touch {frozen}; {freeze} }} ;; esac\n'
    client.write_text(client.read_text().replace("export PATH", f"{once}export PATH"))
    before = set(slurm("squeue", "--noheader", "--states=all", "--format=%i").split())
    assert cli.main(["submit", *command]) == 0
    assert frozen.exists()
    [submission] = submissions.read(run)
    assert set(slurm("squeue", "--noheader", "--states=all", "--format=%i").split()) - before == {submission.id}
    assert cli.main(["cancel", str(run.path), "--now"]) == 0


@pytest.mark.parametrize("job", ["-A", "--me", "--user=root", "--help"])
def test_no_id_makes_scancel_cancel_something_else(slurm: Any, command: list[str], job: str) -> None:
    held = slurm.submit("#!/bin/bash\nsleep 600\n", "--hold")
    assert "Invalid job id" in call_once("scancel", "--", job).err
    assert slurm_jobs.ask(job).state == "gone"
    assert slurm.job(held)["JobState"] == "PENDING"
    slurm("scancel", held)
