"""The report on a GPU, from the content of its result file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.measure import FAILED, Ratio, table, table_of
from benchmarks.proof import SIZES, check, checks_table, head_lines

# images/s of ResNet-50 training at 224 pixels on one card of the H100's class
PUBLISHED = {
    "the best published with PyTorch": (2844.0, "GH200, float16, lambdal/deeplearning-benchmark"),
    "MLPerf v4.0": (7160.0, "H100, MXNet with its own fused kernels"),
}
_TITLES = {
    "step": "A training step",
    "compile": "Compiled (`speed.compile`)",
    "shipped": "A worker of configs/rn50_8node.yaml, under DDP in a group of one process",
    "ddp": "DDP in a group of one process",
    "norms": "Batch norm over workers, in a group of one process",
    "graph": "As a CUDA graph (`speed.cuda_graph`)",
    "input": "Fed by JPEG files",
    "tests": "tests/gpu",
    "resolutions": "Resolutions of progressive training",
    "precisions": "Other precisions and batches",
    "profile": "Time of a step by kind of kernel",
    "ablation": "One speed key changed at a time, images copied from host memory",
}
_SYNTHETIC = ("step", "compile", "ddp", "graph", "precisions")  # whose speeds are compared with published ones


def checks_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checks of the sections: every comparison that has a goal, the tests, and the published speeds."""
    sections, found = content["sections"], []
    for name, section in sections.items():
        for line in section["lines"]:
            for row in line.get("rows", ()):
                if row["goal"] is not None:
                    bound = "at least" if row["measure"] == "speed" else "at most"
                    what = f"{row['what']} / {row['peer']}, {row['measure']}"
                    goal = f"{bound} {row['goal']:g}"
                    found.append(check(what, str(Ratio(**row["ratio"])), goal, row["reached"]))
            failures = {peer: why for peer, why in line.get("absent", {}).items() if why.startswith(FAILED)}
            found += [check(f"{peer}, {line['title']}", why, "runs", False) for peer, why in failures.items()]
            if "exit_code" in line:
                skipped = len(line["skipped"])
                counts = f"{line['passed']} passed, {len(line['failed'])} failed, {skipped} skipped"
                found.append(check("tests/gpu", counts, "none fails", line["exit_code"] == 0))
        if section["problem"]:
            found.append(check(f"section {name}", section["problem"], "runs to its end", False))
    is_published = (content["plan"]["model"], content["plan"]["resolution"]) == ("resnet50", 224)
    if is_published and (best := _best(sections)) is not None:
        speed, what = best
        for name, (images_per_s, _) in PUBLISHED.items():
            goal = f"{images_per_s:,.0f} images/s"
            is_goal = images_per_s == min(value for value, _ in PUBLISHED.values())
            ratio = f"{speed:,.0f} images/s ({what}), {speed / images_per_s:.2f} times"
            found.append(check(f"best of ours / {name}", ratio, goal, speed >= images_per_s if is_goal else None))
    return found


def _best(sections: Mapping[str, Any]) -> tuple[float, str] | None:
    """The speed and the name of the fastest of ours on images of noise."""
    speeds = [
        (speed, f"{name}, {line['title']}")
        for section in _SYNTHETIC
        for line in sections.get(section, {"lines": []})["lines"]
        for name, speed in line["images_per_s"].items()
        if name.startswith("ours")
    ]
    return max(speeds, default=None)


def report(content: Mapping[str, Any]) -> str:
    """The whole report, as Markdown."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    machine = content["machine"]
    yield f"# Training on {machine['gpu'] or machine['cpu']}"
    yield ""
    yield f"{SIZES[content['size']]}."
    yield from head_lines(content)
    if runs := content.get("runs"):
        yield from ("", "## Runs of the launcher", "")
        yield table(("run", "steps", "images/s", "start", "top-1", "attempts"), [_run(*run) for run in runs.items()])
        yield ""
        yield from (f"- {name}: {run['bottleneck']}" for name, run in runs.items() if "bottleneck" in run)
    if plan := content.get("plan"):
        yield from ("", f"Training steps: {plan['model']}, {plan['resolution']} px, images of noise.")
    for name, section in content.get("sections", {}).items():
        yield from ("", f"## {_TITLES[name]}", "")
        yield from _section(section)
    yield from ("", "## Against goals and published figures", "")
    if plan:
        yield from (f"- {name}: {speed:,.0f} images/s ({source})" for name, (speed, source) in PUBLISHED.items())
        yield ""
    yield checks_table(content)


def _run(name: str, run: Mapping[str, Any]) -> list[str]:
    def shown(key: str, form: str) -> str:
        return format(run[key], form) if run.get(key) is not None else "-"

    changed = f" ({', '.join(run['overrides'])})" if run.get("overrides") else ""
    start = f"{shown('start_s', '.1f')} s"
    return [
        f"{name}{changed}",
        shown("step", ","),
        shown("images_per_s", ",.0f"),
        start,
        shown("top1", ".2%"),
        shown("attempts", ","),
    ]


def _section(section: Mapping[str, Any]) -> Iterator[str]:
    lines = section["lines"]
    if speeds := [line for line in lines if line.get("images_per_s")]:
        names = list(dict.fromkeys(name for line in speeds for name in line["images_per_s"]))
        rows = [[name, *(_cell(line, name) for line in speeds)] for name in names]
        yield table(("images/s", *(line["title"] for line in speeds)), rows)
        yield ""
    if rows := [row for line in lines for row in line.get("rows", ())]:
        yield table_of(rows)
        yield ""
    if profiles := [line for line in lines if "by_kind_ms" in line]:
        yield from _profile(profiles)
    for line in lines:
        if "exit_code" in line:
            yield f"{line['passed']} passed, {len(line['skipped'])} skipped, {len(line['failed'])} failed."
            yield from (f"- failed: {name}" for name in line["failed"])
    reasons = (f"{name}: {why}" for line in lines for name, why in line.get("absent", {}).items())
    yield from (f"- {reason}" for reason in dict.fromkeys(reasons))
    unknown = (line["no_peak"] for line in lines if line.get("no_peak"))
    yield from (f"- the peak of the device is not known: {reason}" for reason in dict.fromkeys(unknown))
    yield f"- took {section['seconds']:.0f} s{', ' if section['problem'] else ''}{section['problem']}"


def _cell(line: Mapping[str, Any], name: str) -> str:
    """Speed, memory and share of the peak of one peer."""
    if name not in line["images_per_s"]:
        return "-"
    cell = f"{line['images_per_s'][name]:,.0f}"
    if name in line.get("flops_utilisation", {}):
        cell += f", {line['flops_utilisation'][name]:.1%} of peak"
    return f"{cell}, {line['memory_mb'][name]:,.0f} MB" if name in line["memory_mb"] else cell


def _profile(lines: list[dict[str, Any]]) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for line in lines for kind in line["by_kind_ms"]))
    rows = [[kind, *(f"{line['by_kind_ms'].get(kind, 0.0):.2f}" for line in lines)] for kind in kinds]
    rows.append(["all", *(f"{line['busy_ms']:.2f}" for line in lines)])
    rows.append(["kernels", *(f"{line['kernels']:.0f}" for line in lines)])
    yield table(("ms per step", *(line["title"] for line in lines)), rows)
    for line in lines:
        yield from ("", f"The longest kernels of {line['title']}:", "")
        longest = [
            [item["name"][:80].replace("|", "\\|"), f"{item['ms']:.3f}", f"{item['count']:.0f}"]
            for item in line["longest"][:12]
        ]
        yield table(("kernel", "ms per step", "calls per step"), longest)
    yield ""
