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
from launcher.places import programs
from launcher.run.directory import RunDirectory

# A place that is `down` refuses connections: as many as the file says, or all if it is empty. A `hung` sbatch takes its
# job, or loses it where `loses` exists, and gets no answer.
DOWN = """
down() {
    [ -e "$PLACE/down" ] || return 0
    left=$(cat "$PLACE/down")
    if [ "$left" = 1 ]; then rm "$PLACE/down"; elif [ -n "$left" ]; then echo $((left - 1)) > "$PLACE/down"; fi
    echo "$1" >&2
    exit 1
}
"""
# What SLURM 22.05 refuses, and how it says so. JOBS holds a file a job, named ID or ID.NAME: a line a task,
# STATE|REASON|RESTARTS; none: forgotten.
SBATCH = """#!/bin/bash
echo "sbatch $*" >> "$CALLS"
env > "$PLACE/environment"
script=$(cat)
printf '%s' "$script" > "$PLACE/script"
down "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
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
    *)
        [ -e "$PLACE/loses" ] || echo "PENDING|Resources" > "$PLACE/jobs/4711"
        rm -f "$PLACE/loses"
        if [ -e "$PLACE/hung" ]; then
            rm "$PLACE/hung"
            echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
            exit 1
        fi
        echo 4711 ;;
esac
"""
SQUEUE = """#!/bin/bash
echo "squeue $*" >> "$CALLS"
down "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
for word; do
    case $word in
        --jobs=*) job=${word#--jobs=} ;;
        --name=*) ls "$PLACE/jobs"; exit ;;
    esac
done
[ -e "$PLACE/jobs/${job%%_*}" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
while IFS='|' read -r state reason restarts; do
    printf '%-32s%-16s%-256s\\n' "$state" "${restarts:-0}" "$reason"
done < "$PLACE/jobs/${job%%_*}"
"""
SACCT = """#!/bin/bash
echo "sacct $*" >> "$CALLS"
[ -e "$PLACE/accounting" ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
cat "$PLACE/accounting"
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$CALLS"
down "scancel: error: Unable to contact slurm controller (connect failure)"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
down "slurm_update error: Unable to contact slurm controller (connect failure)"
"""
# The API server: PLACE/rayjob, PLACE/pods and PLACE/workloads are what it knows; reader.log is what a reader prints.
KUBECTL = """#!/bin/bash
echo "kubectl $*" >> "$CALLS"
case "$1 $2" in
    "config current-context") echo lab; exit ;;
    "config get-contexts") echo lab; echo other; exit ;;
esac
env > "$PLACE/environment"
down "E1126 07:45:24.525652    7997 memcache.go:265] Unhandled Error err=couldnt get current server API group list
The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
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
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "scancel": SCANCEL, "scontrol": SCONTROL}
    for name, text in {**scripts, "kubectl": KUBECTL}.items():
        (folder / "bin" / name).write_text(text.replace("\n", DOWN, 1))
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PLACE", str(folder))
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    for name in ("LIMIT_S", "SUBMIT_LIMIT_S"):  # one that does not answer is not asked again
        monkeypatch.setattr(programs, name, 0.0)
    return Places(folder)


@pytest.fixture
def patient(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that do not answer are asked again, without long waits."""
    for name, value in (("LIMIT_S", 20.0), ("SUBMIT_LIMIT_S", 20.0), ("FIRST_WAIT_S", 0.01)):
        monkeypatch.setattr(programs, name, value)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write a small config; lines may be added to it. Its storage is tmp_path/runs, its images are empty folders."""
    for split in ("train", "val"):
        (tmp_path / "images" / split / "0").mkdir(parents=True)

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
