"""What is each key of `speed:` worth on a CPU?

    python -m benchmarks.speed_keys [--quick]

ResNet-50 on noise, our trainer, one thread a worker; one key changed at a time from the defaults of a config, all in
turns. Keys that do nothing on one worker are measured on two, over gloo; those that do nothing without a GPU are for
benchmarks/training_gpu.py. `--quick` shows that it works; its figures are not written.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import Run, interleave, ratio, table, write
from benchmarks.peers import OurTrainer, Setting, synthetic
from benchmarks.workers import on_workers
from resnet_dist.recipe.schema import Recipe, SpeedRecipe
from resnet_dist.training.device import pin_to_cpus

CPU = torch.device("cpu")
DEFAULTS = "defaults"

# What is changed; a name that two tables share is measured in both.
ONE_WORKER: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "channels_last: false": {"channels_last": False},
    "compile: true": {"compile": True},
    "optimizer: fused": {"optimizer": "fused"},
    "optimizer: foreach": {"optimizer": "foreach"},
    "optimizer: loop": {"optimizer": "loop"},
}
TWO_WORKERS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "bucket_views: false": {"bucket_views": False},
    "static_graph: true": {"static_graph": True},
    "cpu_affinity: true": {"cpu_affinity": True},
}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    setting: Setting
    rounds: int
    compiled: bool


FULL = Effort(Setting(batch=16, resolution=64), rounds=15, compiled=True)
QUICK = Effort(Setting(batch=2, resolution=32, model="resnet18"), rounds=2, compiled=False)


def measure(setting: Setting, variants: dict[str, dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each variant; on each worker, where there are several."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = synthetic(setting, rank=rank)
    peers: dict[str, Run] = {}
    for name, keys in variants.items():
        recipe = setting.recipe(world_size, speed=SpeedRecipe(**keys))
        peers[name] = _pinned(recipe, OurTrainer(recipe, CPU, batches), rank, world_size)
    wait = dist.barrier if world_size > 1 else lambda: None
    return interleave(peers, rounds=rounds, steps=1, warm_up=2, wait=wait)


def _pinned(recipe: Recipe, run: Run, rank: int, world_size: int) -> Run:
    """`run` on CPUs of its own while its turn lasts, where the recipe says so."""
    if world_size == 1 or not recipe.speed.cpu_affinity:
        return run
    everywhere = os.sched_getaffinity(0)

    def turn(steps: int) -> None:
        pin_to_cpus(rank, world_size, num_threads=1)
        run(steps)
        os.sched_setaffinity(0, everywhere)

    return turn


def rows_of(times: dict[str, list[float]], num_images: int, workers: int) -> list[dict[str, Any]]:
    """One row for each variant; its ratio is its speed / that of the defaults."""
    return [
        {
            "key": name,
            "workers": workers,
            "images_per_s": num_images / statistics.median(seconds),
            "ratio": asdict(ratio(times[DEFAULTS], seconds)),
        }
        for name, seconds in times.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write results/speed_keys.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="see that it works, in a minute")
    effort = QUICK if parser.parse_args(arguments).quick else FULL
    setting = effort.setting
    alone = {name: keys for name, keys in ONE_WORKER.items() if effort.compiled or "compile" not in keys}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = measure(setting, alone, effort.rounds)
    torch.set_num_threads(before)
    two = on_workers(2, measure, setting, TWO_WORKERS, effort.rounds)
    rows = [*rows_of(one, setting.batch, 1), *rows_of(two, 2 * setting.batch, 2)]
    print(speed_table(rows))
    if effort is FULL:
        content = {
            "setting": asdict(replace(setting, device="cpu")),  # type: ignore[arg-type]
            "rows": rows,
            "times_s": {"one worker": one, "two workers": two},
        }
        print(f"\n{write('speed_keys', content)}")
    return 0


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    head = ("speed key", "workers", "images/s", "times the defaults' speed (quartiles)")
    return table(head, list(map(_cells, rows)))


def _cells(row: dict[str, Any]) -> list[str]:
    spread = row["ratio"]
    times = f"{spread['median']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})"
    return [row["key"], str(row["workers"]), f"{row['images_per_s']:.1f}", "1" if row["key"] == DEFAULTS else times]


if __name__ == "__main__":
    raise SystemExit(main())
