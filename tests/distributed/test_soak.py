"""A short soak: a few faults drawn at random moments, and nothing is lost or left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Another worker has the state after the last step in memory, and goes on from it.
SURVIVED = ("kill", "kill_rank_0", "kill_while_saving", "stop", "crash", "hang")


@pytest.mark.alone
@pytest.mark.parametrize(("workers", "faults"), [(2, 4), (1, 2)])
def test_a_run_with_random_faults_ends_with_the_undisturbed_runs_weights(
    tmp_path: Path, workers: int, faults: int
) -> None:
    output = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--faults", str(faults), "--workers", str(workers)]
    command += ["--minutes", "5", "--output", str(output)]
    seed = str(int.from_bytes(os.urandom(2)))  # printed with the report: a failure can be had again
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    done = subprocess.run(
        [*command, "--seed", seed], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"
    report = json.loads(output.read_text())
    assert report["same_weights"]
    assert report["faults"] == faults
    for one in report["injected"]:
        if workers > 1 and one["kind"] in SURVIVED:
            assert one["steps_redone"] <= 1, one
        # a checkpoint's interval, and what is done while one is under way
        assert one["steps_redone"] <= 15 * (2 if one["kind"] == "kill_twice" else 1), one
    assert not any(report["left_over"].values())
