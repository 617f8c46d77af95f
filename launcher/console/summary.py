"""The summary of a finished run."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from launcher.console.records import shown, target_value, top5
from launcher.formatting import count
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint.format import folder_name
from resnet_dist.progress_line import in_time
from resnet_dist.recipe.durations import Duration

WIDTH = 80  # of the line of times
PARTS = {"start_s": "start", "training_s": "train", "evaluation_s": "evaluate", "saving_s": "save"}


def summary_lines(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """The summary of a finished run: its result and its files."""
    return [
        "",
        f"finished  {summary['step']:,} steps, {shown(summary, 'images_per_s', ',.0f')} images/s while training",
        *textwrap.wrap(time_text(run, summary), WIDTH, initial_indent="  time         ", subsequent_indent=" " * 15),
        *([f"  target       {text}"] if (text := target_text(summary)) else []),
        *_warnings(summary),
        *([f"  left out     {text}"] if (text := left_out_text(summary)) else []),
        f"  top-1        {shown(summary, 'top1', '.2%')} of {shown(summary, 'num_samples', ',')} val images"
        f"{top5(' (top-5 {})', summary)}",
        *_other_lines(summary),
        f"  checkpoint   {run.checkpoints / folder_name(summary['step'])}",
        f"  metrics      {run.metrics}",
        f"  TensorBoard  tensorboard --logdir {run.tensorboard}",
        f"  logs         {run.all_logs}",
        f"  next         launcher report {run.path} (or evaluate, predict, export)",
        *profile_lines(run),
        *_longer(run, summary),
        f"  your images  python -m launcher.train {run.config} name=mine data.root=FOLDER model.num_classes=N",
    ]


def time_text(run: RunDirectory, summary: Mapping[str, Any]) -> str:
    """The time of the command, and what it consists of; empty without one.

    What is neither of the parts is the end of the processes, and the attempts that failed in the same command.
    """
    whole = summary.get("command_s")
    if whole is None:
        return ""
    known = {name: summary[key] for key, name in PARTS.items() if summary.get(key) is not None}
    if (waiting_s := min(summary.get("waiting_s") or 0.0, known.get("evaluate", 0.0))) >= 0.5:
        known["evaluate"] -= waiting_s
        known["wait for evaluations"] = waiting_s
    attempts = run.attempts()
    here = sum(attempt.session == attempts[-1].session for attempt in attempts)
    known["failed attempts, end" if here > 1 else "end"] = max(whole - sum(known.values()), 0.0)
    ends = [0, *(round(end) for end in itertools.accumulate(known.values()))]  # so that the parts add up
    times = (in_time(end - begin) for begin, end in pairwise(ends))
    parts = ", ".join(f"{name} {time}" for name, time in zip(known, times, strict=True))
    earlier = "" if here == len(attempts) else " (this command; `launcher report` has those before)"
    return f"{in_time(round(whole))}: {parts}{earlier}"


def profile_lines(run: RunDirectory) -> list[str]:
    """The newest profile, if there is one."""
    traces = sorted(run.profiles.glob("*/rank-0.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    return [f"  profile      {traces[-1]} (open it with ui.perfetto.dev; rank-0.txt has a table)"] if traces else []


def target_text(summary: Mapping[str, Any]) -> str:
    """Whether a finished run has reached its target, and when; empty without one."""
    reached = summary.get("target_reached")
    if reached is None:
        return ""
    metric, target = next(iter((summary.get("stop_at") or {"top1": None}).items()))
    found = target_value({"metric": metric, "target": target, "value": summary.get(metric)})
    when = f"{summary['step']:,} steps, {shown(summary, 'epoch', '.2f')} epochs"
    return f"{'reached' if reached else 'MISSED'} after {when}: {found}"


def left_out_text(summary: Mapping[str, Any]) -> str:
    """How many broken images a run has left out; empty if there were none."""
    images, listed, samples = (summary.get(key) or 0 for key in ("num_bad_images", "num_known_bad", "num_left_out"))
    in_val = summary.get("num_bad") or 0
    if not (images or samples or in_val):
        return ""
    parts = [f"{count(images, 'broken image')} found (events bad_image in metrics.jsonl)"] if images else []
    if listed or not images:  # a run that goes on has not recorded how many are listed
        parts.append(f"{f'{listed:,}' if listed else 'images'} listed in data.known_bad")
    found = ", ".join(parts)
    return f"{found}; {count(samples, 'sample')} of the training steps, {count(in_val, 'val image')}"


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    """A warning if the last evaluation is not finite."""
    not_finite = [name for name in ("top1", "loss") if shown(summary, name, "") == "not finite"]
    if not not_finite:
        return []
    where = ", ".join(not_finite)
    if summary.get("num_nonfinite"):
        where = f"{summary['num_nonfinite']:,} of {shown(summary, 'num_samples', ',')} samples"
    return [
        f"WARNING: the last evaluation is not finite: {where}. Probable cause: the weights or the running statistics "
        "of a batch norm are not finite"
    ]


def _longer(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """The command that doubles the duration; none if the run ended because it reached its target."""
    if summary.get("target_reached"):
        return []
    duration = Duration.parse(summary["duration"])
    twice = Duration(2 * duration.count, duration.unit)
    return [f"  train longer python -m launcher.train {run.config} duration='{twice}'"]


def _other_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the last evaluation has besides: the training split, and the user's metrics."""
    lines = []
    if "train_top1" in summary:
        loss = shown(summary, "train_loss", ".4f")
        lines = [f"  training     top-1 {shown(summary, 'train_top1', '.2%')}, loss {loss} on the training images"]
    metrics = summary.get("metrics") or {}
    return lines + [f"  {name:<12} {shown(metrics, name, '.4g')}" for name in metrics]
