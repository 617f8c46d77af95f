"""Result files of `make gpu-proof`: benchmarks/results/DATE-GPU-SIZE.json, with a report of the same name in Markdown.

A file of every size has the same head, from which docs/benchmarks.md and docs/tried.md are made:

    proof       1, the format
    size        quick, hour or imagenet
    time, commit, machine, gpu      when, what (`with changes` if files were changed) and where
    hashes      SHA-256 of the code; of a run's config, last weights and index of the images
    checks      what was checked: {what, found, goal, reached}; reached is null without a goal
    not_run     {section: reason}
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, machine, table, write

ROOT = Path(__file__).parents[1]
FORMAT = 1
SIZES = {
    "quick": "one GPU, 8 minutes: the speed of a training step",
    "hour": "one GPU, an hour: the whole stack, with DALI, Ray, DeepSpeed and 100 faults",
    "imagenet": "eight GPUs with ImageNet: a recipe to its published accuracy",
}
_CODE = ("launcher", "resnet_dist", "cluster", "benchmarks", "configs")
_SMI = {"driver": "driver_version", "memory": "memory.total", "power limit": "power.limit", "clock": "clocks.max.sm"}


class ProofFile:
    """The result file of one run of `make gpu-proof`. It is written anew after each section."""

    def __init__(self, size: str, device: torch.device, folder: Path = RESULTS) -> None:
        self.size, self._device, self._folder = size, device, folder
        self.content: dict[str, Any] = {
            "proof": FORMAT,
            "size": size,
            "device": device.type,
            "gpu": gpu_facts() if device.type == "cuda" else {},
            "hashes": {"code": code_hash()},
            "checks": [],
            "not_run": {},
        }
        gpu = machine(device)["gpu"] or "cpu"
        self.name = f"{datetime.datetime.now(datetime.UTC).date()}-{_slug(gpu)}-{size}"

    def write(self) -> Path:
        """Write the JSON file; returns its path."""
        return write(self.name, self.content, self._device, self._folder)


def gpu_facts() -> dict[str, str]:
    """The number of GPUs, the driver, memory, power limit and clock of the first, and NCCL's version."""
    facts = {"GPUs": str(torch.cuda.device_count())}
    query = f"--query-gpu={','.join(_SMI.values())}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return facts
    facts |= zip(_SMI, (value.strip() for value in done.stdout.strip().split(",")), strict=False)
    if torch.distributed.is_nccl_available():
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return facts


def code_hash() -> str:
    """SHA-256 of the names and contents of the program's files. Needs no git."""
    digest = hashlib.sha256()
    for package in _CODE:
        for file in sorted((ROOT / package).rglob("*")):
            if file.suffix in (".py", ".sh", ".yaml", ".json") and RESULTS not in file.parents:
                digest.update(f"{file.relative_to(ROOT)}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check(what: str, found: str, goal: str = "", reached: bool | None = None) -> dict[str, Any]:
    """One line of `checks`."""
    return {"what": what, "found": found, "goal": goal, "reached": reached}


def proofs(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The contents of the result files in `folder` with their `file`, oldest first. Those of CPUs are left out."""
    found = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        if content.get("proof") == FORMAT and content["device"] == "cuda":
            found.append({**content, "file": file.stem})
    return sorted(found, key=lambda content: str(content["time"]))


def facts_table(found: list[dict[str, Any]]) -> str:
    """One line per result file: where and with what it was made, and how many goals were reached."""
    head = ("size", "GPU", "date", "commit", "torch", "goals reached", "not run")
    return table(head, [_facts(content) for content in found])


def _facts(content: Mapping[str, Any]) -> list[str]:
    gpus = int(content["gpu"].get("GPUs", 1)) if content["size"] == "imagenet" else 1
    judged = [line["reached"] for line in content["checks"] if line["reached"] is not None]
    return [
        content["size"],
        f"{gpus} x {content['machine']['gpu']}" if gpus > 1 else content["machine"]["gpu"],
        content["time"][:10],
        content["commit"] or "unknown",
        content["machine"]["torch"],
        f"{sum(judged)} of {len(judged)}",
        ", ".join(content["not_run"]) or "-",
    ]


def checks_table(content: Mapping[str, Any]) -> str:
    """The checks of one result file."""
    reached = {None: "", True: "yes", False: "no"}
    rows = [[line["what"], line["found"], line["goal"], reached[line["reached"]]] for line in content["checks"]]
    return table(("what", "found", "goal", "reached"), rows)


def head_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """Machine, versions, commit and hashes, as Markdown."""
    machine = content["machine"]
    known = ("gpu", "cuda", "cudnn", "torch", "torchvision", "timm", "deepspeed", "python", "cpu", "num_cpus", "system")
    yield f"{content['time']}, commit {content['commit'] or 'unknown'}."
    facts = [f"{name} {machine[name]}" for name in known if machine[name] is not None]
    yield "; ".join([*facts, *(f"{name} {value}" for name, value in content["gpu"].items())]) + "."
    yield ""
    yield from (f"- SHA-256 of the {name}: `{value}`" for name, value in content["hashes"].items())
    yield from (f"- not run: {name} ({reason})" for name, reason in content["not_run"].items())


def send_in(file: Path) -> str:
    """How to send a result in, for the end of a script."""
    try:
        shown: Path | str = file.relative_to(Path.cwd())
    except ValueError:
        shown = file
    return (
        f"Result: {shown} and its report, {Path(shown).with_suffix('.md')}.\n"
        "To send it in: run `python -m benchmarks.page`, commit both files with the pages that it changes (git add\n"
        "benchmarks/results docs), and open a pull request. They name hardware and versions; the text of an error may\n"
        "hold a path."
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
