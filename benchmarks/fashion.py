"""The accuracy of configs/fashion_cpu.yaml over seeds, and that of classical methods on the same images.

    python -m launcher prepare fashion-mnist
    python -m benchmarks.fashion

Trains the config with seeds 0, 1 and 2, one after the other. Reports top-1 on the 10,000 test images, the time and the
CPU time of each run; the CPU time depends less on other programs. Writes results/fashion_cpu.json, and the figures into
the opening comment of the config and into docs/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from launcher.prepare.baselines import classical_baselines

ROOT = Path(__file__).parents[1]
CONFIG = "configs/fashion_cpu.yaml"
PAGE = "docs/recipes.md"


def train(seed: int, storage: Path) -> dict[str, Any]:
    """Train with `seed`; top-1, seconds, CPU seconds of the run's processes, and images/s."""
    before = _cpu_s()
    overrides = [f"seed={seed}", f"name=seed-{seed}", f"storage={storage}"]
    subprocess.run([sys.executable, "-m", "launcher.train", CONFIG, *overrides], check=True, cwd=ROOT)
    end = json.loads((storage / f"seed-{seed}" / "FINISHED").read_text(encoding="utf-8"))
    return {"seed": seed, "cpu_s": _cpu_s() - before, **{key: end[key] for key in ("top1", "time_s", "images_per_s")}}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def content(runs: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> dict[str, Any]:
    """The record: runs, mean and sample standard deviation, the baselines, and the load of the last 15 minutes."""
    accuracies = [run["top1"] for run in runs]
    top1 = {"mean": statistics.mean(accuracies), "std": statistics.stdev(accuracies)}
    load = round(os.getloadavg()[2], 1)
    return {"config": CONFIG, "top1": top1, "runs": list(runs), "baselines": dict(baselines), "load": load}


def top1(found: Mapping[str, Any]) -> str:
    """Mean and standard deviation of top-1.

    >>> top1({"top1": {"mean": 0.90917, "std": 0.00123}})
    '90.9 ± 0.1 %'
    """
    return f"{100 * found['top1']['mean']:.1f} ± {100 * found['top1']['std']:.1f} %"


def with_figures(text: str, found: Mapping[str, Any]) -> str:
    """The text of the config or of the page with the figures of `found`."""
    minutes, cpu_minutes = (statistics.median(run[key] for run in found["runs"]) / 60 for key in ("time_s", "cpu_s"))
    nearest, logistic = (100 * found["baselines"][name] for name in ("k_nearest_neighbours", "logistic_regression"))
    expect = (
        f"{top1(found)} top-1 (10,000 test images; mean and standard deviation of seeds 0, 1 and 2). A run took"
        f" {cpu_minutes:.1f} minutes of CPU time, and {minutes:.1f} minutes on two cores with a load average of"
        f" {found['load']:.0f} (medians). For comparison: k-nearest neighbours {nearest:.1f} %, logistic regression"
        f" {logistic:.1f} %."
    )
    lines = textwrap.wrap(expect, 110)
    block = "\n".join([f"# Expect  {lines[0]}", *(f"#         {line}" for line in lines[1:])])
    text = re.sub(r"^# Expect  .*?(?=\n# Label)", block, text, flags=re.MULTILINE | re.DOTALL)
    label = f"# Label   reproduced: python -m benchmarks.fashion, {top1(found)} top-1"
    text = re.sub(r"^# Label   .*$", label, text, flags=re.MULTILINE)
    return re.sub(r"^(\| \[fashion_cpu\](?:[^|]*\|){3})[^|]*", rf"\1 {top1(found)} ", text, flags=re.MULTILINE)


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("~/resnet_data/fashion-mnist"), help="(%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        runs = [train(seed, Path(storage)) for seed in (0, 1, 2)]
    found = content(runs, classical_baselines(given.images.expanduser()))
    print(json.dumps(found, indent=2))
    print(write("fashion_cpu", found))
    for file in (ROOT / CONFIG, ROOT / PAGE):
        file.write_text(with_figures(file.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
