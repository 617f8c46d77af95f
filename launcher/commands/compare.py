"""`launcher compare RUN RUN ...`: runs by their result; of two runs, also the first step in which they differ.

With two runs: exit code 0 if all common steps agree within the tolerance, 1 if one does not or there is no common step.
Steps that only one run has, and differences of config, environment and attempts, are shown and do not change the exit
code: runs with different engines may have the same curve. With more runs: exit code 0. 64 if there is no run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.commands.fitted import fitted_table, print_fitted
from launcher.errors import UsageError
from launcher.formatting import count, first_line, table
from launcher.report import ranking
from launcher.report.differences import ABSENT, Curve, Difference, Pair, curve, differences, ranges
from launcher.report.run_record import RunRecord, read_all
from launcher.run.named import find_here
from launcher.run.record_types import Facts
from resnet_dist.input_files import printable
from resnet_dist.telemetry.json_lines import without_non_finite

TOLERANCE = 1e-6  # of float32 runs at their first step; README and docs/reproducibility.md describe later steps

_LABELS = {
    "sample_ids": "sample ids",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "num_samples": "images",
}
_CAUSES = {
    "sample_ids": "the runs used different images: seed, data, batch size or first step differ",
    "learning_rate": "the images agree and the LR differs: schedule, duration or batch size differ",
    "loss": "images and LR agree and the loss differs: initial weights, augmentation, batch norm, precision, broken"
    " images that were left out (num_left_out) or the steps before differ",
    "gradient_norm": "the losses agree and the gradients differ: backward pass, averaging or weight decay differ",
}


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    a: RunRecord
    b: RunRecord
    tolerance: float
    train: Curve
    evaluation: Curve
    config: list[Difference] | None  # None if a side has not recorded it
    environment: list[Difference] | None

    @property
    def differs(self) -> bool:
        """Whether a common step differs, or there is no common step."""
        return bool(self.train.first or self.evaluation.first or not self.train.common)


def add_parser(verbs: Any) -> None:
    """RUN RUN ... [--tolerance T] [--json]"""
    verb = verbs.add_parser("compare", help="rank runs by result; of two, the first step in which they differ")
    verb.add_argument("run_a", metavar="RUN", help="a run directory, STORAGE/NAME, its name, or the run's config")
    verb.add_argument("others", metavar="RUN", nargs="+", help="another one, or more")
    verb.add_argument(
        "--tolerance", type=float, default=TOLERANCE,
        help="accepted relative difference of two runs (%(default)g)",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the comparison; returns 1 for two runs that differ, else 0. Raises UsageError if there is no run."""
    if not (given.tolerance >= 0 and math.isfinite(given.tolerance)):
        raise UsageError(f"--tolerance {given.tolerance}: Allowed: a number from 0 up; 0 compares bit by bit")
    runs = read_all([find_here(name) for name in (given.run_a, *given.others)])
    comparison = compare(runs[0], runs[1], given.tolerance) if len(runs) == 2 else None
    rows = ranking.ranked(list({run.directory.path: run for run in runs}.values()))  # named twice, a run counts once
    if given.json:
        found = {"ranking": [ranking.described(row) for row in rows], "warnings": ranking.warnings(rows)}
        found = {**(described(comparison) if comparison is not None else {}), **found}
        print(json.dumps(without_non_finite(found), indent=2, default=repr, allow_nan=False))
    else:
        ranked = ranking.lines(rows, with_keys=comparison is None, tabulate=fitted_table)
        print_fitted([*ranked, "", *lines(comparison)] if comparison is not None else ranked)
    return 1 if comparison is not None and comparison.differs else 0


