"""The sections of the benchmark on one GPU (benchmarks/training_gpu.py), in the order of their value.

Each runs in a process of its own and appends a line of JSON to a file for each measurement that it has finished, so
that a section that is stopped or fails keeps the others' results and its own.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_input import fed_trainers
from benchmarks.group_norms import SynchronisedLoop, compare_norms, exchanged_spans, group_of_one
from benchmarks.kernels import profiled
from benchmarks.measure import Run, speed_row, time_row
from benchmarks.peers import MinimalLoop, OurTrainer, Setting, synthetic
from benchmarks.variants import (
    Make,
    Timed,
    flagged,
    our_trainer,
    peers_of,
    timed,
    waiting_for,
    why_no_graph,
)
from resnet_dist.recipe.schema import BatchNormRecipe, OptimizerRecipe, Precision, RegularizationRecipe, SpeedRecipe
from resnet_dist.telemetry.flops import flops_per_image, peak_flops, why_no_peak

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plan:
    """What is measured. The first precision and batch are those of all sections but `precisions`."""

    model: str
    resolution: int
    precisions: tuple[Precision, ...]
    batches: tuple[int, ...]
    graph_batch: int  # small enough that launches of kernels take longer than the kernels
    resolutions: tuple[int, ...]  # of progressive training
    num_photos: int  # JPEGs of the section `input`
    rounds: int
    steps: int  # per turn
    warm_up_steps: int  # including cuDNN's benchmark and the capture of a graph
    compile: bool
    compile_peers: bool  # compile the minimal loop and timm's step too, each of which takes a minute


# What a worker of configs/rn50_8node.yaml does: a test compares them with the file.
SHIPPED_BATCH, SHIPPED_SPAN = 128, 64
SHIPPED: Mapping[str, Any] = {
    "optimizer": OptimizerRecipe(
        name="lars", momentum=0.9, weight_decay=2e-4, trust_coefficient=0.001, lr_in_momentum=True
    ),
    "regularization": RegularizationRecipe(label_smoothing=0.1),
}

# One key changed at a time, from the defaults of a config.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "channels_last: false": {"channels_last": False},
    "sgd_kernel: fused": {"sgd_kernel": "fused"},
    "sgd_kernel: loop": {"sgd_kernel": "loop"},
    "copy_stream: false": {"copy_stream": False},
    "cudnn_benchmark: false": {"cudnn_benchmark": False},
}
LEAD = 6  # steps: more than a decoder and `data.prefetch` work ahead
GPU_ONLY = ("copy_stream", "cudnn_benchmark")

# (peer, our variant that is compared with it, time or speed, goal); docs/benchmarks.md has the sources of the goals
COMPARISONS = (
    ("minimal", "ours", "time", 1.02),
    ("minimal, compiled", "ours, compiled", "time", 1.02),
    ("timm", "ours", "speed", 1.0),
    ("timm, compiled", "ours, compiled", "speed", 1.0),
    ("torchvision", "ours", "speed", 1.3),
    ("ours", "ours, compiled", "speed", 1.0),
    ("ours", "ours, CUDA graph", "speed", 1.0),
    ("plain DDP", "ours, DDP", "time", 1.02),
    ("rn50_8node", "rn50_8node, compiled", "speed", 1.05),  # configs/rn50_8node.yaml says what it takes
    ("rn50_8node", "rn50_8node, CUDA graph", "speed", 1.0),
    ("ours, DDP", "ours, DDP, CUDA graph", "speed", 1.0),
    ("SyncBatchNorm", "ours, exchanged batch norm", "time", 1.0),
    ("ours", "ours, exchanged batch norm", "time", None),
    ("synthetic", "DALI", "speed", 0.97),
    ("synthetic", "torchvision", "speed", 0.97),
)

Line = dict[str, Any]


class Benchmark:
    """The sections, on one device. Each yields its results one by one."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device

    def setting(self, precision: Precision | None = None, batch: int | None = None) -> Setting:
        """The setting of one comparison; the plan's first precision and batch by default."""
        plan = self.plan
        return Setting(
            plan.batches[0] if batch is None else batch,
            plan.resolution,
            plan.model,
            precision=plan.precisions[0] if precision is None else precision,
            device=self.device,
        )

    def step(self) -> Iterator[Line]:
        """A training step: ours, a minimal loop, torchvision's loop and timm's step."""
        yield self._compared(self.setting(), *peers_of(self.setting()))

    def precisions(self) -> Iterator[Line]:
        """The same for the other precisions and batches."""
        for precision, batch in itertools.product(self.plan.precisions, self.plan.batches):
            if (precision, batch) != (self.plan.precisions[0], self.plan.batches[0]):
                setting = self.setting(precision, batch)
                yield self._compared(setting, *peers_of(setting))

    def compile(self) -> Iterator[Line]:
        """`speed.compile`, beside a step of single kernels."""
        setting = self.setting()
        if not self.plan.compile:
            yield self._compared(setting, {}, {"ours, compiled": "not compiled by this plan"})
            return
        makers, absent = peers_of(setting, compiled=True)
        wanted = ["ours", "ours, compiled", *(["minimal, compiled", "timm, compiled"] * self.plan.compile_peers)]
        yield self._compared(setting, {name: makers[name] for name in wanted if name in makers}, absent)

    def shipped(self) -> Iterator[Line]:
        """The step of a worker of configs/rn50_8node.yaml, under DDP: single kernels, compiled, and as a graph."""
        full = self.plan.batches[0] >= SHIPPED_BATCH
        setting = self.setting(batch=SHIPPED_BATCH if full else 4)
        span = SHIPPED_SPAN if full else 2
        recipe = setting.recipe(batch_norm=BatchNormRecipe(span=span), **SHIPPED)
        ways = {"rn50_8node": SpeedRecipe(), "rn50_8node, compiled": SpeedRecipe(compile=True)}
        absent: dict[str, str] = {}
        if not self.plan.compile:
            absent["rn50_8node, compiled"] = "not compiled by this plan"
            del ways["rn50_8node, compiled"]
        if (reason := why_no_graph(setting)) is None:
            ways["rn50_8node, CUDA graph"] = SpeedRecipe(cuda_graph=True)
        else:
            absent["rn50_8node, CUDA graph"] = reason
        batches = synthetic(setting)

        def made(speed: SpeedRecipe) -> Run:
            own = replace(recipe, speed=speed)
            return flagged(own, self.device, OurTrainer(own, self.device, batches, wrapped=True))

        with group_of_one(self.device):
            yield self._compared(setting, {name: partial(made, speed) for name, speed in ways.items()}, absent)

    def graph(self) -> Iterator[Line]:
        """`speed.cuda_graph`, with a batch whose kernels are shorter than their launches."""
        setting = self.setting(batch=self.plan.graph_batch)
        batches = synthetic(setting)
        makers: dict[str, Make] = {"ours": partial(our_trainer, setting, SpeedRecipe(), batches)}
        absent: dict[str, str] = {}
        if (reason := why_no_graph(setting)) is None:
            makers["ours, CUDA graph"] = partial(our_trainer, setting, SpeedRecipe(cuda_graph=True), batches)
        else:
            absent["ours, CUDA graph"] = reason
        yield self._compared(setting, makers, absent)

    def ddp(self) -> Iterator[Line]:
        """DDP in a group of one process: its hooks, buckets and calls of NCCL, without a network."""
        with group_of_one(self.device):
            for batch in dict.fromkeys((self.plan.batches[0], self.plan.graph_batch)):
                setting = self.setting(batch=batch)
                batches = synthetic(setting)
                recipe = setting.recipe()
                makers: dict[str, Make] = {
                    "ours": partial(our_trainer, setting, SpeedRecipe(), batches),
                    "ours, DDP": partial(our_trainer, setting, SpeedRecipe(), batches, wrapped=True),
                    "plain DDP": lambda setting=setting, recipe=recipe, batches=batches: flagged(  # type: ignore[misc]
                        recipe, self.device, MinimalLoop(setting, batches, DistributedDataParallel)
                    ),
                }
                absent: dict[str, str] = {}
                if (reason := why_no_graph(setting)) is None:
                    speed = SpeedRecipe(cuda_graph=True)
                    makers["ours, DDP, CUDA graph"] = partial(our_trainer, setting, speed, batches, wrapped=True)
                else:
                    absent["ours, DDP, CUDA graph"] = reason
                yield self._compared(setting, makers, absent)

    def norms(self) -> Iterator[Line]:
        """Batch norm over several workers in a group of one: a whole step, and each shape of the network's stages."""
        setting = self.setting()
        batches = synthetic(setting)
        with group_of_one(self.device):
            makers: dict[str, Make] = {
                "ours": partial(our_trainer, setting, SpeedRecipe(), batches),
                "ours, exchanged batch norm": lambda: flagged(
                    setting.recipe(),
                    self.device,
                    OurTrainer(setting.recipe(), self.device, batches, spans=exchanged_spans(setting.batch)),
                ),
            }
            absent = {}
            if self.device.type == "cuda":
                makers["SyncBatchNorm"] = lambda: flagged(
                    setting.recipe(), self.device, SynchronisedLoop(setting, batches)
                )
            else:
                absent["SyncBatchNorm"] = "it does not support CPU tensors"
            yield self._compared(setting, makers, absent)
            batch = 64 if self.device.type == "cuda" else 2
            for found in compare_norms(self.device, batch, self.plan.resolution, self.plan.rounds, self.plan.steps):
                yield {"title": "batch norm alone", **found}

    def input(self) -> Iterator[Line]:
        """Steps fed by JPEG files through each decoder, beside images that are on the device already."""
        setting = self.setting()
        with tempfile.TemporaryDirectory() as folder:
            makers, absent = fed_trainers(setting, Path(folder), self.plan.num_photos)
            yield self._compared(setting, makers, absent, lead=True)

    def resolutions(self) -> Iterator[Line]:
        """Steps at the resolutions of `data.progressive`."""
        setting = self.setting()
        makers: dict[str, Make] = {}
        for pixels in self.plan.resolutions:
            own = replace(setting, resolution=pixels)
            makers[f"ours, {pixels} px"] = partial(our_trainer, own, SpeedRecipe(), synthetic(own))
        line = self._compared(setting, makers, {})
        line.pop("flops_utilisation")  # that of `setting`
        yield line

    def ablation(self) -> Iterator[Line]:
        """One speed key changed at a time; images come from the host, so that `copy_stream` matters."""
        setting = self.setting()
        batches = synthetic(setting, on_device=False)
        makers: dict[str, Make] = {}
        absent: dict[str, str] = {}
        for name, keys in ABLATION.items():
            if any(key in GPU_ONLY for key in keys) and self.device.type != "cuda":
                absent[name] = "no GPU"
            else:
                makers[name] = partial(our_trainer, setting, SpeedRecipe(**keys), batches)
        line = self._compared(setting, makers, absent)
        times = line["times_s"]
        line["rows"] = [
            speed_row(name, "defaults", times[name], times["defaults"], setting.batch).record()
            for name in times
            if name != "defaults" and "defaults" in times
        ]
        yield line

    def profile(self) -> Iterator[Line]:
        """The time of a step by kind of kernel: eager, compiled, and as a CUDA graph."""
        ways: list[tuple[str, Setting, SpeedRecipe]] = [("eager", self.setting(), SpeedRecipe())]
        small = self.setting(batch=self.plan.graph_batch)
        if why_no_graph(small) is None:
            ways.append(("CUDA graph", small, SpeedRecipe(cuda_graph=True)))
        if self.plan.compile:
            ways.append(("compiled", self.setting(), SpeedRecipe(compile=True)))
        for name, setting, speed in ways:
            run = our_trainer(setting, speed, synthetic(setting))
            run(self.plan.warm_up_steps)
            waiting_for(self.device)()
            found = profiled(run, self.plan.steps, self.device)
            yield {"title": f"{name}, {setting.precision}, {setting.batch}", **found}

    def tests(self) -> Iterator[Line]:
        """The tests in tests/gpu, where pytest is installed."""
        if importlib.util.find_spec("pytest") is None:
            yield {"title": "tests/gpu", "absent": {"tests/gpu": "pytest is not installed"}}
            return
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest"]
            done = subprocess.run([*command, f"--junitxml={report}", "tests/gpu"], cwd=ROOT)
            cases = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else iter(())
            results = {f"{case.get('classname')}::{case.get('name')}": _result_of(case) for case in cases}
        names = {kind: [name for name, found in results.items() if found == kind] for kind in ("failed", "skipped")}
        passed = len(results) - sum(map(len, names.values()))
        yield {"title": "tests/gpu", "exit_code": done.returncode, "passed": passed, **names}

    def _compared(
        self, setting: Setting, makers: Mapping[str, Make], absent: Mapping[str, str], *, lead: bool = False
    ) -> Line:
        plan = self.plan
        found = timed(
            makers,
            self.device,
            rounds=plan.rounds,
            steps=plan.steps,
            warm_up_steps=plan.warm_up_steps,
            lead=min(LEAD, plan.warm_up_steps) if lead else 0,
        )
        line: Line = {
            "title": f"{setting.precision}, {setting.batch} images",
            "precision": setting.precision,
            "batch": setting.batch,
            **asdict(found),
            "absent": {**absent, **found.absent},
            "images_per_s": {name: setting.batch / statistics.median(times) for name, times in found.times_s.items()},
            **self._utilisation(setting, found),
            "rows": list(_rows(setting, found.times_s)),
        }
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in line["images_per_s"].items())
        print(f"{line['title']}: {speeds} images/s", flush=True)
        return line

    def _utilisation(self, setting: Setting, found: Timed) -> Line:
        """Model FLOPs per second of each peer / the device's peak."""
        peak = peak_flops(self.device, setting.precision)
        if peak is None:
            return {"flops_utilisation": {}, "no_peak": why_no_peak(self.device, setting.precision)}
        flops = flops_per_image(setting.our_model(), setting.resolution) * setting.batch
        shares = {name: flops / statistics.median(times) / peak[0] for name, times in found.times_s.items()}
        return {"flops_utilisation": shares}


