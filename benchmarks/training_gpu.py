"""The speed of a training step on one GPU compared with peers, and the time of its kernels.

    python -m benchmarks.training_gpu [--device cuda|cpu] [--minutes M] [--only SECTION]

ResNet-50, 224 pixels, images of noise on the GPU; on a CPU a small network, to check that it works. Requires torch and
torchvision; timm and DALI for their rows, pytest for the tests. After each section results are written to
results/DATE-GPU-quick.json, with a report of the same name in Markdown. Sections run in the order of their value, each
in a process of its own, until the minutes are over; those that would not fit are left out and listed.

    step         ours, a minimal loop, torchvision's loop, timm's step
    compile      `speed.compile`
    precisions   the first section for other precisions and batches
    shipped      the step of a worker of configs/rn50_8node.yaml, also compiled and as a CUDA graph
    ddp          DDP with NCCL, in a group of one process
    norms        batch norm over several workers against torch.nn.SyncBatchNorm, in a process group of one
    graph        `speed.cuda_graph`
    input        steps fed by JPEG files, decoded by DALI (`mixed`) and by torchvision's decoder
    tests        tests/gpu
    resolutions  steps of progressive training
    profile      the time of a step by kind of kernel
    ablation     one speed key changed at a time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report import checks_of, report
from benchmarks.gpu_sections import SECTIONS, Plan, run_section
from benchmarks.measure import FAILED, RESULTS
from benchmarks.proof import ProofFile, send_in

MARGIN_S = 20.0  # of the whole time: for imports, the report and the end of a section

# Seconds that a section is expected to take on an H100 with 16 CPUs, from its steps at 2,800 images/s, 10 s for the
# start and cuDNN's benchmark, and 45 s for a compilation. No GPU has run them.
EXPECTED_S: Mapping[str, float] = {
    "step": 30,
    "compile": 65,
    "precisions": 35,
    "shipped": 70,
    "ddp": 30,
    "norms": 35,
    "graph": 20,
    "input": 35,
    "tests": 45,
    "resolutions": 30,
    "profile": 35,
    "ablation": 30,
}
LIMIT = 3.0  # times that, then a section is stopped, so that it does not take the time of the others

QUICK = Plan(
    model="resnet50",
    resolution=224,
    precisions=("bfloat16", "float16"),
    batches=(256,),
    graph_batch=64,
    resolutions=(128, 160, 192, 224),
    num_photos=1024,
    rounds=5,
    steps=6,
    warm_up_steps=13,
    compile=True,
    compile_peers=False,
)
FULL = replace(
    QUICK,
    precisions=("bfloat16", "float16", "tf32"),
    batches=(256, 64),
    rounds=7,
    steps=10,
    compile_peers=True,
)
CPU = Plan(
    model="resnet18",
    resolution=32,
    precisions=("float32", "bfloat16"),
    batches=(2,),
    graph_batch=2,
    resolutions=(16, 32),
    num_photos=8,
    rounds=1,
    steps=1,
    warm_up_steps=1,
    compile=False,
    compile_peers=False,
)


@dataclass(frozen=True)
class Ran:
    """What a section did. `problem` is why it did not end; empty if it did."""

    lines: list[dict[str, Any]]
    seconds: float
    problem: str

    @property
    def failed(self) -> bool:
        """Whether something raised an error, as opposed to being absent or too slow."""
        reasons = [reason for line in self.lines for reason in line.get("absent", {}).values()]
        return (
            bool(self.problem)
            or any(line.get("failed") for line in self.lines)
            or any(reason.startswith(FAILED) for reason in reasons)
        )


class Sections:
    """Runs sections one after the other, each in a process of its own, until `deadline` (of time.monotonic)."""

    def __init__(self, plan: Plan, device: torch.device, deadline: float) -> None:
        self._plan, self._device, self._deadline = plan, device, deadline
        # A server that has imported torch, and not touched the GPU, forks for each section.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.gpu_sections"])

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def run(self, name: str, limit_s: float) -> Ran:
        """Run a section until its end, for at most `limit_s` and until the deadline."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lines"
            process = self._context.Process(target=run_section, args=(name, self._plan, str(self._device), str(file)))
            process.start()
            try:
                process.join(max(min(self.left_s(), limit_s), 0.0))
                in_time = process.exitcode is not None
            finally:  # also after Ctrl-C, which the section does not get
                if process.exitcode is None:
                    _end(process)
            lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        seconds = time.monotonic() - started
        error = next((line["error"] for line in lines if "error" in line), "")
        lines = [line for line in lines if "error" not in line]
        if not in_time:
            return Ran(lines, seconds, f"stopped after {seconds:.0f} s")
        return Ran(lines, seconds, error or _ending(process.exitcode))


def _end(process: BaseProcess) -> None:
    """Kill a section with the processes that it has started."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):  # it may not have its own group of processes yet
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}" if exit_code else ""


def measured(
    proof: ProofFile, plan: Plan, device: torch.device, names: Sequence[str], minutes: float, more: float = 1.0
) -> int:
    """Run the sections `names`, and write the result file and its report after each. Returns how many failed.

    minutes    for all of them
    more       times that `plan` takes as long as `QUICK`
    """
    sections, content, num_failed = Sections(plan, device, time.monotonic() + minutes * 60), proof.content, 0
    content |= {"plan": asdict(plan), "sections": {}}
    earlier = list(content["checks"])
    for name in names:
        expected_s = EXPECTED_S[name] * more
        if sections.left_s() < expected_s:
            content["not_run"][name] = f"it takes about {expected_s:.0f} s, and {sections.left_s():.0f} s were left"
            print(f"-- {name}: not run, {content['not_run'][name]}", flush=True)
        else:
            print(f"-- {name}", flush=True)
            ran = sections.run(name, LIMIT * expected_s)
            content["sections"][name] = {"lines": ran.lines, "seconds": round(ran.seconds, 1), "problem": ran.problem}
            num_failed += ran.failed
            print(f"   {ran.seconds:.0f} s{f', {ran.problem}' if ran.problem else ''}", flush=True)
        content["checks"] = [*earlier, *checks_of(content)]
        file = proof.write()
        file.with_suffix(".md").write_text(report(json.loads(file.read_text())))
    return num_failed


def main(arguments: list[str] | None = None) -> int:
    """Measure section by section; returns 1 if one of them failed."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (%(default)g)")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given several times")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu checks that the benchmark works")
    device = torch.device("cuda", 0) if given.device == "cuda" else torch.device("cpu")
    proof = ProofFile("quick", device, given.folder)
    left = given.minutes - (MARGIN_S + time.monotonic() - started) / 60
    num_failed = measured(proof, QUICK if given.device == "cuda" else CPU, device, given.only or list(SECTIONS), left)
    file = proof.write()
    print(f"\n{file.with_suffix('.md').read_text()}\n{send_in(file)}")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
