"""The loss curve of one run on 1, 2 and 4 workers, in float64 and in float32.

    python -m benchmarks.one_curve                  train, write results/one_curve.json, draw docs/images/one-curve.svg
    python -m benchmarks.one_curve --draw           draw the results again

Trains the digits of configs/digits_cpu.yaml with torchrun and gloo, one thread per worker, and compares the training
loss of every step in metrics.jsonl with the run on one worker. Needs matplotlib (`pip install .[figures]`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, write
from launcher.prepare.digits import write_digits

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "digits_cpu.yaml"
FIGURE = ROOT / "docs" / "images" / "one-curve.svg"
WORKERS = (1, 2, 4)
PRECISIONS = ("float64", "float32")
# A small run, so that float64 takes minutes on two cores.
OVERRIDES = ("duration=4 epochs", "schedule.warmup=1 epoch", "batch.size=64", "data.resolution=16")
TITLE = "ResNet-20 on digits, 16 px, global batch 64"
STYLES: dict[int, dict[str, Any]] = {  # of wide to narrow, so that curves on top of each other stay visible
    1: {"color": "#9ecae1", "linewidth": 7.0},
    2: {"color": "#08519c", "linewidth": 2.6, "dashes": (5, 4)},
    4: {"color": "#d94801", "linewidth": 2.2, "dashes": (1.2, 2.2)},
}
COLORS = {"float64": "#08519c", "float32": "#d94801"}


def losses(folder: Path, workers: int, precision: str) -> list[float]:
    """The training loss of every step of a run on `workers` processes."""
    name = f"{precision}-{workers}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", "launcher.train", str(CONFIG), f"name={name}", f"storage={folder / 'runs'}", "place=local"]
    command += [f"data.root={folder / 'digits'}", f"precision={precision}", *OVERRIDES]
    command += ["evaluate.every=1000 epochs", "log.every_steps=1", "log.tensorboard=false"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"]


def differences(curves: Mapping[str, list[float]]) -> list[float]:
    """At each step, the largest relative difference between any number of workers and one worker.

    >>> differences({"1": [2.0, 1.0], "2": [2.0, 1.5], "4": [1.0, 1.25]})
    [0.5, 0.5]
    """
    alone = curves["1"]
    return [max(abs(loss / one - 1.0) for loss in step) for one, *step in zip(alone, *curves.values(), strict=True)]


def draw(found: Mapping[str, Any], file: Path = FIGURE) -> None:
    """The float64 curves on top of each other; below, the largest difference from one worker in both precisions."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "one-curve", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(8, 6), height_ratios=(3, 2), sharex=True, layout="constrained"
        )
        for workers, curve in found["losses"]["float64"].items():
            label = f"{workers} worker{'' if workers == '1' else 's'}"
            above.plot(range(1, len(curve) + 1), curve, label=label, **STYLES[int(workers)])
        above.set(ylabel="training loss", title=f"{TITLE}, float64")
        above.legend(frameon=False, handlelength=4)
        for precision, curves in found["losses"].items():
            worst = differences(curves)
            # An exact 0 has no place on a logarithmic axis.
            points = [(step, value) for step, value in enumerate(worst, 1) if value > 0]
            below.semilogy(*zip(*points, strict=True), color=COLORS[precision], linewidth=1.5, label=precision)
        below.set(xlabel="step", ylabel="largest relative\ndifference from 1 worker", ylim=(1e-17, 1))
        below.grid(axis="y", color="#dddddd", linewidth=0.6)
        below.legend(frameon=False, loc="center right")
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="do not train: draw results/one_curve.json")
    if not parser.parse_args().draw:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_digits(folder / "digits")
            curves = {
                precision: {str(workers): losses(folder, workers, precision) for workers in WORKERS}
                for precision in PRECISIONS
            }
        largest = {
            precision: {"step 1": worst[0], "any step": max(worst)}
            for precision, worst in ((precision, differences(found)) for precision, found in curves.items())
        }
        write("one_curve", {"overrides": OVERRIDES, "largest_difference": largest, "losses": curves})
    draw(json.loads((RESULTS / "one_curve.json").read_text()))
    print(FIGURE)


if __name__ == "__main__":
    main()
