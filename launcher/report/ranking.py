"""Runs by their result, and what a reader must know before one is called better than another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.formatting import count, table
from launcher.report.differences import ABSENT
from launcher.report.goodput import Goodput, goodput_of, spans
from launcher.report.result import Result, interval_text, percent, result
from launcher.report.run_record import RunRecord, number
from launcher.run.record_types import Facts

SAMPLING_NOTE = (
    "The interval (95 %, Wilson) is the uncertainty that comes from the number of val images. Another seed changes a "
    "result as well: train each setting with several seeds (launcher study) before you call one better"
)
# Keys that say who a run is and where it is, not what it does.
IDENTITY = ("name", "storage")


@dataclass(frozen=True)
class Ranked:
    """A run with its place among others: 1 has the highest top-1 of the last evaluation. Equal top-1, equal place."""

    place: int | None  # None: not evaluated, or not finite
    run: RunRecord
    result: Result
    goodput: Goodput
    images_per_s: float | None
    behind: float | None  # top-1 of the first minus its own
    is_separated: bool  # from the first, by more than the sampling of the images explains


def ranked(runs: Sequence[RunRecord]) -> list[Ranked]:
    """The runs by top-1 of their last evaluation, then by loss. Those without one come last."""
    results = [(run, result(run)) for run in runs]
    results.sort(key=lambda pair: _order(pair[1]))
    first = next((found.accuracy for _, found in results if found.accuracy is not None), None)
    top1s = [found.accuracy.top1 for _, found in results if found.accuracy is not None]
    made = []
    for run, found in results:
        own = found.accuracy
        made.append(
            Ranked(
                place=None if own is None else top1s.index(own.top1) + 1,
                run=run,
                result=found,
                goodput=goodput_of(run, spans(run)),
                images_per_s=images_per_s(run),
                behind=None if own is None or first is None else first.top1 - own.top1,
                is_separated=own is not None and first is not None and first.differs_from(own),
            )
        )
    return made


def _order(found: Result) -> tuple[bool, float, float]:
    accuracy, loss = found.accuracy, None if found.last is None else found.last.loss
    top1 = 0.0 if accuracy is None else accuracy.top1
    return accuracy is None, -top1, float("inf") if loss is None else loss


def images_per_s(run: RunRecord) -> float | None:
    """Images per second over all recorded steps, weighted by their time; None if nothing was measured."""
    measured = []
    for record in run.of_kind("train"):
        speed, seconds = number(record, "images_per_s"), number(record, "step_time_s")
        if speed is not None and seconds is not None:
            measured.append((speed, seconds))
    total = sum(seconds for _, seconds in measured)
    return sum(speed * seconds for speed, seconds in measured) / total if total else None


def warnings(rows: Sequence[Ranked]) -> list[str]:
    """Why the results of the rows cannot be compared as they are; empty if they can."""
    evaluated = [row for row in rows if row.result.last is not None]
    found = []
    if _have_other_images(evaluated):
        roots = [(row.run.name, _num_samples(row), row.run.keys.get("data.root")) for row in evaluated]
        named = ", ".join(f"{name}: {number} of {root}" for name, number, root in roots)
        found.append(f"The runs were evaluated on different images ({named}): their accuracies cannot be compared")
    labels = {row.result.label: row.run.name for row in evaluated}
    if len(labels) > 1:
        named = "; ".join(f"{name}: {label}" for label, name in labels.items())
        found.append(f"The accuracies were measured in different ways ({named})")
    if len({row.run.keys.get("duration") for row in evaluated}) > 1:
        named = ", ".join(f"{row.run.name}: {row.run.keys.get('duration', 'not recorded')}" for row in evaluated)
        found.append(f"The runs have different durations ({named}): more training may be the cause of a difference")
    unfinished = [row.run.name for row in evaluated if row.run.status.state != "finished"]
    if unfinished:
        its = "Its" if len(unfinished) == 1 else "Their"
        found.append(f"Not finished: {', '.join(unfinished)}. {its} last evaluation is of an earlier step")
    return found


def _have_other_images(evaluated: Sequence[Ranked]) -> bool:
    """Whether the rows were not all evaluated on the same images."""
    data = {row.run.val_data or (row.run.keys.get("data.root"), _num_samples(row)) for row in evaluated}
    return len(data) > 1 or len({_num_samples(row) for row in evaluated}) > 1


def verdict(rows: Sequence[Ranked]) -> str:
    """In one sentence, whether the first run is better than the others.

    Empty with fewer than two results, and if they are of different images.
    """
    evaluated = [row for row in rows if row.place is not None]
    if len(evaluated) < 2 or _have_other_images(evaluated):
        return ""
    best = [row.run.name for row in evaluated if row.place == 1]
    others = evaluated[len(best) :]
    lead = f"{best[0]} has the highest top-1"
    if len(best) > 1:
        lead = f"{', '.join(best[:-1])} and {best[-1]} have the same top-1"
    if not others:
        return lead
    if len(best) > 1:
        lead += ", which is the highest"
    close = [row.run.name for row in others if not row.is_separated]
    if close:
        num_far = len(others) - len(close)
        ahead = "it is" if len(best) == 1 else "they are"
        far = f"; {ahead} ahead of {count(num_far, 'other run')}" if num_far else ""
        difference = f"the difference to {', '.join(close)} is within the sampling error of the val images"
        return f"{lead}, but {difference}{far}"
    return f"{lead}, by more than the sampling error of the val images"


def differing_keys(facts: Sequence[Facts], leave_out: Sequence[str] = IDENTITY) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all flat mappings: the value in each, ABSENT where there is none.

    >>> differing_keys([{"seed": 0, "batch.size": 64}, {"seed": 1, "batch.size": 64}])
    {'seed': [0, 1]}
    """
    keys = dict.fromkeys(key for one in facts for key in one)
    found = {key: [one.get(key, ABSENT) for one in facts] for key in keys if key not in leave_out}
    return {key: values for key, values in found.items() if len({_identity(value) for value in values}) > 1}


