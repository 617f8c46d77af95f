"""How long an evaluation stops the training: by the workers in turn, and beside training.

    python -m benchmarks.beside

The same run twice: ResNet-20 on the handwritten digits, one worker with one thread. Beside training, another process
with one thread evaluates. Both runs save a checkpoint at each evaluation. Writes results/beside.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from launcher.prepare.digits import write_digits
from launcher.run.directory import RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
GOAL_S = 0.5  # an evaluation beside training stops it at most so long
EVERY = 24  # steps between two evaluations
STEPS = 5 * EVERY
RUNS = {"in turn": "false", "beside": "true"}  # name -> evaluate.beside
OVERRIDES = (
    *("place=local", "workers=1", f"duration={STEPS} steps", "schedule.warmup=20 steps", "batch.size=32"),
    *(f"evaluate.every={EVERY} steps", f"checkpoint.every={EVERY} steps", "log.every_steps=1", "log.tensorboard=false"),
)


def stops(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds for which each evaluation but the last one has stopped the training, by the records of a run.

    Those are the time of an evaluation in turn, and in both cases that for which the checkpoint of the same step has
    stopped it. After the last step, the workers evaluate in both cases.

    >>> save = {"step": 4, "kind": "event", "event": "checkpoint", "detail": {"stalled_s": 0.25}}
    >>> stops([{"step": 4, "kind": "eval", "time_s": 2.0}, save, {**save, "step": STEPS}])
    [2.25]
    >>> stops([{"step": 4, "kind": "eval", "time_s": 2.0, "beside": True}, save, {**save, "step": STEPS}])
    [0.25]
    """
    saved = [record for record in records if record.get("event") == "checkpoint" and record["step"] < STEPS]
    stopped = {record["step"]: record["detail"]["stalled_s"] for record in saved}
    for record in records:
        if record["kind"] == "eval" and record["step"] in stopped and not record.get("beside"):
            stopped[record["step"]] += record["time_s"]
    return list(stopped.values())


def measure(folder: Path, name: str, beside: str) -> dict[str, Any]:
    """Train; returns what its evaluations have cost, and what they have found."""
    command = [sys.executable, "-m", "launcher.train", str(ROOT / "configs" / "digits_cpu.yaml"), f"name=run-{beside}"]
    command += [f"storage={folder / 'runs'}", f"data.root={folder / 'digits'}", f"evaluate.beside={beside}", *OVERRIDES]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    run = RunDirectory(folder / "runs", f"run-{beside}")
    records, summary = read_metrics(run.metrics), run.summary() or {}
    evaluated = [record for record in records if record["kind"] == "eval"]
    print(f"{name}: {stops(records)}", flush=True)
    return {
        "stops_s": stops(records),
        "evaluation_s": statistics.median(record["time_s"] for record in evaluated),
        "step_s": statistics.median(record["step_time_s"] for record in records if record["kind"] == "train"),
        "whole_s": sum(summary[key] for key in ("training_s", "evaluation_s", "saving_s")),
        "num_samples": evaluated[-1]["num_samples"],
        "found": {record["step"]: (record["top1"], record["top5"], record["loss"]) for record in evaluated},
    }


def main() -> None:
    """Train both runs, print what came and write it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        found = {name: measure(folder, name, beside) for name, beside in RUNS.items()}
    # An evaluation beside training is left out if the next one is due before it begins.
    same = found["beside"].pop("found").items() <= found["in turn"].pop("found").items()
    medians = {name: statistics.median(run["stops_s"]) for name, run in found.items()}
    ratio = medians["beside"] / medians["in turn"]
    setting = {"model": "resnet20", "steps": STEPS, "every": EVERY, "batch": 32}
    print(write("beside", {"goal_s": GOAL_S, **setting, "ratio": ratio, "same_results": same, "runs": found}))


if __name__ == "__main__":
    main()