def compare(a: RunRecord, b: RunRecord, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two runs step by step."""
    return Comparison(
        a=a,
        b=b,
        tolerance=tolerance,
        train=curve("train", a.records, b.records, tolerance),
        evaluation=curve("eval", a.records, b.records, tolerance),
        config=_differences(a.config, b.config),
        environment=_differences(a.environment, b.environment),
    )


def _differences(a: Facts | None, b: Facts | None) -> list[Difference] | None:
    return None if a is None or b is None else differences(a, b)


def lines(comparison: Comparison) -> Iterator[str]:
    """The comparison as text."""
    a, b, train, tolerance = comparison.a, comparison.b, comparison.train, comparison.tolerance
    yield from table([["A", *_head(a)], ["B", *_head(b)]])
    yield ""
    log_every = a.keys.get("log.every_steps"), b.keys.get("log.every_steps")
    if None not in log_every and log_every[0] != log_every[1]:
        yield (
            f"warning: log.every_steps is {log_every[0]} in A and {log_every[1]} in B: only the common steps are"
            " compared"
        )
    if train.common:
        yield from _curve("train", train, tolerance)
        yield from _not_logged(train)
    else:
        yield "no step in common: nothing could be compared"
        yield from _why_none(train, a, b)
    if comparison.evaluation.common:
        yield ""
        yield from _curve("eval", comparison.evaluation, tolerance)
    yield ""
    yield f"steps only in A  {ranges(train.only_a)}"
    yield f"steps only in B  {ranges(train.only_b)}"
    yield ""
    yield from _section("config", comparison.config, a.config, b.config)
    yield from _section("environment", comparison.environment, a.environment, b.environment)
    yield "attempts"
    yield from table([*_attempts("A", a), *_attempts("B", b)], indent=2)


def _head(side: RunRecord) -> list[str]:
    steps = [record["step"] for record in side.records if record["kind"] == "train"]
    logged = f"{count(len(steps), 'step')} logged, the last one {steps[-1]}" if steps else "no step logged"
    finished = "finished" if side.directory.is_finished() else "not finished"
    return [printable(str(side.directory.path)), finished, logged]


def _why_none(train: Curve, a: RunRecord, b: RunRecord) -> Iterator[str]:
    if train.only_a and train.only_b:
        yield f"  A logged steps {ranges(train.only_a)}, B logged {ranges(train.only_b)} (log.every_steps)"
        yield "  train both with log.every_steps=1"
        return
    without = {name: run for name, run, steps in (("A", a, train.only_a), ("B", b, train.only_b)) if not steps}
    lost = [name for name, run in without.items() if run.directory.is_finished() and not run.written]
    if lost:
        yield f"  {' and '.join(lost)}: metrics.jsonl is missing or empty"
    if waiting := [name for name in without if name not in lost]:
        yield f"  {' and '.join(waiting)} logged no step: none is done yet, or fewer than log.every_steps"


def _not_logged(train: Curve) -> Iterator[str]:
    """The steps before the first difference that the runs have not both logged."""
    if not train.first:
        return
    step = train.first[0].step
    first = max((before for before in train.common if before < step), default=0) + 1
    if first < step:
        steps = f"steps {first} to {step - 1} were" if first < step - 1 else f"step {first} was"
        yield f"  {steps} not logged by both (log.every_steps), and may differ already:"
        yield "  log.every_steps=1 in both runs finds the first one"


def _curve(title: str, compared: Curve, tolerance: float) -> Iterator[str]:
    first, last = compared.common[0], compared.common[-1]
    steps = f"step {first}" if first == last else f"{first} to {last}"
    common = f"{count(len(compared.common), 'step')} in common ({steps})"
    outcome = f"the same within {tolerance:g}"
    if compared.first:
        outcome = f"differ from step {compared.first[0].step} on (by more than {tolerance:g})"
    yield f"{title:<8}{common}: {outcome}"
    head = ["A", "B", "absolute", "relative"]
    rows = []
    if compared.first:
        rows.append([f"at step {compared.first[0].step}", *head, ""])
        rows += [_row(pair, "differs" if pair.differs(tolerance) else "same") for pair in compared.first]
    rows.append(["largest difference", *head, ""])
    rows += [
        _row(pair, "equal in every step" if pair.a == pair.b else f"at step {pair.step}") for pair in compared.largest
    ]
    for quantity, sides in compared.not_recorded.items():
        rows.append([f"  {_LABELS.get(quantity, quantity)}", "-", "-", "-", "-", f"not recorded in {sides}"])
    yield from table(rows, indent=2)
    differing = [pair.quantity for pair in compared.first if pair.differs(tolerance)]
    if compared.kind == "train" and differing:
        unknown = "sample_ids" in compared.not_recorded and differing[0] != "sample_ids"
        yield f"  {_CAUSES[differing[0]]}{'; or other images: their ids were not recorded' * unknown}"


def _row(pair: Pair, remark: str) -> list[str]:
    values = ("not finite" if one is None else f"{one:.9g}" if isinstance(one, float) else str(one)
              for one in (pair.a, pair.b))  # fmt: skip
    measures = ("-" if one is None else f"{one:.3g}" for one in (pair.absolute, pair.relative))
    return [f"  {_LABELS.get(pair.quantity, pair.quantity)}", *values, *measures, remark]


def _section(title: str, found: Sequence[Difference] | None, a: Facts | None, b: Facts | None) -> Iterator[str]:
    if found is None:
        sides = " and ".join(side for side, value in (("A", a), ("B", b)) if value is None)
        yield f"{title}: not recorded in {sides}"
    elif not found:
        yield f"{title}: the same"
    else:
        yield f"{title}: {count(len(found), 'key')} {'differs' if len(found) == 1 else 'differ'}"
        yield from table([["", "A", "B"], *([one.key, _shown(one.a), _shown(one.b)] for one in found)], indent=2)
    yield ""


def _shown(value: object) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, default=repr)


def _attempts(name: str, side: RunRecord) -> Iterator[list[str]]:
    for attempt in side.attempts:
        known = {key.replace("_", " "): value for key, value in attempt.facts.items() if value not in (None, [])}
        facts = ", ".join(f"{key} {value}" for key, value in known.items())
        cause = first_line(attempt.cause).replace(f"{side.directory.path}/", "")
        end = "no end recorded" if attempt.exit_code is None else f"exit {attempt.exit_code}: {cause}"
        yield [f"{name} {attempt.number}", attempt.started, facts, end]


def described(comparison: Comparison) -> Mapping[str, object]:
    """The comparison as JSON. A difference leaves out a value that a side does not have."""
    a, b = comparison.a, comparison.b
    log_every = a.keys.get("log.every_steps"), b.keys.get("log.every_steps")
    return {
        "differs": comparison.differs,
        "tolerance": comparison.tolerance,
        "runs": {"a": str(a.directory.path), "b": str(b.directory.path)},
        "train": _described(comparison.train, comparison.tolerance),
        "eval": _described(comparison.evaluation, comparison.tolerance),
        "log_every_steps": log_every if log_every[0] != log_every[1] else None,
        "config": _keys(comparison.config),
        "environment": _keys(comparison.environment),
        "attempts": {
            side: [
                {"number": one.number, "facts": dict(one.facts), "exit_code": one.exit_code, "cause": one.cause}
                for one in attempts
            ]
            for side, attempts in (("a", a.attempts), ("b", b.attempts))
        },
    }


def _described(compared: Curve, tolerance: float) -> Mapping[str, object]:
    def values(pair: Pair) -> dict[str, object]:
        numbers = {"a": pair.a, "b": pair.b, "absolute": pair.absolute, "relative": pair.relative}
        return {**numbers, "differs": pair.differs(tolerance)}

    first = compared.first
    return {
        "num_common": len(compared.common),
        "first_difference": {"step": first[0].step, "quantities": {pair.quantity: values(pair) for pair in first}}
        if first
        else None,
        "largest": {pair.quantity: {"step": pair.step, **values(pair)} for pair in compared.largest},
        "not_recorded": dict(compared.not_recorded),
        "only_a": compared.only_a,
        "only_b": compared.only_b,
    }


def _keys(found: Sequence[Difference] | None) -> Mapping[str, object] | None:
    if found is None:
        return None
    return {
        one.key: {side: value for side, value in (("a", one.a), ("b", one.b)) if value is not ABSENT} for one in found
    }
