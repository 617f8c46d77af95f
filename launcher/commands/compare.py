"""`launcher compare RUN_A RUN_B`: the first step in which two runs differ, in what, by how much, and what else differs.

Exit code 0 where all common steps agree within the tolerance, 1 where one does not or there is no common step, 64
where there is no run. Steps that only one run has, and differences of config, environment and attempts, are told and
change no exit code: that two engines train the same curve is what one compares them for.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.api import Run, load_run
from launcher.commands.curve_difference import ABSENT, Curve, Difference, Pair, curve, differences, ranges
from launcher.config import yaml_source
from launcher.errors import ConfigError, UsageError
from launcher.run.directory import Attempt, RunDirectory
from resnet_dist.errors import StorageError
from resnet_dist.telemetry.json_lines import without_non_finite
from resnet_dist.telemetry.metrics_file import read_metrics

TOLERANCE = 1e-6  # of float32 runs at their first step; README and docs/reproducibility.md say what to expect later

_LABELS = {
    "sample_ids": "sample ids",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "num_samples": "images",
}
_MEANINGS = {
    "sample_ids": "the runs saw other images: seed, data, batch size or the step that they started from",
    "learning_rate": "the same images went in at another LR: schedule, duration or batch size",
    "loss": "the same went in and another loss came out: initial weights, augmentation, batch norm, precision, or the"
    " weights that the steps before left",
    "gradient_norm": "the losses agree and the gradients do not: backward pass, averaging or weight decay",
}


@dataclass(frozen=True)
class Side:
    """What a run directory holds of the things that are compared; None is "not recorded"."""

    path: Path
    records: Sequence[dict[str, Any]]
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    attempts: Sequence[Attempt]
    finished: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    a: Side
    b: Side
    tolerance: float
    train: Curve
    evaluation: Curve
    config: list[Difference] | None  # None where a side has not recorded it
    environment: list[Difference] | None
    log_every: tuple[int | None, int | None]  # log.every_steps of both

    @property
    def differs(self) -> bool:
        """Whether a common step differs, or nothing could be compared."""
        return self.train.differs or self.evaluation.differs or not self.train.common


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    verb = verbs.add_parser("compare", help="the first step in which two runs differ, in what and by how much")
    verb.add_argument("run_a", metavar="RUN_A", help="a run directory, <storage>/<name>")
    verb.add_argument("run_b", metavar="RUN_B", help="another one")
    verb.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative difference let pass (%(default)g)")
    verb.add_argument("--json", action="store_true", help="for machines")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the comparison; 0 the same, 1 different. Raises UsageError where there is no run."""
    if not (given.tolerance >= 0 and math.isfinite(given.tolerance)):
        raise UsageError(f"--tolerance {given.tolerance}: Allowed: a number from 0 up; 0 asks for equal bits")
    comparison = compare(given.run_a, given.run_b, given.tolerance)
    if given.json:
        print(json.dumps(without_non_finite(described(comparison)), indent=2, default=repr, allow_nan=False))
    else:
        for line in lines(comparison):
            print(line)
    return 1 if comparison.differs else 0


def compare(a: str | Path, b: str | Path, tolerance: float = TOLERANCE) -> Comparison:
    """Compare the runs in two folders; UsageError where a folder holds no run."""
    one, other = _side(load_run(a)), _side(load_run(b))
    every = tuple(_log_every(side) for side in (one, other))
    return Comparison(
        a=one,
        b=other,
        tolerance=tolerance,
        train=curve("train", one.records, other.records, tolerance),
        evaluation=curve("eval", one.records, other.records, tolerance),
        config=_differences(one.config, other.config, ()),
        environment=_differences(one.environment, other.environment, ("time",)),
        log_every=(every[0], every[1]),
    )


def _side(run: Run) -> Side:
    directory = RunDirectory(run.path.parent, run.path.name)
    records = read_metrics(directory.metrics) if directory.metrics.is_file() else []
    return Side(
        path=run.path,
        records=records,
        config=_config(directory.config),
        environment=_environment(directory.environment),
        attempts=directory.attempts(),
        finished=directory.is_finished(),
    )


