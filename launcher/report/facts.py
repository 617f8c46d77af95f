"""Everything that a report says of one run, for the terminal, the page and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.console import left_out_text, target_text
from launcher.formatting import count, first_line
from launcher.planning import score
from launcher.planning.score import Outcome
from launcher.report import timeline
from launcher.report.goodput import Goodput, goodput_of, spans
from launcher.report.ranking import images_per_s
from launcher.report.reference_points import Check, check
from launcher.report.result import Result, percent, result
from launcher.report.run_record import RunRecord, number
from launcher.report.timeline import Entry
from launcher.run.record_types import Facts

_STATES = {"failed": "failed", "unknown": "its state is unknown"}
_REGULARIZATION = ("label_smoothing", "l1", "dropout", "stochastic_depth", "mixup", "cutmix", "random_erasing")


@dataclass(frozen=True)
class RunFacts:
    """What a report says of one run."""

    run: RunRecord
    result: Result
    goodput: Goodput
    entries: Sequence[Entry]  # the attempts
    images_per_s: float | None
    trained: Sequence[tuple[str, str]]  # what was trained: label and text
    warnings: Sequence[str]  # what a reader must know first
    plan: Outcome | None  # the forecast that the run was started with, and what came; None before its end
    reference: Check | None  # against MLPerf's reference points; None where they do not apply
    commands: Sequence[str]  # that reproduce the run


def facts(run: RunRecord) -> RunFacts:
    """The facts of a run. Raises StorageError."""
    found = spans(run)
    entries = timeline.timeline(run, found)
    own = result(run)
    return RunFacts(
        run=run,
        result=own,
        goodput=goodput_of(run, found),
        entries=entries,
        images_per_s=images_per_s(run),
        trained=list(_trained(run)),
        warnings=list(_warnings(run, own)),
        plan=score.of_run(run.directory) if run.directory.forecast.exists() else None,
        reference=check(run),
        commands=list(_commands(run)),
    )


def progress_text(run: RunRecord) -> str:
    """How far a run is: steps and epochs."""
    status = run.status
    if status.step is None:
        return "no step"
    total = f" of {status.total_steps:,}" if status.total_steps and status.total_steps != status.step else ""
    epochs = [record["epoch"] for record in run.records if record.get("epoch") is not None]
    return f"{status.step:,}{total} steps" + (f", {max(epochs):.2f} epochs" if epochs else "")


def _trained(run: RunRecord) -> Iterator[tuple[str, str]]:
    """What was trained, from the recorded config; a key that is not recorded is left out."""
    keys = run.keys
    if not keys:
        yield "config", "not recorded"
        return
    classes = keys.get("model.num_classes")
    yield "network", _joined(keys.get("model.name"), classes and f"{classes} classes", _changes_of_model(keys))
    num_samples = run.started.get("num_samples")
    images = f"{num_samples:,} training images" if isinstance(num_samples, int) else None
    yield (
        "data",
        _joined(images, keys.get("data.root"), keys.get("data.source"), _pixels(keys.get("data.resolution"))),
    )
    yield (
        "batch",
        _joined(
            keys.get("batch.size"),
            _unless(keys, "batch.num_micro_batches", 1, "{} micro-batches"),
            _span(keys.get("batch_norm.span")),
        ),
    )
    yield (
        "optimizer",
        _joined(
            keys.get("optimizer.name"),
            "Nesterov" if keys.get("optimizer.nesterov") else None,
            _unless(keys, "optimizer.momentum", None, "momentum {}"),
            _unless(keys, "optimizer.weight_decay", 0.0, "weight decay {}"),
        ),
    )
    yield "learning rate", _joined(_peak(keys), *_schedule(keys))
    strengths = [(name, keys.get(f"regularization.{name}")) for name in _REGULARIZATION]
    used = [f"{name.replace('_', ' ')} {value}" for name, value in strengths if value]
    average = _unless(keys, "ema.decay", None, "average of the weights {}")
    if used or average:
        yield "regularization", _joined(*used, average)
    yield "duration", _duration(run)
    yield "where", _joined(*_where(run))


def _duration(run: RunRecord) -> str:
    """The planned duration, and what is done of it. The unit is not repeated."""
    planned = str(run.keys.get("duration", "not recorded"))
    done, _, epochs = progress_text(run).partition(", ")
    if planned.endswith((" step", " steps")) and run.status.step is not None:
        done = f"{run.status.step:,}"
    return f"{planned}; done: {done}" + (f" ({epochs})" if epochs else "")


def _span(span: object) -> str | None:
    """Over which images batch norm computes its statistics; None if it is not recorded, or chosen by the launcher."""
    named = {"global": "the batch", "worker": "a worker's part"}.get(str(span))
    return None if span in (None, "auto") else f"batch norm over {named or f'{span} images'}"


def _changes_of_model(keys: Facts) -> str | None:
    parts = [
        "plain (no shortcuts)" if keys.get("model.residual") is False else None,
        _unless(keys, "model.width", 1.0, "width {}"),
        _unless(keys, "model.weights", None, "weights of {}"),
    ]
    return ", ".join(part for part in parts if part) or None


def _peak(keys: Facts) -> str | None:
    peak, base, size = (keys.get(key) for key in ("schedule.peak_lr", "schedule.base_lr", "batch.size"))
    if isinstance(peak, int | float):
        return f"peak {peak:g}"
    if not isinstance(base, int | float) or not isinstance(size, int):
        return None
    if keys.get("schedule.scaling", "linear") == "linear":
        return f"peak {base * size / 256:g} = {base:g} x {size} / 256"
    return f"peak {base:g}"


def _schedule(keys: Facts) -> Iterator[str | None]:
    warmup = str(keys.get("schedule.warmup", ""))
    yield f"warm-up {warmup}" if warmup and not warmup.startswith("0 ") else None
    yield _unless(keys, "schedule.decay", None, "{} decay")


def _where(run: RunRecord) -> Iterator[str | None]:
    attempt = run.attempts[-1] if run.attempts else None
    if attempt is not None:
        yield count(attempt.facts.get("workers", 1), "worker")
        yield attempt.facts.get("place")
    yield "GPUs" if run.keys.get("resources.gpus_per_worker") else "CPU"
    yield run.keys.get("precision")
    yield run.keys.get("engine.name")
    yield f"seed {run.keys['seed']}" if "seed" in run.keys else None
    yield str((run.environment or {}).get("host") or "") or None


def _pixels(resolution: object) -> str | None:
    return f"{resolution} x {resolution} pixels" if resolution is not None else None


def _unless(keys: Facts, key: str, default: object, text: str) -> str | None:
    value = keys.get(key)
    return None if value is None or value == default else text.format(value)


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _warnings(run: RunRecord, own: Result) -> Iterator[str]:
    status = run.status
    if status.state in _STATES:
        yield f"{_STATES[status.state]}: {status.short_reason}".rstrip(": ")
    elif status.state != "finished":
        reason = status.short_reason
        state = reason if reason.startswith(status.state) else f"{status.state}: {reason}".rstrip(": ")
        yield f"not finished ({state}): these results are preliminary"
    if own.last is not None and own.last.accuracy is None:
        bad = f": {own.last.num_nonfinite:,} samples have logits that are not finite" if own.last.num_nonfinite else ""
        yield f"the last evaluation is not finite{bad}"
    if status.state != "failed" and own.last is None:
        yield "not evaluated yet: there is no accuracy"
    target = target_text(run.summary)
    if target.startswith("MISSED"):
        yield f"target of stop_at: {target}"
    losses = [record["step"] for record in run.of_kind("train") if "loss" in record and record["loss"] is None]
    if losses:
        yield f"the loss was not finite in {count(len(losses), 'record')}, first at step {losses[0]:,}"
    if left_out := left_out_text(left_out_images(run)):
        yield f"left out: {left_out}"
    texts = [str(record.get("detail", {}).get("text")) for record in run.events("warning")]
    for text in dict.fromkeys(texts):
        times = texts.count(text)
        yield text if times == 1 else f"{text} ({times} times)"
    if stragglers := run.events("straggler"):
        yield f"{count(len(stragglers), 'straggler')} reported: a worker was much slower than the others"
    files = {run.directory.config.name: run.config, run.directory.environment.name: run.environment}
    missing = [name for name, content in files.items() if not content]
    if missing:
        are, it_records = ("are", "they record") if len(missing) > 1 else ("is", "it records")
        yield f"{' and '.join(missing)} {are} missing or cannot be read: what {it_records} is not shown"
    if run.attempts and not run.written:
        yield "metrics.jsonl is missing or empty: there are no curves"


def left_out_images(run: RunRecord) -> Facts:
    """The broken images that a run has left out so far, as in the summary of a finished one."""
    found: dict[str, Any] = {}
    for record in run.records:  # the newest numbers
        found |= {key: record[key] for key in ("num_left_out", "num_bad") if key in record}
    images = {str(record.get("detail", {}).get("path")) for record in run.events("bad_image")}
    return {**found, "num_bad_images": len(images), "num_known_bad": run.summary.get("num_known_bad")}


def _commands(run: RunRecord) -> Iterator[str]:
    """What a person types to train the run again."""
    environment = run.environment or {}
    git, packages = environment.get("git"), environment.get("packages")
    if isinstance(git, dict) and git.get("commit"):
        changed = "; the run had uncommitted changes to it" if git.get("changed") else ""
        where = f"    # in the repository from which the run was started{changed}"
        yield f"git checkout {shlex.quote(str(git['commit']))}{where}"
    if isinstance(packages, dict):
        versions = [f"{name}=={version}" for name, version in packages.items() if name in ("torch", "torchvision")]
        if versions:
            yield shlex.join(["pip", "install", *versions])
    if any("changed: " in note for attempt in run.attempts for note in attempt.facts.get("notes", ())):
        yield "# the config changed during the run (see the attempts): this trains with the last one from the start"
    config = shlex.quote(str(run.directory.config))
    yield f"python -m launcher.train {config} name={shlex.quote(f'{run.directory.name}-again')}"


def best_text(own: Result) -> str:
    """The best evaluation, if it is not the last one; empty otherwise."""
    best, last = own.best, own.last
    if best is None or best.accuracy is None or (last is not None and best.step == last.step):
        return ""
    where = f"step {best.step:,}" + ("" if best.epoch is None else f", epoch {best.epoch:.2f}")
    return f"{percent(best.accuracy.top1)} at {where}: chosen by the val images, so it is too high for new ones"


def command_text(run: RunRecord) -> str:
    """How long the command that finished the run took, with its parts; empty if it is not recorded."""
    whole = number(run.summary, "command_s")
    names = {
        "start_s": "to the first step",
        "training_s": "training",
        "evaluation_s": "evaluation",
        "saving_s": "saving",
    }
    parts = [(name, number(run.summary, key)) for key, name in names.items()]
    if whole is None:
        return ""
    known = [(name, seconds) for name, seconds in parts if seconds is not None]
    here = sum(attempt.session == run.attempts[-1].session for attempt in run.attempts) if run.attempts else 0
    rest = max(whole - sum(seconds for _, seconds in known), 0.0)
    known.append(("failed attempts and end" if here > 1 else "end", rest))
    found = ", ".join(f"{seconds:,.0f} s {name}" for name, seconds in known)
    return f"the last start took {whole:,.0f} s from the command to its end: {found}"


def plan_lines(outcome: Outcome) -> Iterator[str]:
    """The forecast that the run was started with against what came."""
    predicted = outcome.forecast.wall_s
    fits = "inside" if outcome.inside else "OUTSIDE"
    yield (
        f"time: {outcome.actual_s:,.0f} s, {fits} the predicted {predicted.low:,.0f} to {predicted.high:,.0f} s "
        f"(80 %; median {predicted.median:,.0f} s; from {outcome.forecast.source})"
    )
    if outcome.accuracy is not None and outcome.top1 is not None:
        fits = "inside" if outcome.accuracy_inside else "OUTSIDE"
        low, high = percent(outcome.accuracy.low), percent(outcome.accuracy.high)
        yield f"top-1: {percent(outcome.top1)}, {fits} the predicted {low} to {high} (80 %)"


def described(found: RunFacts) -> Mapping[str, Any]:
    """The facts of a run for JSON."""
    run, own, status = found.run, found.result, found.run.status
    plan = found.plan
    return {
        "run": str(run.directory.path),
        "name": run.name,
        "state": status.state,
        "reason": status.reason,
        "step": status.step,
        "total_steps": status.total_steps,
        "result": None if own.last is None else _evaluation(own.last),
        "best": None if own.best is None else _evaluation(own.best),
        "label": own.label,
        "trained": dict(found.trained),
        "warnings": list(found.warnings),
        "images_per_s": found.images_per_s,
        "command_s": number(run.summary, "command_s"),
        "goodput": {
            "fraction": found.goodput.fraction if found.goodput.is_known else None,
            "useful_worker_s": found.goodput.useful,
            "all_worker_s": found.goodput.all,
            "parts_worker_s": dict(found.goodput.parts),
            "scheduled_s": found.goodput.scheduled_s,
            "not_scheduled_s": found.goodput.not_scheduled_s,
        },
        "attempts": [timeline.described(entry) for entry in found.entries],
        "plan": None
        if plan is None
        else {
            "predicted_s": asdict(plan.forecast.wall_s),
            "actual_s": plan.actual_s,
            "inside": plan.inside,
            "source": plan.forecast.source,
            "predicted_top1": None if plan.accuracy is None else asdict(plan.accuracy),
            "accuracy_inside": plan.accuracy_inside,
        },
        "reference_points": None if found.reference is None else found.reference.described(),
        "config": run.config,
        "environment": run.environment,
        "commands": list(found.commands),
        "last_cause": first_line(run.attempts[-1].cause) if run.attempts else "",
    }


def _evaluation(found: Any) -> Mapping[str, Any]:
    accuracy = found.accuracy
    return {
        "step": found.step,
        "epoch": found.epoch,
        "top1": None if accuracy is None else accuracy.top1,
        "top1_interval": None if accuracy is None else accuracy.interval,
        "top5": found.top5,
        "loss": found.loss,
        "num_samples": found.num_samples,
        "num_bad": found.num_bad,
        "weights": found.weights,
    }