SECTIONS: Mapping[str, Callable[[Benchmark], Iterator[Line]]] = {
    "step": Benchmark.step,
    "compile": Benchmark.compile,
    "precisions": Benchmark.precisions,
    "shipped": Benchmark.shipped,
    "ddp": Benchmark.ddp,
    "norms": Benchmark.norms,
    "graph": Benchmark.graph,
    "input": Benchmark.input,
    "tests": Benchmark.tests,
    "resolutions": Benchmark.resolutions,
    "profile": Benchmark.profile,
    "ablation": Benchmark.ablation,
}


def run_section(name: str, plan: Plan, device: str, file: str) -> None:
    """Run a section in this process, which it may damage, and append its results to `file`. Exits with 1 on an error.

    The last line has the error: its type, its message and where it was raised.
    """
    os.setsid()  # so that the parent can end it together with the compiler's processes
    with Path(file).open("a") as lines:
        try:
            for line in SECTIONS[name](Benchmark(plan, torch.device(device))):
                lines.write(json.dumps(line) + "\n")
                lines.flush()
        except BaseException as error:
            lines.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise


def _rows(setting: Setting, times_s: Mapping[str, list[float]]) -> Iterator[Line]:
    for peer, own, measure, goal in COMPARISONS:
        if peer not in times_s or own not in times_s:
            continue
        what = f"{own}, {setting.precision}, {setting.batch}"
        if measure == "time":
            yield time_row(what, peer, times_s[own], times_s[peer], goal).record()
        else:
            yield speed_row(what, peer, times_s[own], times_s[peer], setting.batch, goal).record()


def _result_of(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


__all__ = ["ABLATION", "SECTIONS", "Benchmark", "Plan", "run_section"]
