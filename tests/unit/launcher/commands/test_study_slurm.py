from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.commands import study_slurm
from launcher.commands.study_slurm import array, submit
from launcher.config import load as configs
from launcher.config.profiles import load_profile
from launcher.errors import ConfigError
from launcher.places import slurm as slurm_jobs
from launcher.run import submissions
from launcher.study import load
from launcher.study.plan import Plan, PlannedRun, plan
from launcher.study.rounds import next_round
from launcher.study.session import read_states

BASE = """\
schema: 1
name: base
storage: runs
duration: 8 steps
model: {name: resnet20, num_classes: 10}
data: {root: images, resolution: 16}
batch: {size: 32}
schedule: {peak_lr: 0.05}
"""
STUDY = "study: 1\nname: small\nbase: base.yaml\noverrides: {optimizer.momentum: 0.8}\nseeds: [0, 1]\n"


def make_plan(folder: Path, text: str, *overrides: str) -> Plan:
    (folder / "base.yaml").write_text(BASE)
    (folder / "study.yaml").write_text(STUDY + text)
    return plan(load.load(folder / "study.yaml"), overrides, "auto")


def given(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"profile": "slurm", "launcher": "torchrun", "overrides": [], "dry_run": False, **changes}
    )


def test_task_i_trains_run_i_with_its_own_config(tmp_path: Path) -> None:
    found = make_plan(tmp_path, "sets:\n  - {label: a b, batch.size: 16}\n  - {label: c, optimizer: {name: lars}}\n",
                      "schedule.peak_lr=0.1")  # fmt: skip
    script = array(found, found.runs, load_profile("slurm", "slurm"), "torchrun", ["schedule.peak_lr=0.1"])
    file = tmp_path / "job.sh"
    file.write_text(script)
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert "#SBATCH --array=0-3\n" in script
    assert "#SBATCH --job-name=small\n" in script
    # The embedded config with the overrides of a task is the config of its run.
    same = ["optimizer.momentum=0.8", "schedule.peak_lr=0.1", f"storage={found.runs[0].config.storage}"]
    base = configs.load(found.file.base, same)
    (tmp_path / "embedded.yaml").write_text(configs.to_yaml(base))
    for number, run in enumerate(found.runs):
        (line,) = [one for one in script.splitlines() if one.startswith(f"    {number}) ")]
        assert f"RUN={run.directory.path}" in line.replace("'", "")
        words = subprocess.run(
            ["bash", "-c", f"OVERRIDES=(); case {number} in {line.strip()} esac; printf '%s\\n' \"${{OVERRIDES[@]}}\""],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert configs.load(tmp_path / "embedded.yaml", words) == run.config


def test_runs_that_need_other_resources_are_refused(tmp_path: Path) -> None:
    found = make_plan(tmp_path, "grid: {workers: [1, 2]}")
    with pytest.raises(ConfigError, match="workers-2_seed-0 needs other resources of SLURM than the base config"):
        array(found, found.runs, load_profile("slurm", "slurm"), "torchrun", [])


def test_a_job_array_cannot_halve(tmp_path: Path) -> None:
    found = make_plan(tmp_path, "grid: {batch.size: [8, 16]}\nhalving: {at: [0.5]}")
    with pytest.raises(ConfigError, match="halving: given, and a job array cannot pause its runs"):
        submit(found, found.runs, given())


def test_each_run_is_submitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts: list[str] = []
    monkeypatch.setattr(slurm_jobs, "check", lambda script: None)
    monkeypatch.setattr(slurm_jobs, "submit", lambda script, name, output: scripts.append(script) or "4711")
    found = make_plan(tmp_path, "")
    found.runs[0].directory.create()
    found.runs[0].directory.mark_finished({"step": 8})
    found.runs[0].directory.begin_attempt()
    found.runs[0].directory.mark_finished({"step": 8})
    now = [job.run for job in next_round(found, read_states(found)).jobs]
    assert submit(found, now, given()) == 1
    assert "--array=0-0" in scripts[0]
    newest = submissions.newest(found.runs[1].directory)
    assert newest is not None
    assert str(newest) == "slurm job 4711_0"
    monkeypatch.setattr(study_slurm, "_is_submitted", lambda run: True)
    assert submit(found, now, given()) == 0


def test_a_failed_run_is_submitted_again_and_its_code_is_that_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted: list[list[str]] = []
    monkeypatch.setattr(slurm_jobs, "check", lambda script: None)
    monkeypatch.setattr(slurm_jobs, "submit", lambda script, name, output: "4711")

    def array(plan: Plan, runs: Sequence[PlannedRun], *others: object) -> str:
        submitted.append([run.name for run in runs])
        return ""

    monkeypatch.setattr(study_slurm, "array", array)
    found = make_plan(tmp_path, "")
    for number, run in enumerate(run.directory for run in found.runs):
        run.create()
        run.begin_attempt()
        if number == 0:
            run.end_attempt(1, 65, "", 8)
            run.mark_fatal(65, "DataError: it broke")
        else:
            run.mark_finished({"step": 8, "top1": 0.5})
    command = ["study", str(found.file.path), "--place", "slurm", "--profile", "slurm"]
    assert cli.main([*command, "--dry-run"]) == 0
    missing = f"{tmp_path}/images/train: no such folder, and 1 run would train on its images"
    assert capsys.readouterr().err == f"warning: on this machine: {missing}\n"
    assert cli.main(command) == 65
    assert submitted == [["seed-0"]] * 2
    assert "failed: seed-0: exit code 65: DataError: it broke" in capsys.readouterr().out
    monkeypatch.setattr(study_slurm, "_is_submitted", lambda run: True)  # the array has not ended
    assert cli.main(command) == 65
    assert len(submitted) == 2
    found.runs[0].directory.fatal_file.unlink()
    found.runs[0].directory.mark_finished({"step": 8, "top1": 0.5})
    assert cli.main(command) == 0


def test_a_dry_run_prints_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_jobs, "check", lambda script: None)
    found = make_plan(tmp_path, "")
    assert submit(found, found.runs, given(dry_run=True)) == 0
    assert capsys.readouterr().out.startswith("#!/usr/bin/env bash")
    assert not (tmp_path / "runs").exists()
