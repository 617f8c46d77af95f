"""The job script of a run, whole, under bash: it trains, and its exit code is the run's.

SLURM's programs are scripts that answer for a cluster of one node. A real SLURM is in tests/lab/slurm.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.profile import SlurmProfile
from cluster.slurm.script import render
from cluster.spec import RunSpec
from launcher.config import load as configs

# srun runs the command after its options, as the one task of the one node.
PROGRAMS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=0 exec "$@"',
    "scontrol": '[ "$1 $2" = "show hostnames" ] && echo node1',
    "squeue": "echo RUNNING",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a job of SLURM on one node finds."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD_SIZE"))}
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node1", "SLURMD_NODENAME": "node1"}
    return kept | job | {"PATH": f"{programs}:{kept['PATH']}"}


@pytest.mark.smoke
def test_a_script_trains_two_workers_and_leaves_nothing_on_the_node(
    config_file: Path, environment: dict[str, str], tmp_path: Path, assert_one_curve: Callable[[Path], None]
) -> None:
    config = configs.load(config_file, ["name=scripted", "place=auto", "workers=2"])
    spec = RunSpec(
        name="scripted",
        config=configs.to_yaml(config),
        storage=config.storage,
        least_workers=2,
        most_workers=2,
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    profile = SlurmProfile(venv=sys.prefix, scratch=str(scratch), environment={"OMP_NUM_THREADS": "1"})
    script = tmp_path / "job.sh"
    script.write_text(render(spec, profile, "torchrun"))
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 0" in done.stdout
    assert_one_curve(tmp_path / "runs" / "scripted")
    assert list(scratch.iterdir()) == []
