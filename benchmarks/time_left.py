"""How right the time that is left is: real runs whose records are compared with when they ended.

    python -m benchmarks.time_left

Runs on the handwritten digits, one after the other in this process. An error counts from 5 % of the steps on, when the
goal is at most 10 % of the time that is really left. In the last 5 % of the steps, a part of a second is a large part
of what is left: there the error is given in seconds. Writes results/time_left.json.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from launcher.config import load as configs
from launcher.console import Progress
from launcher.prepare.digits import write_digits
from launcher.train import train

GOAL = 0.1
FIRST, LAST = 0.05, 0.95  # parts of the steps between which the relative error counts
CONFIG: dict[str, Any] = {
    "schema": 1,
    "place": "local",
    "duration": "10 epochs",
    "model": {"name": "resnet20", "num_classes": 10},
    "data": {"resolution": 32, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 128},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"base_lr": 0.1, "warmup": "1 epoch", "decay": "cosine"},
    "evaluate": {"every": "1 epoch"},
    "checkpoint": {"every": "1 epoch"},
    "faults": {"max_failures": 0},  # in this process
    "log": {"every_steps": 1},
}
RUNS: dict[str, dict[str, Any]] = {
    "evaluation and checkpoint each epoch": {},
    "evaluation at the end only": {"evaluate": {"every": "10 epochs"}},
    "evaluation of the training split, too": {"evaluate": {"every": "2 epochs", "train": True}},
    "images of 24, later of 32 pixels": {
        "data": {**CONFIG["data"], "resolution": 24, "progressive": {"5 epochs": 32}},
        "evaluate": {"every": "1 epoch", "resolution": 32},
    },
}


class Recorder(Progress):
    """Notes when each record came."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.seen: list[tuple[float, Mapping[str, Any]]] = []

    def record(self, record: Mapping[str, Any]) -> None:
        """Note a record."""
        self.seen.append((time.perf_counter(), dict(record)))


def errors(seen: list[tuple[float, Mapping[str, Any]]]) -> dict[str, float]:
    """The errors of `time_left_s` in the records of a run that has finished."""
    end = next(moment for moment, record in seen if record.get("event") == "finished")
    trained = [(moment, record) for moment, record in seen if record["kind"] == "train"]
    steps = trained[-1][1]["step"]
    relative, last_s = [], [0.0]
    for moment, record in trained:
        true = end - moment
        error = abs(record["time_left_s"] - true)
        if record["step"] > LAST * steps:
            last_s.append(error)
        elif record["step"] >= FIRST * steps:
            relative.append(error / true)
    whole = trained[-1][0] - trained[0][0]
    return {
        "steps": steps,
        "seconds": round(whole, 1),
        "largest": round(max(relative), 4),
        "median": round(statistics.median(relative), 4),
        "largest_at_the_end_s": round(max(last_s), 2),
    }


def main() -> None:
    """Train all runs, print their errors and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", default=CONFIG["duration"], help="of each run (%(default)s)")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        for number, (name, keys) in enumerate(RUNS.items()):
            config = {**CONFIG, **keys, "duration": given.duration}
            config |= {"name": f"run-{number}", "storage": f"{folder}/runs"}
            config["data"] = {**config["data"], "root": f"{folder}/digits"}
            recorder = Recorder()
            train(configs.from_mapping(config, Path(folder), {}), "never", recorder)
            found[name] = errors(recorder.seen)
            print(f"{name}: {found[name]}", flush=True)
    print(write("time_left", {"goal": GOAL, "runs": found}))


if __name__ == "__main__":
    main()
