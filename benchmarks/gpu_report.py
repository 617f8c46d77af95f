"""The report on a GPU, from its JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ratio, table, table_of

# (peer, our variant that is compared with it, time or speed, goal); docs/benchmarks.md has the sources of the goals
_COMPARISONS = (
    ("minimal", "ours", "time", 1.02),
    ("minimal, compiled", "ours, compiled", "time", 1.02),
    ("timm", "ours", "speed", 1.0),
    ("timm, compiled", "ours, compiled", "speed", 1.0),
    ("torchvision", "best of ours", "speed", 1.3),
)
_ONE_H100 = 3300  # images/s: our goal for one H100 in bfloat16 or float16
_MLPERF = 7160  # images/s of one H100 in MLPerf Training 3.0's ResNet, in MXNet with its own fused kernels


def report(file: Path) -> str:
    """The whole report, as Markdown."""
    found = json.loads(file.read_text())
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    machine, plan = found["machine"], found["plan"]
    yield f"# Training on {machine['gpu'] or machine['cpu']}"
    yield ""
    yield f"{plan['model']}, {plan['resolution']} px, images of noise. {found['time']}, commit {found['commit']}."
    known = ("gpu", "cuda", "cudnn", "torch", "torchvision", "timm", "python", "cpu", "num_cpus", "system")
    yield "; ".join(f"{name} {machine[name]}" for name in known if machine[name] is not None) + "."
    for section, write in (("peers", _peers), ("ablation", _ablation), ("norms", _norms), ("profile", _profile)):
        if section in found:
            yield from ("", *write(found[section]))


def _peers(lines: list[dict[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for line in lines for name in (*line["images_per_s"], *line["absent"])))
    yield "## Images/s"
    yield ""
    yield table(
        ("precision, batch", *names),
        [[f"{line['precision']}, {line['batch']}", *(_cell(line, name) for name in names)] for line in lines],
    )
    yield ""
    for reason in dict.fromkeys(f"{name}: {why}" for line in lines for name, why in line["absent"].items()):
        yield f"- {reason}"
    yield ""
    yield "## Comparison with peers"
    yield ""
    yield table_of([row for line in lines for row in _against(line)])
    best = max(
        ((line["images_per_s"][name], name, line) for line in lines for name in line["images_per_s"] if "ours" in name),
        key=lambda found: found[0],
    )
    speed, name, line = best
    used = line["flops_utilisation"].get(name)
    yield ""
    yield (
        f"Best of ours: {speed:,.0f} images/s ({name}, {line['precision']}, batch {line['batch']})"
        + (f", {used:.1%} of the device's peak" if used is not None else "")
        + f". The goal for one H100 is {_ONE_H100:,}; MLPerf has {_MLPERF:,}."
    )


def _cell(line: dict[str, Any], name: str) -> str:
    if name in line["images_per_s"]:
        return f"{line['images_per_s'][name]:,.0f}"
    return "-"


def _against(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    times, speeds = line["times_s"], line["images_per_s"]
    ours = [name for name in times if name.startswith("ours")]
    if not ours:
        return
    best = min(ours, key=lambda name: -speeds[name])
    for peer, own, measure, goal in _COMPARISONS:
        own = best if own == "best of ours" else own
        if peer not in times or own not in times:
            continue
        spread = ratio(times[own], times[peer]) if measure == "time" else ratio(times[peer], times[own])
        values = [line["batch"] / speeds[name] if measure == "time" else speeds[name] for name in (own, peer)]
        reached = spread.median <= goal if measure == "time" else spread.median >= goal
        yield {
            "what": f"{line['precision']}, {line['batch']}: {own}",
            "peer": peer,
            "measure": measure,
            "ours": values[0],
            "theirs": values[1],
            "ratio": {"median": spread.median, "low": spread.low, "high": spread.high},
            "goal": goal,
            "reached": reached,
        }


def _ablation(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "## One speed key changed at a time"
    yield ""
    for line in lines:
        speeds, times = line["images_per_s"], line["times_s"]
        rows = [
            [name, f"{speeds[name]:,.0f}", str(ratio(times["defaults"], times[name])), _memory(line, name)]
            for name in times
            if "defaults" in times
        ]
        rows += [[name, "-", why, ""] for name, why in line["absent"].items()]
        yield f"{line['precision']}, {line['batch']} images, copied from host memory:"
        yield ""
        yield table(("speed key", "images/s", "speed / default speed", "memory"), rows)
        yield ""


def _memory(line: dict[str, Any], name: str) -> str:
    return f"{line['memory_mb'][name]:,.0f} MB" if name in line["memory_mb"] else ""


def _norms(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Batch norm with exchanged statistics, forward and backward, in a process group of one"
    yield ""
    yield table_of([row for line in lines for row in line["rows"]])
    for reason in dict.fromkeys(f"{name}: {why}" for line in lines for name, why in line["absent"].items()):
        yield f"\nNot measured: {reason}."


def _profile(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Time of a step by kind of kernel"
    yield ""
    kinds = list(dict.fromkeys(kind for line in lines for kind in line["by_kind_ms"]))
    ways = [f"{line['way']}, {line['precision']}, {line['batch']}" for line in lines]
    rows = [[kind, *(f"{line['by_kind_ms'].get(kind, 0.0):.2f}" for line in lines)] for kind in kinds]
    rows.append(["all", *(f"{line['busy_ms']:.2f}" for line in lines)])
    rows.append(["kernels", *(f"{line['kernels']:.0f}" for line in lines)])
    yield table(("ms per step", *ways), rows)
    for line, way in zip(lines, ways, strict=True):
        yield ""
        yield f"The longest kernels of {way}:"
        yield ""
        longest = line["longest"][:12]
        rows = [
            [item["name"][:80].replace("|", "\\|"), f"{item['ms']:.3f}", f"{item['count']:.0f}"] for item in longest
        ]
        yield table(("kernel", "ms per step", "calls per step"), rows)
