"""A host that is not fit ends the run before it has trained a step, and says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def start(config_file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The main job under a limit of 200 open files, fewer than the 256 of which the check is sure that they are few."""
    command = [sys.executable, "-m", "launcher.train", str(config_file), *overrides]
    limited = ["bash", "-c", 'ulimit -S -n 200; exec "$@"', "bash", *command]
    return subprocess.run(limited, capture_output=True, text=True, timeout=120)


def test_too_few_open_files_end_the_run_with_69_and_the_command_that_helps(config_file: Path) -> None:
    done = start(config_file)
    assert done.returncode == 69, done.stdout + done.stderr
    assert "open files" in done.stderr
    assert "ulimit -n" in done.stderr
    run = config_file.parent / "runs" / "tiny"
    assert json.loads((run / "FATAL").read_text())["exit_code"] == 69
    assert not list((run / "checkpoints").iterdir())


def test_whoever_knows_better_goes_on(config_file: Path) -> None:
    done = start(config_file, "faults.preflight=false", "duration=2 steps", "schedule.warmup=1 step")
    assert done.returncode == 0, done.stdout + done.stderr