def _identity(value: object) -> tuple[str, str]:
    return type(value).__name__, repr(value)  # true and 1 are equal in Python, but not in a config


def _num_samples(row: Ranked) -> int | None:
    return None if row.result.last is None else row.result.last.num_samples


HEAD = ("", "run", "top-1", "95 % interval", "best top-1", "loss", "steps", "time", "images/s")


def cells(row: Ranked) -> list[str]:
    """The texts of a row, in the order of HEAD."""
    last, best = row.result.last, row.result.best
    state = "" if row.run.status.state == "finished" else f" ({row.run.status.state})"
    return [
        "-" if row.place is None else str(row.place),
        f"{row.run.name}{state}",
        "n/a" if last is None or last.accuracy is None else percent(last.accuracy.top1),
        "" if last is None or last.accuracy is None else interval_text(last.accuracy),
        "" if best is None or best.accuracy is None else f"{percent(best.accuracy.top1)} (step {best.step:,})",
        "n/a" if last is None or last.loss is None else f"{last.loss:.4g}",
        f"{row.run.status.step or 0:,}",
        duration(row.goodput.scheduled_s),
        "n/a" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
    ]


def duration(seconds: float) -> str:
    """A time as text.

    >>> duration(48.4), duration(3723), duration(200_000)
    ('48 s', '1 h 02 min', '55 h 33 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def lines(
    rows: Sequence[Ranked],
    *,
    with_keys: bool = True,
    tabulate: Callable[[Sequence[Sequence[str]]], Iterator[str]] = table,
) -> Iterator[str]:
    """The ranking as text: the table, how far it goes, and the keys of the configs that differ if asked for."""
    yield from tabulate([HEAD, *map(cells, rows)])
    for text in warnings(rows):
        yield f"warning: {text}"
    if text := verdict(rows):
        yield text
    if any(row.place is not None for row in rows):
        yield SAMPLING_NOTE
    keys = differing_keys([row.run.keys for row in rows])
    if keys and with_keys:
        yield ""
        yield "config keys that differ"
        names = [row.run.name for row in rows]
        yield from table([["", *names], *([key, *map(shown, values)] for key, values in keys.items())], indent=2)


def shown(value: object) -> str:
    """A value of a key as text; empty for one that a run does not have."""
    if value is ABSENT or isinstance(value, str):
        return str(value) if isinstance(value, str) else ""
    return json.dumps(value, ensure_ascii=False, default=str)


def described(row: Ranked) -> Mapping[str, object]:
    """A row for JSON."""
    last, best = row.result.last, row.result.best
    accuracy = None if last is None else last.accuracy
    return {
        "place": row.place,
        "run": str(row.run.directory.path),
        "top1": None if accuracy is None else accuracy.top1,
        "top1_interval": None if accuracy is None else accuracy.interval,
        "behind_first": row.behind,
        "separated_from_first": row.is_separated,
        "best_top1": None if best is None or best.accuracy is None else best.accuracy.top1,
        "best_step": None if best is None else best.step,
        "loss": None if last is None else last.loss,
        "label": row.result.label,
        "step": row.run.status.step,
        "epoch": None if last is None else last.epoch,
        "time_s": row.goodput.scheduled_s,
        "images_per_s": row.images_per_s,
    }
