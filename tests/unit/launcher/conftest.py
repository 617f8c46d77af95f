"""Places that are scripts: sbatch, squeue, scancel, scontrol and kubectl that say what the real ones say, and a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.run.directory import RunDirectory

# What SLURM 22.05 refuses, and how it says so. JOBS holds a file a job: its line of squeue; none: forgotten.
SBATCH = """#!/bin/bash
echo "sbatch $*" >> "$CALLS"
script=$(cat)
printf '%s' "$script" > "$PLACE/script"
[ ! -e "$PLACE/down" ] || { echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }
case $script in
    '#!'*) ;;
    *) echo "sbatch: error: This does not look like a batch script.  The first line must start with #!" >&2; exit 1 ;;
esac
refuse() { printf 'sbatch: error: %s\\nallocation failure: %s\\n' "$1" "$2" >&2; exit 1; }
case $script in
    *--partition=nowhere*) refuse "invalid partition specified: nowhere" "Invalid partition name specified" ;;
    *--nodes=99*) refuse "Node count specification invalid" "Requested node configuration is not available" ;;
esac
case " $* " in
    *" --test-only "*) echo "sbatch: Job 4711 to start at 4068-01-01T00:00:00 using 2 processors" >&2 ;;
    *) echo "PENDING|Resources" > "$PLACE/jobs/4711"; echo 4711 ;;
esac
"""
SQUEUE = """#!/bin/bash
echo "squeue $*" >> "$CALLS"
[ ! -e "$PLACE/down" ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for word; do case $word in --jobs=*) job=${word#--jobs=} ;; esac; done
[ -e "$PLACE/jobs/${job%%_*}" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
cat "$PLACE/jobs/${job%%_*}"
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$CALLS"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
"""
# The API server: PLACE/rayjob, PLACE/pods and PLACE/workloads are what it knows; reader.log is what a reader prints.
KUBECTL = """#!/bin/bash
echo "kubectl $*" >> "$CALLS"
[ ! -e "$PLACE/down" ] || { echo "The connection to the server localhost:8080 was refused" >&2; exit 1; }
while case $1 in --*) true ;; *) false ;; esac; do shift; done
case "$1 $2" in
    "apply --dry-run=server")
        cat > "$PLACE/checked"
        [ ! -e "$PLACE/refuses" ] || { cat "$PLACE/refuses" >&2; exit 1; } ;;
    "apply -f") cat > "$PLACE/applied"; echo '{"status": {}}' > "$PLACE/rayjob" ;;
    "get rayjob") [ ! -e "$PLACE/rayjob" ] || cat "$PLACE/rayjob" ;;
    "get pods") cat "$PLACE/pods" 2> /dev/null || echo '{"items": []}' ;;
    "get workloads.kueue.x-k8s.io") cat "$PLACE/workloads" 2> /dev/null || exit 1 ;;
    "delete rayjob") rm -f "$PLACE/rayjob" ;;
    "delete pods" | delete\\ job*) ;;
    "create -f") cat > "$PLACE/reader"; echo job.batch/reader-x7k2p ;;
    "logs --follow") cat "$PLACE/reader.log" ;;
    *) echo "error: unknown command $*" >&2; exit 1 ;;
esac
"""


@dataclass(frozen=True)
class Places:
    """The scripts' folder."""

    folder: Path

    def calls(self) -> list[str]:
        """Every call, as a shell would have it."""
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def says(self, file: str, content: object) -> None:
        """Let a place know something."""
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / file).write_text(text)

    def read(self, file: str) -> str:
        """What a place was given."""
        return (self.folder / file).read_text()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    folder = tmp_path / "place"
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "scontrol": SCONTROL, "kubectl": KUBECTL}
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PLACE", str(folder))
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    return Places(folder)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a small config; lines may be added to it. Its storage is tmp_path/runs."""

    def write(*more: str, name: str = "small") -> Path:
        file = tmp_path / f"{name}.yaml"
        lines = [
            "schema: 1",
            f"name: {name}",
            f"storage: {tmp_path / 'runs'}",
            "duration: 100 steps",
            "model: {name: resnet20, num_classes: 10}",
            f"data: {{root: {tmp_path / 'images'}, num_samples: 1000}}",
            "batch: {size: 8}",
            "schedule: {peak_lr: 0.1}",
            *more,
        ]
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


@pytest.fixture
def small_run(tmp_path: Path, write_config: Callable[..., Path]) -> RunDirectory:
    """A run directory as one has it whose first attempt has not begun."""
    config = configs.load(write_config())
    run = RunDirectory(Path(config.storage), config.name)
    run.create()
    run.write_config(configs.to_yaml(config))
    return run


@pytest.fixture
def train_record() -> Callable[..., str]:
    """A line of metrics.jsonl."""

    def line(step: int, **more: Any) -> str:
        record = {"kind": "train", "step": step, "epoch": step * 8 / 1000, "loss": 2.5, "images_per_s": 400.0}
        return json.dumps(record | more) + "\n"

    return line
