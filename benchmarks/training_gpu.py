"""The speed of a training step on one GPU compared with peers, and the time of its kernels.

    python -m benchmarks.training_gpu [--device cuda|cpu] [--quick] [--only SECTION]

ResNet-50, 224 pixels, images of noise on the GPU. Requires torch and torchvision; timm for its peer. After each section
results are written to results/DATE-GPU.json, and as a report to results/DATE-GPU.md.

    peers      every precision and batch: ours, a minimal loop, torchvision's loop, timm's step; eager and compiled
    ablation   one speed key changed at a time
    norms      batch norm over several workers against torch.nn.SyncBatchNorm, in a process group of one
    profile    the time of a step by kind of kernel
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report import report
from benchmarks.group_norms import compare_norms
from benchmarks.kernels import profiled
from benchmarks.measure import RESULTS, machine, write
from benchmarks.peers import Setting, synthetic
from benchmarks.variants import GRAPH_UP_TO, our_trainer, peers_of, timed, waiting_for
from resnet_dist.recipe.schema import Precision, SpeedRecipe
from resnet_dist.telemetry.flops import flops_per_image, peak_flops


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    model: str
    resolution: int
    batches: tuple[int, ...]
    precisions: tuple[Precision, ...]
    compile_at: tuple[int, ...]  # batches for which peers are compiled, which takes a minute each
    ablation: tuple[int, ...]  # batches
    rounds: int
    steps: int  # per turn
    warm_up_steps: int  # including compilation, cuDNN's benchmark and the capture of a graph


FULL = Plan("resnet50", 224, (64, 128, 256, 512), ("bfloat16", "float16", "tf32"), (256,), (64, 256), 6, 10, 15)
QUICK_GPU = Plan("resnet50", 224, (64,), ("bfloat16",), (64,), (64,), 3, 5, 13)
QUICK_CPU = Plan("resnet18", 32, (2,), ("float32",), (), (2,), 1, 1, 1)

# One key changed at a time, from the defaults of a config.
ABLATION: dict[str, dict[str, Any]] = {
    "defaults": {},
    "channels_last: false": {"channels_last": False},
    "compile: true": {"compile": True},
    "cuda_graph: true": {"cuda_graph": True},
    "sgd_kernel: fused": {"sgd_kernel": "fused"},
    "sgd_kernel: loop": {"sgd_kernel": "loop"},
    "copy_stream: false": {"copy_stream": False},
    "cudnn_benchmark: false": {"cudnn_benchmark": False},
}
GPU_ONLY = ("cuda_graph", "copy_stream", "cudnn_benchmark")


class Benchmark:
    """The sections, on one device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device

    def setting(self, precision: Precision, batch: int) -> Setting:
        """Of one comparison."""
        plan = self.plan
        return Setting(batch, plan.resolution, plan.model, precision=precision, device=self.device)

    def peers(self) -> list[dict[str, Any]]:
        """Images/s of every peer, for every precision and batch."""
        lines = []
        for precision, batch in itertools.product(self.plan.precisions, self.plan.batches):
            setting = self.setting(precision, batch)
            makers, absent = peers_of(setting, compiled=batch in self.plan.compile_at and precision != "tf32")
            found = self._timed(makers)
            lines.append(
                {
                    "precision": precision,
                    "batch": batch,
                    **asdict(found),
                    "absent": {**absent, **found.absent},
                    "images_per_s": _images_per_s(found.times_s, batch),
                    "flops_utilisation": self._utilisation(setting, found.times_s),
                }
            )
            print(f"{precision}, {batch} images: {_short(lines[-1]['images_per_s'])}", flush=True)
        return lines

    def ablation(self) -> list[dict[str, Any]]:
        """Images/s with one speed key changed at a time; images come from the host, so that `copy_stream` matters."""
        lines = []
        for batch in self.plan.ablation:
            setting = self.setting(self.plan.precisions[0], batch)
            batches = synthetic(setting, on_device=False)
            makers: dict[str, Callable[[], Any]] = {}
            absent: dict[str, str] = {}
            for name, keys in ABLATION.items():
                reason = self._why_not(keys, batch)
                if reason is not None:
                    absent[name] = reason
                else:
                    speed = SpeedRecipe(**keys)
                    makers[name] = partial(our_trainer, setting, speed, batches)
            found = self._timed(makers)
            lines.append(
                {
                    "precision": setting.precision,
                    "batch": batch,
                    **asdict(found),
                    "absent": {**absent, **found.absent},
                    "images_per_s": _images_per_s(found.times_s, batch),
                }
            )
            print(f"one key changed, {batch} images: {_short(lines[-1]['images_per_s'])}", flush=True)
        return lines

    def norms(self) -> list[dict[str, Any]]:
        """Seconds of batch norm, forward and backward, on the shapes of the network's stages."""
        batch = 64 if self.device.type == "cuda" else 2
        return compare_norms(self.device, batch, self.plan.resolution, self.plan.rounds, self.plan.steps)

    def profile(self) -> list[dict[str, Any]]:
        """The time of a step by kind of kernel: eager, compiled, and as a CUDA graph."""
        batch = max(size for size in self.plan.batches if size <= 256)
        setting = self.setting(self.plan.precisions[0], batch)
        ways: dict[str, SpeedRecipe] = {"eager": SpeedRecipe()}
        if batch in self.plan.compile_at:
            ways["compiled"] = SpeedRecipe(compile=True)
        if self.device.type == "cuda" and batch <= GRAPH_UP_TO:
            ways["CUDA graph"] = SpeedRecipe(cuda_graph=True)
        lines = []
        for name, speed in ways.items():
            run = our_trainer(setting, speed, synthetic(setting))
            run(self.plan.warm_up_steps)
            waiting_for(self.device)()
            found = profiled(run, self.plan.steps, self.device)
            lines.append({"way": name, "precision": setting.precision, "batch": batch, **found})
        return lines

    def _timed(self, makers: dict[str, Callable[[], Any]]) -> Any:
        plan = self.plan
        return timed(makers, self.device, rounds=plan.rounds, steps=plan.steps, warm_up_steps=plan.warm_up_steps)

    def _why_not(self, keys: dict[str, Any], batch: int) -> str | None:
        if any(key in GPU_ONLY for key in keys) and self.device.type != "cuda":
            return "no GPU"
        if "cuda_graph" in keys and batch > GRAPH_UP_TO:
            return f"only up to {GRAPH_UP_TO} images"
        if "compile" in keys and batch not in self.plan.compile_at:
            return "not compiled for this batch"
        return None

    def _utilisation(self, setting: Setting, times_s: dict[str, list[float]]) -> dict[str, float]:
        """Model FLOPs per second of each peer / the device's peak."""
        peak = peak_flops(self.device, setting.precision)
        if peak is None:
            return {}
        flops = flops_per_image(setting.our_model(), setting.resolution) * setting.batch
        return {name: flops / statistics.median(times) / peak[0] for name, times in times_s.items()}