def _config(file: Path) -> dict[str, Any] | None:
    """The keys of config.yaml as they stand: a run of another version has other keys, and is compared all the same."""
    if not file.is_file():
        return None
    try:
        return dict(yaml_source.parse(yaml_source.decode(file.read_bytes(), str(file)), str(file)).data)
    except ConfigError as error:
        raise StorageError(str(file), f"is not the config that a run writes: {error}") from error


def _environment(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise StorageError(str(file), f"cannot be read ({error})") from error
    return content if isinstance(content, dict) else None


def _differences(a: dict[str, Any] | None, b: dict[str, Any] | None, leave_out: Sequence[str]) -> Any:
    return None if a is None or b is None else differences(a, b, leave_out)


def _log_every(side: Side) -> Any:
    section = (side.config or {}).get("log")
    return section.get("every_steps") if isinstance(section, dict) else None


def lines(comparison: Comparison) -> Iterator[str]:
    """The comparison for a person."""
    train, evaluation = comparison.train, comparison.evaluation
    yield from _columns([["A", *_head(comparison.a)], ["B", *_head(comparison.b)]])
    yield ""
    every_a, every_b = comparison.log_every
    if None not in comparison.log_every and every_a != every_b:
        yield (
            f"warning: log.every_steps is {every_a} in A and {every_b} in B: only steps that both wrote are compared"
        )
    if not train.common:
        yield "no step in common: nothing could be compared"
        yield from _why_none(comparison)
    else:
        yield f"train   {_verdict(train, comparison.tolerance)}"
        yield from _curve(train, comparison.tolerance)
        yield from _unwritten(train)
    if evaluation.common:
        yield ""
        yield f"eval    {_verdict(evaluation, comparison.tolerance)}"
        yield from _curve(evaluation, comparison.tolerance)
    yield ""
    yield f"steps only in A  {ranges(train.only_a)}"
    yield f"steps only in B  {ranges(train.only_b)}"
    yield ""
    yield from _section("config", comparison.config, comparison.a.config, comparison.b.config)
    yield from _section("environment", comparison.environment, comparison.a.environment, comparison.b.environment)
    yield "attempts"
    yield from _columns([*_attempts("A", comparison.a.attempts), *_attempts("B", comparison.b.attempts)], indent=2)


def _head(side: Side) -> list[str]:
    steps = [record["step"] for record in side.records if record["kind"] == "train"]
    reach = f"{len(steps)} steps written, the last one {steps[-1]}" if steps else "no step written"
    return [str(side.path), "finished" if side.finished else "not finished", reach]


def _verdict(compared: Curve, tolerance: float) -> str:
    common = f"{len(compared.common)} steps in common ({compared.common[0]} to {compared.common[-1]})"
    if not compared.differs:
        return f"{common}: the same within {tolerance:g}"
    return f"{common}: differ from step {compared.first[0].step} on (by more than {tolerance:g})"


def _why_none(comparison: Comparison) -> Iterator[str]:
    train = comparison.train
    if train.only_a and train.only_b:
        yield f"  A wrote steps {ranges(train.only_a)}, B wrote {ranges(train.only_b)} (log.every_steps)"
        yield "  train both with log.every_steps=1"
    else:
        sides = " and ".join(side for side, steps in (("A", train.only_a), ("B", train.only_b)) if not steps)
        yield f"  no step is written in {sides}: none was done yet, or fewer than log.every_steps"


def _unwritten(train: Curve) -> Iterator[str]:
    """Steps before the first difference that neither side can tell of."""
    if train.first:
        step = train.first[0].step
        first = max((before for before in train.common if before < step), default=0) + 1
        if first < step:
            steps = f"steps {first} to {step - 1} were" if first < step - 1 else f"step {first} was"
            yield f"  {steps} not written by both (log.every_steps), and may differ already:"
            yield "  with log.every_steps=1 in both runs the first one is found"


def _curve(compared: Curve, tolerance: float) -> Iterator[str]:
    head = ["A", "B", "absolute", "relative"]
    rows = []
    if compared.first:
        rows.append([f"at step {compared.first[0].step}", *head, ""])
        rows += [[f"  {_label(pair)}", *_numbers(pair), _mark(pair, tolerance)] for pair in compared.first]
    rows.append(["largest difference", *head, ""])
    rows += [[f"  {_label(pair)}", *_numbers(pair), _place(pair)] for pair in compared.largest]
    for quantity, sides in compared.not_recorded.items():
        rows.append([f"  {_LABELS.get(quantity, quantity)}", "-", "-", "-", "-", f"not recorded in {sides}"])
    yield from _columns(rows, indent=2)
    causes = [pair.quantity for pair in compared.first if pair.differs(tolerance)]
    if compared.kind == "train" and causes:
        unknown = "sample_ids" in compared.not_recorded and causes[0] != "sample_ids"
        yield f"  {_MEANINGS[causes[0]]}{'; or other images: their ids were not recorded' * unknown}"


def _label(pair: Pair) -> str:
    return _LABELS.get(pair.quantity, pair.quantity)


def _numbers(pair: Pair) -> list[str]:
    measures = [f"{value:.3g}" if value is not None else "-" for value in (pair.absolute, pair.relative)]
    return [*("not finite" if value is None else _digits(value) for value in (pair.a, pair.b)), *measures]


def _digits(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _mark(pair: Pair, tolerance: float) -> str:
    return "differs" if pair.differs(tolerance) else "same"


def _place(pair: Pair) -> str:
    return "equal in every step" if pair.a == pair.b else f"at step {pair.step}"


def _section(title: str, found: list[Difference] | None, a: Any, b: Any) -> Iterator[str]:
    if found is None:
        sides = " and ".join(side for side, value in (("A", a), ("B", b)) if value is None)
        yield f"{title}: not recorded in {sides}"
    elif not found:
        yield f"{title}: the same"
    else:
        yield f"{title}: {len(found)} key{'s' * (len(found) > 1)} differ{'s' * (len(found) == 1)}"
        yield from _columns([["", "A", "B"], *([item.key, _shown(item.a), _shown(item.b)] for item in found)], indent=2)
    yield ""


def _shown(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, default=repr)


def _attempts(side: str, attempts: Sequence[Attempt]) -> Iterator[list[str]]:
    for attempt in attempts:
        facts = ", ".join(f"{key} {value}" for key, value in attempt.facts.items())
        end = "no end recorded" if attempt.exit_code is None else f"exit {attempt.exit_code}: {attempt.cause}"
        yield [f"{side} {attempt.number}", attempt.started, facts, end]


def _columns(rows: Sequence[Sequence[str]], indent: int = 0) -> Iterator[str]:
    """Rows with aligned columns; the last one is as long as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield (" " * indent + "  ".join([*cells, row[-1]])).rstrip()


def described(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON. A value that a side lacks is left out of its difference."""
    return {
        "differs": comparison.differs,
        "tolerance": comparison.tolerance,
        "runs": {"a": str(comparison.a.path), "b": str(comparison.b.path)},
        "train": _described(comparison.train, comparison.tolerance),
        "eval": _described(comparison.evaluation, comparison.tolerance),
        "log_every_steps": comparison.log_every if comparison.log_every[0] != comparison.log_every[1] else None,
        "config": _keys(comparison.config),
        "environment": _keys(comparison.environment),
        "attempts": {
            side: [
                {"number": one.number, "facts": dict(one.facts), "exit_code": one.exit_code, "cause": one.cause}
                for one in attempts
            ]
            for side, attempts in (("a", comparison.a.attempts), ("b", comparison.b.attempts))
        },
    }


def _described(compared: Curve, tolerance: float) -> dict[str, Any]:
    return {
        "num_common": len(compared.common),
        "first_difference": None
        if not compared.first
        else {
            "step": compared.first[0].step,
            "quantities": {pair.quantity: _pair(pair, tolerance) for pair in compared.first},
        },
        "largest": {pair.quantity: {"step": pair.step, **_pair(pair, tolerance)} for pair in compared.largest},
        "not_recorded": dict(compared.not_recorded),
        "only_a": compared.only_a,
        "only_b": compared.only_b,
    }


def _pair(pair: Pair, tolerance: float) -> dict[str, Any]:
    values = {"a": pair.a, "b": pair.b, "absolute": pair.absolute, "relative": pair.relative}
    return {**values, "differs": pair.differs(tolerance)}


def _keys(found: list[Difference] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        item.key: {side: value for side, value in (("a", item.a), ("b", item.b)) if value is not ABSENT}
        for item in found
    }
