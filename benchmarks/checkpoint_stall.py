"""The time that a checkpoint stops the training.

    python benchmarks/checkpoint_stall.py [--model resnet50] [--device cpu|cuda] [--rounds 15] [--folder FOLDER]

The state of a model and its momentum is saved in turns by `Saver` (the loop stops for a copy to host memory; a thread
hashes, writes, syncs and renames it) and by `torch.save` to the same disk, without a sync. Each round waits until
everything is written, so that the two do not affect each other. The first save of a process is reported separately;
`Saver` reserves its memory before, as in a run, during the first steps. Goal: a ratio of at most 0.2.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.restore import load
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe

RESULTS = Path(__file__).parent / "results" / "checkpoint_stall.json"
GOAL = 0.2


def state_of(model: str, device: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Model state and momentum, as in a run with channels-last memory."""
    network = build_model(ModelRecipe(name=model, num_classes=1000), seed=0)
    network = network.to(device=device, memory_format=torch.channels_last)
    momentum = {name: {"momentum": torch.randn_like(value)} for name, value in network.named_parameters()}
    return dict(network.state_dict()), momentum


def measure(folder: Path, model: str, device: str, num_rounds: int) -> dict[str, Any]:
    """Seconds of each round; round 0 is the first save of the process."""
    weights, momentum = state_of(model, device)
    details: list[dict[str, Any]] = []
    options = CheckpointOptions(folder, Retention(keep=1), max_failures=1)
    saver = Saver(options, on_event=lambda step, event, detail: details.append(detail))
    saver.reserve([*weights.values(), *(state["momentum"] for state in momentum.values())])
    time.sleep(2)  # the first steps of a run
    saver_s, write_s, torch_save_s = [], [], []
    size_bytes = 0
    for number in range(num_rounds + 1):
        os.sync()
        started = time.perf_counter()
        saver.save(CheckpointContent(number, weights, momentum, {}), wait=False)
        saver_s.append(time.perf_counter() - started)
        while len(details) <= number:
            saver.poll()
            time.sleep(0.01)
        write_s.append(details[-1]["write_s"])
        size_bytes = details[-1]["size_bytes"]

        os.sync()
        started = time.perf_counter()
        torch.save({"model": weights, "optimizer": momentum}, folder / "torch.pt")
        torch_save_s.append(time.perf_counter() - started)
    saver.close()
    saved = load(folder / f"step-{num_rounds:08d}").model()
    assert all(torch.equal(saved[name], value.cpu()) for name, value in weights.items())
    return {"size_bytes": size_bytes, "saver_s": saver_s, "write_s": write_s, "torch_save_s": torch_save_s}


def summary(times: dict[str, Any]) -> dict[str, float]:
    """Medians over all rounds but the first, and the ratio, which has a goal."""
    saver_s, torch_save_s = (statistics.median(times[key][1:]) for key in ("saver_s", "torch_save_s"))
    return {
        "saver_s": saver_s,
        "saver_worst_s": max(times["saver_s"][1:]),
        "saver_first_s": times["saver_s"][0],
        "write_s": statistics.median(times["write_s"][1:]),
        "torch_save_s": torch_save_s,
        "ratio": saver_s / torch_save_s,
        "ratio_first": times["saver_s"][0] / times["torch_save_s"][0],
    }


def machine(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    system = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform()}
    return {**system, "num_cpus": os.cpu_count(), "num_threads": torch.get_num_threads(), "gpu": gpu}


def main() -> int:
    """Measure, print a table, write the figures; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the storage to be measured (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        times = measure(Path(folder), arguments.model, arguments.device, arguments.rounds)
    found = summary(times)
    print(f"{arguments.model}, {times['size_bytes'] / 1e6:.0f} MB, {arguments.device}, {arguments.rounds} rounds\n")
    print("| the training stops for | median | worst | first save |")
    print("|---|---:|---:|---:|")
    print(f"| Saver | {found['saver_s']:.3f} s | {found['saver_worst_s']:.3f} s | {found['saver_first_s']:.3f} s |")
    print(
        f"| torch.save | {found['torch_save_s']:.3f} s | {max(times['torch_save_s'][1:]):.3f} s "
        f"| {times['torch_save_s'][0]:.3f} s |"
    )
    print(f"| ratio (goal: at most {GOAL}) | {found['ratio']:.3f} | | {found['ratio_first']:.3f} |")
    print(f"\nMeanwhile the thread takes {found['write_s']:.2f} s to hash, write and sync.")
    record = {
        "question": "seconds that a checkpoint stops the training, Saver against torch.save",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(arguments.device),
        "model": arguments.model,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "summary": found,
        "times": times,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if found["ratio"] <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
