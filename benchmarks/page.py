"""The documentation's figures from the JSON files of benchmarks/results: none of them is typed by hand.

    python -m benchmarks.report

writes docs/benchmarks.md, and the table of speed keys into docs/performance.md, between the lines
`<!-- speed keys -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, table, table_of
from benchmarks.speed_keys import speed_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SPEED_PAGE = DOCS / "benchmarks.md", DOCS / "performance.md"
_SPEED_KEYS = re.compile(r"(?<=<!-- speed keys -->\n).*?(?=<!-- end -->)", re.DOTALL)

HEAD = """# Benchmarks

The latest figures of each benchmark, with the machine that they are from. Peers run in turns in one process, so that
whatever disturbs the machine disturbs them alike; a ratio is the median over the rounds. Written by
`python -m benchmarks.report` from benchmarks/results/*.json. A goal that is not reached says so.
"""

TRAINING_PEERS = """
The minimal loop, plain DDP and plain `deepspeed.initialize` are written by hand with our settings, and measure, log and
count nothing; DeepSpeed's buckets are as large as ours and its clipping is off. What our trainer does beside: losses,
right answers and the gradient's norm over all workers, batch norm's running statistics over spans, each worker's own
time, checks for what is not finite, requests to stop. torchvision's loop and timm's step follow those projects'
scripts, with their networks and optimizers.
"""

NO_GPU = """## On a GPU

Not measured: no GPU was at hand. `benchmarks/gpu.sh` runs everything that is needed, on torch and torchvision alone,
and leaves benchmarks/results/<date>-<gpu>.md. What is known from elsewhere: 2,844 images/s is the best published figure
of PyTorch on one H100-class card for ResNet-50; MLPerf's MXNet has 7,160.
"""


def page(results: Path = RESULTS) -> str:
    """The page's text."""
    parts = [HEAD]
    for name, section in (
        ("training_cpu", _training),
        ("checkpoint_stall", _stall),
        ("checkpoint_formats", _formats),
        ("soak", _soak),
        ("soak_ray", _soak),
        ("recovery", _recovery),
    ):
        file = results / f"{name}.json"
        if file.exists():
            parts.append("\n".join(section(json.loads(file.read_text()))))
    return "\n".join([*parts, NO_GPU])


def _training(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## A training step on a CPU (`python -m benchmarks.training_cpu`)\n"
    yield _machine(found)
    for what, setting in found["settings"].items():
        yield f"- {what}: {setting}"
    yield "\n" + table_of(found["rows"]) + "\n"
    yield from (f"- {row['what']}: {row['note']}" for row in found["rows"] if row["note"])
    for question in found["details"].values():
        yield from (f"- {peer}: not measured, {reason}" for peer, reason in question.get("absent", {}).items())
    yield TRAINING_PEERS


def _stall(found: Mapping[str, Any]) -> Iterator[str]:
    summary = found["summary"]
    yield "## Seconds the loop stands still for a checkpoint (`python benchmarks/checkpoint_stall.py`)\n"
    yield _machine(found)
    rows = [
        ["the saver, median", f"{summary['saver_s']:.3f} s"],
        ["the saver, worst", f"{summary['saver_worst_s']:.3f} s"],
        ["torch.save of the same state", f"{summary['torch_save_s']:.3f} s"],
        ["ratio (goal: at most 0.2)", f"{summary['ratio']:.3f}"],
    ]
    yield table([f"{found['model']}, {found['rounds']} rounds", "stands still"], rows) + "\n"


def _formats(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Formats of checkpoints (`python benchmarks/checkpoint_formats.py`)\n"
    yield _machine(found)
    page = "decisions/0002-own-checkpoints.md"
    yield f"What they cost and what they promise: [{page}]({page}).\n"


def _soak(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Struck again and again: {found['place']} (`python -m benchmarks.soak`)\n"
    seconds, redone = found["seconds_to_next_new_step"], found["steps_redone"]
    left = sum(len(kind) for kind in found["left_over"].values())
    rows = [
        ["faults", f"{found['faults']}"],
        ["final weights are those of the untouched run", "yes" if found["same_weights"] else "no"],
        ["steps redone, in all and at worst", f"{redone['sum']}, {redone['worst']}"],
        ["seconds to the next new step, median", f"{seconds['median']:.1f} s"],
        ["seconds to the next new step, worst", f"{seconds['worst']:.1f} s"],
        ["processes, files, ports, leases left over", f"{left}"],
    ]
    yield table([f"{found['steps']} steps", ""], rows) + "\n"


def _recovery(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## From a killed worker to the next new step (`python -m benchmarks.recovery`)\n"
    yield "Through Ray, two workers on one machine of two cores, against plain Ray Train's own retries.\n"
    rows = [
        ["ours, median", f"{found['median']['ours']:.1f} s"],
        ["plain Ray Train, median", f"{found['median']['plain']:.1f} s"],
        ["ratio (goal: at most 1.15)", f"{found['ratio']:.2f}: {'reached' if found['ratio'] <= 1.15 else 'missed'}"],
    ]
    yield table([f"{len(found['seconds']['ours'])} kills each", "seconds"], rows) + "\n"


def _machine(found: Mapping[str, Any]) -> str:
    machine = found.get("machine", {})
    known = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    commit = f"; commit {found['commit']}" if found.get("commit") else ""
    return f"{found.get('time', '')}; {known}{commit}\n"


def speed_page(text: str, results: Path = RESULTS) -> str:
    """docs/performance.md, whose text is `text`, with the figures of results/speed_keys.json."""
    file = results / "speed_keys.json"
    if not file.exists():
        return text
    found = json.loads(file.read_text())
    setting = found["setting"]
    what = f"{setting['model']}, {setting['resolution']} px, {setting['batch']} images a worker, one thread each"
    block = f"\n{what}. {_machine(found)}\n{speed_table(found['rows'])}\n\n"
    return _SPEED_KEYS.sub(lambda _: block, text)


if __name__ == "__main__":
    PAGE.write_text(page())
    SPEED_PAGE.write_text(speed_page(SPEED_PAGE.read_text()))
    print(PAGE, SPEED_PAGE, sep="\n")
