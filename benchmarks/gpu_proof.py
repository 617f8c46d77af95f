"""What `make gpu-proof SIZE=hour` and `SIZE=imagenet` run; `SIZE=quick` is benchmarks/gpu.sh.

    python -m benchmarks.gpu_proof hour [--device cpu] [--minutes M] [--only STEP] [--work FOLDER]
    python -m benchmarks.gpu_proof imagenet --data FOLDER --storage FOLDER [--device cpu] [key=value ...]

hour        one GPU: doctor; runs of the launcher on JPEG files with DALI, by the local supervisor, through Ray, with
            DeepSpeed, compiled and as a CUDA graph; the sections of benchmarks/training_gpu.py with all precisions and
            batches; 100 faults
imagenet    eight GPUs: configs/recipes/nvidia_convnets_2048.yaml to its published accuracy. The same command again
            resumes the run.

Each writes benchmarks/results/DATE-GPU-SIZE.json and a report (benchmarks/proof.py). `--device cpu` does the same with
a tiny network, to check the scripts; `key=value` overrides the recipe, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_input import write_photos
from benchmarks.gpu_report import checks_of, report
from benchmarks.gpu_sections import SECTIONS
from benchmarks.measure import RESULTS
from benchmarks.proof import ProofFile, check, file_hash, send_in
from benchmarks.training_gpu import CPU, FULL, measured
from launcher.config import yaml_text
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import format as checkpoints
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.restore import Checkpoint
from resnet_dist.telemetry.metrics_file import BOTTLENECK_EVENTS, read_metrics

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "recipes" / "nvidia_convnets_2048.yaml"
PUBLISHED_TOP1, PUBLISHED_SD = 77.12, 0.11  # percent; the line "Expect" of the recipe
SECTION_MINUTES, SOAK_MINUTES = 24.0, 28.0
FULL_COSTS = 3.0  # times that the sections with all precisions and batches take as long as `QUICK`
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
_LOSS_WITHIN = 0.02  # relative; of the first step, whose weights are the same

# A run of the hour on a GPU, and its stand-in on a CPU.
CONFIG: Mapping[str, Any] = {
    "schema": 1,
    "place": "local",
    "workers": 1,
    "model": {"name": "resnet50", "num_classes": 2},
    "data": {"resolution": 224},
    "batch": {"size": 128},
    "duration": "60 steps",
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"peak_lr": 1.0, "warmup": "10 steps", "decay": "cosine"},
    "precision": "bfloat16",
    "deterministic": True,
    "resources": {"gpus_per_worker": 1, "cpus_per_worker": os.cpu_count() or 1},
    "evaluate": {"every": "60 steps"},
    "checkpoint": {"every": "30 steps"},
    "log": {"every_steps": 1, "tensorboard": False},
}
STAND_IN: Mapping[str, Any] = {
    "model": {"name": "resnet8", "num_classes": 2},
    "data": {"resolution": 16},
    "batch": {"size": 8},
    "duration": "6 steps",
    "schedule": {"peak_lr": 0.1, "warmup": "1 step", "decay": "cosine"},
    "precision": "float32",
    "deterministic": False,
    "resources": {"gpus_per_worker": 0, "cpus_per_worker": 1},
    "evaluate": {"every": "6 steps"},
    "checkpoint": {"every": "3 steps"},
}


class Hour:
    """The steps of the size `hour`. Each adds checks and details to the result file."""

    def __init__(self, proof: ProofFile, device: torch.device, work: Path, minutes: float) -> None:
        self.proof, self.device, self.work = proof, device, work
        self.content = proof.content
        self._deadline = time.monotonic() + minutes * 60
        self._on_gpu = device.type == "cuda"
        self._checks: list[dict[str, Any]] = []
        self.content["runs"] = {}

    def run(self, names: Sequence[str]) -> bool:
        """Take the steps `names`; returns whether all of their checks were reached."""
        for name in names:
            print(f"== {name}", flush=True)
            try:
                STEPS[name](self)
            except Exception as error:  # the others are worth having
                self._check(f"step {name}", f"{type(error).__name__}: {error}"[:300], "runs to its end", False)
            self._write()
        return all(line["reached"] is not False for line in self.content["checks"])

    def doctor(self) -> None:
        """`launcher doctor`."""
        done = self._python("-m", "launcher", "doctor", "--json", *([] if self._on_gpu else ["--quick"]), timeout_s=400)
        counts = Counter(finding["status"] for finding in json.loads(done.stdout)["findings"])
        found = f"exit code {done.returncode}: {', '.join(f'{num} {status}' for status, num in counts.items())}"
        self._check("launcher doctor", found, "exit code 0", done.returncode == 0)

    def sections(self) -> None:
        """Those of benchmarks/training_gpu.py."""
        names = list(SECTIONS) if self._on_gpu else ["step"]
        plan = FULL if self._on_gpu else CPU
        measured(self.proof, plan, self.device, names, SECTION_MINUTES, FULL_COSTS)

    def runs(self) -> None:
        """Runs of the launcher on JPEG files, which differ in one thing from the first."""
        first = self._first_run()
        gpu_only: dict[str, list[str]] = {}
        if self._on_gpu:
            gpu_only = {"compiled": ["speed.compile=true"], "CUDA graph": ["speed.cuda_graph=true"]}
        else:
            self.content["not_run"] |= dict.fromkeys(("run compiled", "run CUDA graph"), "no GPU")
        others = {
            "zero-1": ["engine.name=zero", "engine.stage=1"],
            "zero-2": ["engine.name=zero", "engine.stage=2"],
            "CPU decoder": ["data.decoder=torchvision"],
            "DALI": ["data.decoder=dali"],
            **gpu_only,
        }
        for name, overrides in others.items():
            self._compare_losses(first, self._train(name, *overrides))

    def ray(self) -> None:
        """The first run through Ray Train: the same weights, bit for bit."""
        first, through_ray = self._first_run(), self._train("ray", "place=ray")
        both = [newest(run) for run in (first, through_ray) if run is not None]
        hashes = {checkpoint.files[checkpoints.MODEL].sha256 for checkpoint in both if checkpoint is not None}
        same = len(both) == 2 and None not in both and len(hashes) == 1
        what = "weights through Ray and by the local supervisor"
        self._check(what, "the same" if same else "different", "the same, bit for bit", same)

    def soak(self) -> None:
        """100 faults at random moments of a run on this device; on a CPU one."""
        output = self.work / "soak.json"
        minutes = min(SOAK_MINUTES, max((self._deadline - time.monotonic()) / 60, 3.0))
        size = ["--faults", "100", "--gpu"] if self._on_gpu else ["--faults", "1"]
        done = self._python(
            *("-m", "benchmarks.soak", *size, "--minutes", f"{minutes:.0f}", "--output", str(output)),
            timeout_s=2 * minutes * 60 + 900,
        )
        if not output.exists():
            raise RuntimeError(_last(done))
        found = json.loads(output.read_text())
        self.content["soak"] = found
        faults, left = found["faults"], sum(len(kind) for kind in found["left_over"].values())
        median_s = found["seconds_to_next_new_step"]["median"]
        took = "" if median_s is None else f", {median_s:.1f} s to the next new step in the median"
        self._check("faults", f"{faults}{took}", "100" if self._on_gpu else "1", faults >= (100 if self._on_gpu else 1))
        same = "the same" if found["same_weights"] else "different"
        self._check("weights after the faults", same, "those of the undisturbed run", found["same_weights"])
        self._check("leftover processes, files, ports and leases", f"{left}", "0", left == 0)

    def _first_run(self) -> RunDirectory | None:
        """The run with which the others are compared; None if it fails."""
        run = RunDirectory(self.work / "runs", "local")
        if run.is_finished():
            return run
        for split, num in (("train", 2_048 if self._on_gpu else 24), ("val", 256 if self._on_gpu else 8)):
            write_photos(self.work / "photos", num, split)
        trained = self._train("local")
        self.content["hashes"] |= hashes_of(trained) if trained is not None else {}
        return trained

    def _train(self, name: str, *overrides: str) -> RunDirectory | None:
        """A run to its end; None if it fails, which is a check."""
        config = {**CONFIG, **({} if self._on_gpu else STAND_IN)}
        run_name = name.lower().replace(" ", "-")
        config |= {"name": run_name, "storage": str(self.work / "runs")}
        config["data"] = {**config["data"], "root": str(self.work / "photos")}
        file = self.work / f"{run_name}.yaml"
        file.write_text(yaml_text.dump(config))
        done = self._python("-m", "launcher.train", str(file), *overrides, timeout_s=900)
        run = RunDirectory(self.work / "runs", run_name)
        facts = run_facts(run)
        self.content["runs"][name] = {"overrides": list(overrides), "exit_code": done.returncode, **facts}
        speed = f", {facts['images_per_s']:,.0f} images/s" if "images_per_s" in facts else ""
        found = f"exit code {done.returncode}{speed}"
        if done.returncode:
            found += f": {_last(done)}"
        self._check(f"run {name}", found, "exit code 0", done.returncode == 0)
        return None if done.returncode else run

    def _compare_losses(self, first: RunDirectory | None, other: RunDirectory | None) -> None:
        if first is None or other is None:
            return
        one, two = (_first_loss(run) for run in (first, other))
        gap = abs(one - two) / abs(one)
        what = f"loss of the first step, {other.path.name} and local"
        self._check(what, f"{gap:.2%} apart", f"at most {_LOSS_WITHIN:.0%}", gap <= _LOSS_WITHIN)

    def _check(self, what: str, found: str, goal: str, reached: bool) -> None:
        self._checks.append(check(what, found, goal, reached))
        print(f"   {what}: {found}{'' if reached else f' (MISSED: {goal})'}", flush=True)

    def _write(self) -> None:
        measured_checks = checks_of(self.content) if self.content.get("sections") else []
        self.content["checks"] = [*self._checks, *measured_checks]
        write_both(self.proof)

    def _python(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return python(*arguments, timeout_s=timeout_s)


STEPS: Mapping[str, Callable[[Hour], None]] = {
    "doctor": Hour.doctor,
    "runs": Hour.runs,
    "ray": Hour.ray,
    "sections": Hour.sections,
    "soak": Hour.soak,
}


def imagenet(proof: ProofFile, device: torch.device, data: str, storage: Path, overrides: Sequence[str]) -> bool:
    """Train the recipe, or go on with it, and write the result; returns whether the accuracy was reached.

    With `overrides` the accuracy is shown and not judged, since the recipe is another one.
    """
    command = [str(RECIPE), f"data.root={data}", f"storage={storage}", *overrides]
    done = subprocess.run([sys.executable, "-m", "launcher.train", *command], cwd=ROOT, env=_environment())
    found = [part.partition("=")[2] for part in overrides if part.startswith("name=")]
    run = RunDirectory(storage, found[-1] if found else "nvidia-convnets-2048")
    facts, content = run_facts(run), proof.content
    content |= {
        "config": str(RECIPE.relative_to(ROOT)),
        "runs": {run.path.name: {"overrides": list(overrides), **facts}},
    }
    content["hashes"] |= hashes_of(run)
    judged = not overrides and device.type == "cuda"
    goal = PUBLISHED_TOP1 - 2 * PUBLISHED_SD
    top1 = 100 * facts["top1"] if facts.get("top1") is not None else math.nan
    ended = done.returncode == 0 and run.is_finished()
    shown = f"{top1:.2f} %{', with other keys than the recipe' if overrides else ''}"
    wanted = f"at least {goal:.2f} % ({PUBLISHED_TOP1} ± {PUBLISHED_SD} % is published)"
    content["checks"] = [
        check("the run", f"exit code {done.returncode}", "runs to its end", ended),
        check("top-1", shown, wanted, top1 >= goal if judged and ended else None),
    ]
    if "images_per_s" in facts:
        content["checks"].append(check("speed", f"{facts['images_per_s']:,.0f} images/s while training"))
    if not ended:
        print(f"The run has not ended (exit code {done.returncode}). The same command goes on with it.")
    write_both(proof)
    return ended and (not judged or top1 >= goal)


def run_facts(run: RunDirectory) -> dict[str, Any]:
    """The summary of a finished run, its number of attempts, and where the time of a step went."""
    facts = {
        key: value
        for key, value in (run.summary() or {}).items()
        if key in ("step", "top1", "loss", "images_per_s", "time_s", "training_s", "start_s", "duration")
    }
    facts["attempts"] = len(run.attempts())
    for record in read_metrics(run.metrics) if run.metrics.exists() else ():
        if record.get("event") in BOTTLENECK_EVENTS:
            facts["bottleneck"] = record["detail"]["text"]
    return facts


def hashes_of(run: RunDirectory) -> dict[str, str]:
    """Those of a run's resolved config, of its newest weights, and of the names and bytes of its training images."""
    checkpoint = newest(run)
    found = {"config": file_hash(run.config)} if run.config.exists() else {}
    if checkpoint is not None:
        found |= {
            f"weights of step {checkpoint.step}": checkpoint.files[checkpoints.MODEL].sha256,
            "index of the training images (names, labels, sizes)": checkpoint.state["data"],
        }
        if checkpoint.state.get("data_contents"):
            found["bytes of the training images"] = checkpoint.state["data_contents"]
    return found