def _images_per_s(times_s: dict[str, list[float]], batch: int) -> dict[str, float]:
    return {name: batch / statistics.median(times) for name, times in times_s.items()}


def _short(images_per_s: dict[str, float]) -> str:
    return ", ".join(f"{name} {speed:,.0f}" for name, speed in images_per_s.items())


SECTIONS = ("peers", "ablation", "norms", "profile")


def main(arguments: list[str] | None = None) -> int:
    """Measure section by section; write JSON and a report after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="check that it works, in a few minutes")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given several times")
    parser.add_argument("--batches", type=int, nargs="+", help="images per step")
    parser.add_argument("--precisions", nargs="+", choices=("bfloat16", "float16", "tf32", "float32"))
    parser.add_argument("--compile-at", type=int, nargs="*", help="batches for which peers are compiled too")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu --quick checks that the benchmark works")
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    plan = FULL if not given.quick else QUICK_GPU if given.device == "cuda" else QUICK_CPU
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("batches", "precisions", "compile_at", "rounds")
        if (value := getattr(given, name)) is not None
    }
    plan = replace(plan, **changes)
    benchmark = Benchmark(plan, device)
    name = f"{datetime.datetime.now(datetime.UTC).date()}-{_slug(machine(device)['gpu'] or 'cpu')}"
    content: dict[str, Any] = {"question": "training on one GPU", "plan": asdict(plan), "device": given.device}
    for section in given.only or SECTIONS:
        content[section] = getattr(benchmark, section)()
        file = write(name, content, device, given.folder)
        file.with_suffix(".md").write_text(report(file))
    print(report(file))
    print(f"\n{file}\n{file.with_suffix('.md')}")
    return 0


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    raise SystemExit(main())
