"""How good the forecasts of `launcher plan` are: times of 30 small runs, accuracies of two recipes with six seeds each.

    python -m benchmarks.plan_score

trains the runs one after the other on this machine's CPUs. The 30 are on the digits and on synthetic images, with other
networks, batches, resolutions, numbers of workers, lengths and evaluations; each time is forecast from the runs of
other configurations. The others are short trainings on the digits; each accuracy is forecast from the other seeds.
About 15 minutes on two quiet cores. With --folder, the runs stay there, and the same command goes on after those that
are finished.

Writes results/plan_score.json; `python -m benchmarks.page` adds it to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from launcher.config.load import from_mapping
from launcher.planning import score
from launcher.planning.published import mlperf_check
from launcher.planning.work import configuration
from launcher.prepare.digits import write_digits
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.schema import ModelRecipe

NUM, SEED, NUM_SEEDS = 30, 0, 6
_GFLOPS = (150, 1200)  # of a run's training
_GOAL_INSIDE, _GOAL_WIDTH = 0.8, 0.5
_MODELS: tuple[Mapping[str, Any], ...] = (
    {"name": "resnet8"},
    {"name": "resnet14"},
    {"name": "resnet20"},
    {"name": "resnet32"},
    {"name": "resnet20", "residual": False},
    {"name": "resnet14", "residual": False, "normalisation": "none"},
    {"name": "resnet8", "width": 2.0},
    {"name": "resnet8", "block": "bottleneck"},
)


def configs(storage: Path, digits: Path, num: int = NUM) -> Iterator[dict[str, Any]]:
    """`num` configs, each of another configuration, the same at every call."""
    numbers = random.Random(SEED)
    seen: set[str] = set()
    while len(seen) < num:
        config = _config(numbers, storage, digits, len(seen) + 1)
        key = configuration(from_mapping(config, storage))
        if key not in seen:
            seen.add(key)
            yield config


def _config(numbers: random.Random, storage: Path, digits: Path, number: int) -> dict[str, Any]:
    model = {**numbers.choice(_MODELS), "num_classes": 10}
    resolution, batch = numbers.choice((16, 24, 32, 48)), numbers.choice((32, 64, 128, 256))
    flops = training_flops(ModelRecipe(**model), resolution)
    assert flops is not None
    low, high = _GFLOPS
    steps = max(round(low * (high / low) ** numbers.random() * 1e9 / flops / batch), 4)
    synthetic = {"source": "synthetic", "num_samples": 2000, "resolution": resolution}
    data = numbers.choice((synthetic, {"root": str(digits), "resolution": resolution, "flip": False}))
    return {
        "schema": 1,
        "name": f"run-{number:02}",
        "storage": str(storage),
        "place": "local",
        "workers": numbers.choice((1, 2)),
        "duration": f"{steps} steps",
        "model": model,
        "data": data,
        "batch": {"size": batch},
        "batch_norm": {"span": "auto" if model.get("normalisation") == "none" else "global"},
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "schedule": {"peak_lr": 0.001},
        "evaluate": {"every": f"{max(steps // numbers.choice((1, 2, 3)), 1)} steps"},
        "checkpoint": {"every": f"{max(steps // numbers.choice((1, 2)), 1)} steps"},
    }


def of_seeds(storage: Path, digits: Path) -> Iterator[dict[str, Any]]:
    """Two recipes, each with `NUM_SEEDS` seeds."""
    for name, peak_lr, steps in (("resnet8", 0.1, 60), ("resnet14", 0.05, 120)):
        for seed in range(NUM_SEEDS):
            yield {
                "schema": 1,
                "name": f"{name}-{seed}",
                "storage": str(storage),
                "seed": seed,
                "place": "local",
                "duration": f"{steps} steps",
                "model": {"name": name, "num_classes": 10},
                "data": {"root": str(digits), "resolution": 16, "flip": False},
                "batch": {"size": 64},
                "optimizer": {"name": "sgd", "momentum": 0.9},
                "schedule": {"peak_lr": peak_lr, "warmup": "10 steps"},
                "evaluate": {"every": "100 %"},
            }


def train(config: Mapping[str, Any], folder: Path) -> None:
    """Train `config` in processes of its own, one for each worker, unless it is finished."""
    import yaml

    run = RunDirectory(Path(config["storage"]), config["name"])
    if run.is_finished():
        return
    file = folder / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    command = ["-m", "launcher.train", str(file)]
    if config.get("workers", 1) > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config['workers']}", *command]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{config['name']} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    print(f"{config['name']}: {time.monotonic() - started:.1f} s", flush=True)


def result(storage: Path, seeds: Path) -> dict[str, Any]:
    """The score of the times in `storage`, of the accuracies in `seeds`, and of MLPerf's end points."""
    found, check = score.score(storage), mlperf_check()
    return {
        "runs": [_record(one) for one in found.outcomes],
        **_judged(found.times),
        "goals": {"coverage": _GOAL_INSIDE, "median_width": _GOAL_WIDTH},
        "recorded": {"num": len(found.recorded), "inside": sum(one.inside for one in found.recorded)},
        "accuracy": _judged(score.score(seeds).accuracies),
        "mlperf": {"num": len(check), "inside": sum(interval.contains(seconds) for _, seconds, interval in check)},
    }


def _judged(found: score.Judged) -> dict[str, float]:
    numbers = {"coverage": found.coverage, "median_width": found.median_width, "median_error": found.median_error}
    return {"num": len(found.pairs), "inside": found.inside, **numbers}


def _record(one: score.Outcome) -> dict[str, Any]:
    wall = one.forecast.wall_s
    bounds = {"low_s": wall.low, "median_s": wall.median, "high_s": wall.high}
    return {"name": one.name, "actual_s": one.actual_s, **bounds, "inside": one.inside, "parts": one.parts}


def main() -> None:
    """Train what is missing, and write the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the runs and the digits; default: a temporary one")
    parser.add_argument("--num", type=int, default=NUM, help="runs (%(default)s)")
    parser.add_argument("--output", default="plan_score", help="name in benchmarks/results (%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.folder is None else given.folder
        storage, seeds, digits = folder / "runs", folder / "seeds", folder / "digits"
        storage.mkdir(parents=True, exist_ok=True)
        if not digits.exists():
            write_digits(digits)
        loads = []
        for config in [*configs(storage, digits, given.num), *of_seeds(seeds, digits)]:
            loads.append(os.getloadavg()[0])
            train(config, folder)
        print("\n".join([*score.lines(storage), *score.lines(seeds)]))
        load = {"least": min(loads), "median": statistics.median(loads), "most": max(loads)}
        print(write(given.output, {**result(storage, seeds), "load": load}))


if __name__ == "__main__":
    main()