def newest(run: RunDirectory) -> Checkpoint | None:
    """The newest checkpoint of a run."""
    return restore.newest(run.checkpoints)


def write_both(proof: ProofFile) -> Path:
    """Write the result file and its report; returns the path of the first."""
    file = proof.write()
    file.with_suffix(".md").write_text(report(json.loads(file.read_text())))
    return file


def python(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """A command of this interpreter in the repository; ended with its exit code 124 after `timeout_s`."""
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, "", f"stopped after {error.timeout:.0f} s")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _TORCHRUN}


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1][:300]


def _first_loss(run: RunDirectory) -> float:
    return next(float(record["loss"]) for record in read_metrics(run.metrics) if record.get("kind") == "train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two sizes; 0 if every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("hour", "imagenet"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="imagenet: of the recipe")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="for the result file")
    parser.add_argument("--minutes", type=float, default=60.0, help="hour: for all of it (%(default)g)")
    parser.add_argument("--only", choices=STEPS, action="append", help="hour: may be given several times")
    parser.add_argument("--work", type=Path, help="hour: folder of its runs, kept (default: a temporary one)")
    parser.add_argument("--data", help="imagenet: folder with train/ and val/, or another data.root")
    parser.add_argument("--storage", type=Path, help="imagenet: folder for the run")
    given = parser.parse_intermixed_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu checks that the script works")
    if given.size == "imagenet" and (given.data is None or given.storage is None):
        parser.error("imagenet needs --data and --storage")
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    proof = ProofFile(given.size, device, given.folder)
    if given.size == "imagenet":
        reached = imagenet(proof, device, given.data, given.storage.absolute(), given.overrides)
    else:
        work = given.work or Path(tempfile.mkdtemp(prefix="gpu-proof-"))
        work.mkdir(parents=True, exist_ok=True)
        try:
            reached = Hour(proof, device, work.absolute(), given.minutes).run(given.only or list(STEPS))
        finally:
            if given.work is None:
                shutil.rmtree(work, ignore_errors=True)
    file = write_both(proof)
    print(f"\n{file.with_suffix('.md').read_text()}\n{send_in(file)}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
