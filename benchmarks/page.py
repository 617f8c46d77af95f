"""Writes the results in benchmarks/results into the documentation.

    python -m benchmarks.page

writes docs/benchmarks.md, and into other pages, between a line such as `<!-- speed keys -->` and `<!-- end -->`: the
table of speed keys into docs/performance.md, and the list of results on GPUs (`gpu proofs`) into docs/tried.md.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import shuffle_quality, step
from benchmarks.measure import RESULTS, notes_of, table, table_of
from benchmarks.proof import SIZES, checks_table, facts_table, head_lines, proofs
from benchmarks.speed_keys import speed_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SPEED_PAGE, TRIED_PAGE = DOCS / "benchmarks.md", DOCS / "performance.md", DOCS / "tried.md"
_SPEED_KEYS = re.compile(r"(?<=<!-- speed keys -->\n).*?(?=<!-- end -->)", re.DOTALL)
_GPU_PROOFS = re.compile(r"(?<=<!-- gpu proofs -->\n).*?(?=<!-- end -->)", re.DOTALL)

HEAD = """# Benchmarks

The latest results of each benchmark, with the machine on which they were measured. Peers take turns in one process, so
that other load on the machine affects them equally; a ratio is the median over the rounds. `python -m benchmarks.page`
writes this page from benchmarks/results/*.json. The tables show which goals are missed.
"""

TRAINING_PEERS = """
The minimal loop, plain DDP and plain `deepspeed.initialize` use our settings and do not measure or log anything;
DeepSpeed has buckets of our size and no clipping. Our trainer also computes losses, correct predictions and the
gradient norm over all workers, running statistics over spans and the step time of each worker, and it checks for
numbers that are not finite and for stop requests. torchvision's loop and timm's step follow the scripts of those
projects, with their networks and optimizers.
"""

INPUT = """Photo-like JPEG files of about 500 by 375 pixels and 80 kB in the file cache, random crops of 224 pixels with
torchvision's distribution, 2 threads, batches of 32 normalised float32 images. CPU seconds are those of all threads and
processes. "Again" is a second process of the same pipeline: it shows the noise."""

GPU = f"""## On GPUs (`make gpu-proof`)

`make gpu-proof SIZE=...` has three sizes:

- `quick`: {SIZES["quick"]}. It is benchmarks/gpu.sh, which requires only torch and torchvision
- `hour`: {SIZES["hour"]}
- `imagenet`: {SIZES["imagenet"]}, with `DATA=` and `STORAGE=` for the folders of the images and of the run

Each writes benchmarks/results/DATE-GPU-SIZE.json and a report of the same name in Markdown, with the machine, the
versions, the commit (`with changes` if files were changed), and hashes of the code and, where it trains, of the config,
the last weights and the images. To send a result in, run `python -m benchmarks.page`, commit both files with the pages
that it changes, and open a pull request.

Published speeds of ResNet-50 on one card of the H100's class: 2,844 images/s is the best with PyTorch (GH200, float16,
lambdal/deeplearning-benchmark), 7,160 images/s that of MLPerf v4.0 (H100, MXNet with its own fused kernels).
"""
NO_RESULT = "None: no result has been sent in."
NO_GPU = "Not measured: no result has been sent in, and no GPU was available here."


_SAME = {True: "the same top-1, top-5 and loss, bit for bit", False: "DIFFERENT results"}


def page(results: Path = RESULTS) -> str:
    """The text of docs/benchmarks.md."""
    parts = [HEAD]
    for name, section in (
        ("training_cpu", _training),
        ("step", _step),
        ("optimizers", _optimizers),
        ("input", _input),
        ("shuffle_quality", _shuffle_quality),
        ("checkpoint_stall", _stall),
        ("checkpoint_formats", _formats),
        ("soak", _soak),
        ("soak_ray", _soak),
        ("recovery", _recovery),
        ("starts", _starts),
        ("plan_score", _plan_score),
        ("time_left", _time_left),
        ("beside", _beside),
        ("watch", _watch),
        ("report_sizes", _report_sizes),
    ):
        file = results / f"{name}.json"
        if file.exists():
            parts.append("\n".join(section(json.loads(file.read_text()))))
    return "\n".join([*parts, GPU, *_gpu(results)]) + "\n"


def _gpu(results: Path) -> Iterator[str]:
    found = proofs(results)
    yield facts_table(found) if found else NO_GPU
    for content in found:
        yield f"\n### {content['file']}\n"
        yield from head_lines(content)
        yield "\n" + checks_table(content)


def _training(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## A training step on a CPU (`python -m benchmarks.training_cpu`)\n"
    yield _machine(found)
    for what, setting in found["settings"].items():
        yield f"- {what}: {setting}"
    yield "\n" + table_of(found["rows"]) + "\n"
    yield from notes_of(found["rows"])
    for question in found["details"].values():
        yield from (f"- {peer}: not measured, {reason}" for peer, reason in question.get("absent", {}).items())
    yield TRAINING_PEERS


def _step(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Where a training step goes (`python -m benchmarks.step`)\n"
    yield _machine(found)
    yield from step.section(found)


def _optimizers(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## An optimizer step on ResNet-50's parameters (`python -m benchmarks.optimizers`)\n"
    yield _machine(found)
    yield f"Float32, {found['threads']} thread(s), {found['rounds']} rounds of {found['steps']} steps.\n"
    yield table_of(found["rows"]) + "\n"
    yield from notes_of(found["rows"])
    yield ""


def _input(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Input on a CPU (`python -m benchmarks.input`)\n"
    yield _machine(found)
    yield INPUT + f" {found['rounds']} rounds of {found['turn']} images.\n"
    yield table_of(found["rows"]) + "\n"
    yield from notes_of(found["rows"])
    yield from (f"- {name}: not measured, {reason}" for name, reason in found["absent"].items())
    yield ""


def _shuffle_quality(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## How well `data.order: shards` mixes (`python -m benchmarks.shuffle_quality`)\n"
    yield _machine(found)
    yield from shuffle_quality.section(found)


def _stall(found: Mapping[str, Any]) -> Iterator[str]:
    summary = found["summary"]
    yield "## Time that a checkpoint stops the training (`python benchmarks/checkpoint_stall.py`)\n"
    yield _machine(found)
    rows = [
        ["our saver, median", f"{summary['saver_s']:.3f} s"],
        ["our saver, worst", f"{summary['saver_worst_s']:.3f} s"],
        ["torch.save of the same state", f"{summary['torch_save_s']:.3f} s"],
        ["ratio (goal: at most 0.2)", f"{summary['ratio']:.3f}"],
    ]
    yield table([f"{found['model']}, {found['rounds']} rounds", "stopped for"], rows) + "\n"


def _formats(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Checkpoint formats (`python benchmarks/checkpoint_formats.py`)\n"
    yield _machine(found)
    page = "decisions/0002-own-checkpoints.md"
    yield f"[{page}]({page}) compares their cost and their guarantees.\n"


def _soak(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Soak test: {found['place']} (`python -m benchmarks.soak`)\n"
    yield _machine(found)
    left = sum(len(kind) for kind in found["left_over"].values())
    same = "equal" if found["same_weights"] else "differ from"
    yield (
        f"{found['faults']} random faults in a run of {found['steps']} steps. The final weights {same} those of the "
        f"undisturbed run; {left} processes, ports, half-written checkpoints and leases were left.\n"
    )
    rows = []
    for kind, cost in {**found["by_kind"], "all": found}.items():
        redone, seconds = cost["steps_redone"], cost["seconds_to_next_new_step"]
        steps = [f"{redone['median']:g}", f"{redone['worst']}"]
        rows.append([kind, f"{cost['faults']}", *steps, f"{seconds['median']:.1f} s", f"{seconds['worst']:.1f} s"])
    heads = ["fault", "times", "steps repeated, median", "worst", "time to the next new step, median", "worst"]
    yield table(heads, rows) + "\n"


def _recovery(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Recovery from a killed worker (`python -m benchmarks.recovery`)\n"
    yield _machine(found)
    yield (
        f"From SIGKILL to the next new step, after {found['pause_s']:g} s of training: through Ray with two workers, "
        "beside Ray Train with its own retries, and under the local supervisor.\n"
    )
    yield table_of(found["rows"]) + "\n"
    rows = [
        [
            row["what"],
            f"{row['median_s']:.1f} s, {row['worst_s']:.1f} s",
            f"≤ {row['goal_s']:g} s",
            "yes" if row["reached"] else "missed",
        ]
        for row in found["local"]
    ]
    yield table(["local supervisor", "median, worst", "goal for the median", "reached"], rows) + "\n"
    yield from notes_of([*found["rows"], *found["local"]])
    yield ""


def _starts(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## From the command to the first step (`python -m benchmarks.starts`)\n"
    yield _machine(found)
    yield (
        "Ours checks the config, reads the images and writes the run directory; the peers are the smallest scripts "
        f"that make a step of the same model. {found['rounds']} rounds.\n"
    )
    yield table_of(found["rows"]) + "\n"
    yield from notes_of(found["rows"])
    yield ""
    for name, stages in found["stages"].items():
        taken = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())
        yield f"Stages, {name}: {taken}.\n"


def _watch(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## First frame and CPU share of `launcher watch` (`python -m benchmarks.watch`)\n"
    yield _machine(found)
    goals, chart = found["goals"], found["chart"]
    yield (
        "In a terminal of 120 by 40. First frame: from the start of the process to the first curve, median and worst "
        f"of {found['starts']} starts; goal: {goals['first_frame_s']:g} s, also for the worst. CPU: of one core over "
        f"{found['seconds']:.0f} s; goal: {goals['cpu_share']:.0%}."
    )
    if chart["plotext_s"] is not None:
        yield f"A chart costs {chart['ours_s'] * 1000:.1f} ms; plotext's {chart['plotext_s'] * 1000:.1f} ms."
    yield ""
    rows = [
        [
            row["what"],
            f"{statistics.median(row['first_frame_s']):.2f} s, {max(row['first_frame_s']):.2f} s"
            + (": missed" if max(row["first_frame_s"]) > goals["first_frame_s"] else ""),
            f"{statistics.median(row['first_frame_cpu_s']):.2f} s",
            f"{row['cpu_share']:.1%}" + (": missed" if row["cpu_share"] > goals["cpu_share"] else ""),
            f"{row['peak_memory_mb']:.0f} MB",
        ]
        for row in found["rows"]
    ]
    yield table(["run", "first frame", "CPU until then", "CPU after it", "memory"], rows) + "\n"


def _report_sizes(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Size of the page of `launcher report` (`python -m benchmarks.report_sizes`)\n"
    yield _machine(found)
    yield "Time: median of the whole command, from the start of its process."
    yield f"Goal: a page of at most {found['goal_bytes'] / 1e6:g} MB.\n"
    rows = [
        [
            row["what"],
            f"{row['records']:,}",
            f"{row['bytes'] / 1e6:.2f} MB: {'reached' if row['bytes'] <= found['goal_bytes'] else 'missed'}",
            f"{statistics.median(row['seconds']):.1f} s",
        ]
        for row in found["rows"]
    ]
    yield table(["page of", "records", "size", "time"], rows) + "\n"


def _time_left(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## The time left of a run (`python -m benchmarks.time_left`)\n"
    yield _machine(found)
    yield (
        "The error of the time left that a run shows, compared with the time until it ended, from 5 % to 95 % of its "
        f"steps. Goal: at most {found['goal']:.0%} of what is left. In the last 5 % the error is given in seconds. "
        "Until an evaluation has been measured, its time is estimated from that of a step.\n"
    )
    rows = [
        [
            name,
            f"{run['steps']} in {run['seconds']:.0f} s",
            f"{run['largest']:.1%}",
            "yes" if run["largest"] <= found["goal"] else "missed",
            f"{run['median']:.1%}",
            f"{run['largest_at_the_end_s']:.1f} s",
        ]
        for name, run in found["runs"].items()
    ]
    yield table(["run", "steps", "largest error", "reached", "median", "in the last 5 %"], rows) + "\n"


def _beside(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Time that an evaluation stops the training (`python -m benchmarks.beside`)\n"
    yield _machine(found)
    runs, goal = found["runs"], found["goal_s"]
    came = "reached" if max(runs["beside"]["stops_s"]) <= goal else "missed"
    yield (
        f"{found['model']}, {found['steps']} steps of {found['batch']} images, one worker with one thread; "
        f"an evaluation of {runs['beside']['num_samples']} images every {found['every']} steps, by the worker in turn "
        "with training, or beside training (`evaluate.beside`) by another process with one thread. Goal: beside "
        f"training at most {goal:g} s, {came}. Both find {_SAME[found['same_results']]}.\n"
    )
    rows = [
        [
            name,
            f"{statistics.median(run['stops_s']):.3f} s",
            f"{max(run['stops_s']):.3f} s",
            f"{run['evaluation_s']:.2f} s",
            f"{run['step_s']:.3f} s",
            f"{run['whole_s']:.1f} s",
        ]
        for name, run in runs.items()
    ]
    head = [
        "evaluation",
        "stops training, median",
        "worst",
        "takes",
        "a step, median",
        "all steps, evaluations and saves",
    ]
    yield table(head, rows) + "\n"
    yield f"Ratio of the medians: {found['ratio']:.2g}.\n"


def _plan_score(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Forecasts of `launcher plan` (`python -m benchmarks.plan_score`)\n"
    yield _machine(found)
    goals, load = found["goals"], found["load"]
    num = len(found["runs"])
    yield f"{num} small runs, one after the other; each time is forecast from the runs of other configurations. The"
    yield "load of the machine at the start of a run (processes that run or wait for a core; there are"
    yield f"{found['machine']['num_cpus']}) was {load['least']:.1f} to {load['most']:.1f}, in the median"
    yield f"{load['median']:.1f}.\n"
    recorded, mlperf = found["recorded"], found["mlperf"]
    of_submissions = "MLPerf v4.0: end points inside the interval, each forecast from other submissions"
    rows = _judged({"num": num, "inside": sum(run["inside"] for run in found["runs"]), **found}, goals)
    of_starts = f"inside the interval that was recorded at the start (goal: at least {goals['coverage']:.0%})"
    rows += [[of_starts, _inside(recorded, goals)], [of_submissions, f"{mlperf['inside']} of {mlperf['num']}"]]
    yield table(["wall time", ""], rows) + "\n"
    if accuracy := found.get("accuracy"):
        yield f"The top-1 of {accuracy['num']} short runs of two recipes, each forecast from the other seeds.\n"
        yield table(["accuracy", ""], _judged(accuracy, goals)) + "\n"
    each = [
        [
            run["name"],
            f"{run['actual_s']:.1f} s",
            f"{run['median_s']:.1f} s",
            f"{run['low_s']:.1f} to {run['high_s']:.1f} s",
            "yes" if run["inside"] else "no",
        ]
        for run in sorted(found["runs"], key=lambda run: str(run["name"]))
    ]
    yield table(["run", "time", "predicted", "80 % interval", "inside"], each) + "\n"


def _judged(found: Mapping[str, Any], goals: Mapping[str, float]) -> list[list[str]]:
    width = found["median_width"]
    reached = "reached" if width < goals["median_width"] else "missed"
    return [
        [f"inside the 80 % interval (goal: at least {goals['coverage']:.0%})", _inside(found, goals)],
        [
            f"median width of the interval / median (goal: below {goals['median_width']:.0%})",
            f"{width:.1%}: {reached}",
        ],
        ["median error of the median", f"{found['median_error']:.1%}"],
    ]


def _inside(found: Mapping[str, int], goals: Mapping[str, float]) -> str:
    part = found["inside"] / found["num"] if found["num"] else 0.0
    reached = "reached" if part >= goals["coverage"] else "missed"
    return f"{found['inside']} of {found['num']} ({part:.0%}): {reached}"


def _machine(found: Mapping[str, Any]) -> str:
    machine = found.get("machine", {})
    known = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    commit = f"; commit {found['commit']}" if found.get("commit") else ""
    return f"{found.get('time', '')}; {known}{commit}\n"


def speed_page(text: str, results: Path = RESULTS) -> str:
    """`text` of docs/performance.md with the table of results/speed_keys.json."""
    file = results / "speed_keys.json"
    if not file.exists():
        return text
    found = json.loads(file.read_text())
    setting = found["setting"]
    what = f"{setting['model']}, {setting['resolution']} px, {setting['batch']} images per worker, one thread each"
    block = f"\n{what}. {_machine(found)}\n{speed_table(found['rows'])}\n\n"
    return _SPEED_KEYS.sub(lambda _: block, text)


def tried_page(text: str, results: Path = RESULTS) -> str:
    """`text` of docs/tried.md with the results of `make gpu-proof`."""
    found = proofs(results)
    block = f"\n{facts_table(found) if found else NO_RESULT}\n\n"
    return _GPU_PROOFS.sub(lambda _: block, text)


if __name__ == "__main__":
    PAGE.write_text(page())
    SPEED_PAGE.write_text(speed_page(SPEED_PAGE.read_text()))
    TRIED_PAGE.write_text(tried_page(TRIED_PAGE.read_text()))
    print(PAGE, SPEED_PAGE, TRIED_PAGE, sep="\n")
