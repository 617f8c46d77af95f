"""The effect of each key of `speed:` on a CPU.

    python -m benchmarks.speed_keys [--quick]

ResNet-50 on noise, our trainer, one worker, one thread. One key at a time is changed from its default; the variants
take turns. Keys that have an effect on GPUs only are measured by benchmarks/training_gpu.py. `--quick` checks that the
benchmark runs, and writes no result.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.measure import Run, interleave, ratio, table, write
from benchmarks.peers import OurTrainer, Setting, synthetic
from resnet_dist.recipe.schema import SpeedRecipe

CPU = torch.device("cpu")
DEFAULTS = "defaults"

# The speed keys that are changed.
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "channels_last: false": {"channels_last": False},
    "compile: true": {"compile": True},
    "sgd_kernel: fused": {"sgd_kernel": "fused"},
    "sgd_kernel: foreach": {"sgd_kernel": "foreach"},
    "sgd_kernel: loop": {"sgd_kernel": "loop"},
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
    """Seconds per step of each variant, by round."""
    batches = synthetic(setting)
    peers: dict[str, Run] = {}
    for name, keys in variants.items():
        recipe = setting.recipe(speed=SpeedRecipe(**keys))
        peers[name] = OurTrainer(recipe, CPU, batches)
    return interleave(peers, rounds=rounds, steps=1, warm_up=2)


def rows_of(times: dict[str, list[float]], num_images: int) -> list[dict[str, Any]]:
    """One row for each variant; its ratio is its speed / that of the defaults."""
    return [
        {
            "key": name,
            "workers": 1,
            "images_per_s": num_images / statistics.median(seconds),
            "ratio": asdict(ratio(times[DEFAULTS], seconds)),
        }
        for name, seconds in times.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write results/speed_keys.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check that it works, in a minute")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    given = parser.parse_args(arguments)
    effort = QUICK if given.quick else FULL
    setting = effort.setting
    variants = {name: keys for name, keys in VARIANTS.items() if effort.compiled or "compile" not in keys}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    times = measure(setting, variants, given.rounds or effort.rounds)
    torch.set_num_threads(before)
    rows = rows_of(times, setting.batch)
    print(speed_table(rows))
    if not given.quick:
        content = {
            "setting": asdict(replace(setting, device="cpu")),  # type: ignore[arg-type]
            "rows": rows,
            "times_s": {"one worker": times},
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
