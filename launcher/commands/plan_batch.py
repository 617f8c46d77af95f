"""`launcher plan CONFIG --batch B`: the published recipe for a batch, with the source of each number."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.commands.plan_text import columns, paragraph
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem, UsageError
from launcher.planning.published_recipe import compared, recipe_overrides
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.published import Number, Published, published
from resnet_dist.recipe.requirements import LARGEST_COUNT


def published_for(config: RunConfig, batch: int) -> Published:
    """What is published for `batch` with the optimizer of the config (sgd, or lars with its `lr_in_momentum`).

    Raises ConfigError if nothing is published for this batch or network, UsageError for a number that is no batch.
    """
    if not 1 <= batch <= LARGEST_COUNT:
        raise UsageError(f"--batch {batch}: Allowed: a whole number from 1 to {LARGEST_COUNT}")
    try:
        return published(config, batch, replaces_optimizer=True)
    except RecipeError as error:
        problem = Problem(f"command line: --batch {batch}", "", error.problem, error.allowed)
        raise ConfigError([problem]) from None


def overrides(found: Published, config: RunConfig) -> list[str]:
    """The `key=value` texts that change `config` to the published recipe."""
    return [f"{key}={_flow(value)}" for key, value in recipe_overrides(found, config).items()]


def command(path: str | os.PathLike[str], given: Sequence[str]) -> str:
    """The command that trains the config at `path` with these overrides."""
    return shlex.join(["python", "-m", "launcher.train", os.fspath(path), *given])


def lines(found: Published, config: RunConfig) -> Iterator[str]:
    """The recipe for a batch, with the source of each number."""
    origin = found.origin
    yield from paragraph(f"{config.name} with a batch of {found.batch:,}: {found}")
    changes = recipe_overrides(found, config)
    schedule = changes["schedule"]
    fixed = {key: value for key, value in schedule.items() if key not in ("peak_lr", "warmup")}
    constant = origin.name if found.exact else f"{origin.name}, the same for all of its batches"
    rows = [
        ("optimizer", _words(origin.optimizer), constant),
        ("peak LR", f"{schedule['peak_lr']:g}", _source(found, "peak_lr")),
        ("momentum", f"{changes['optimizer']['momentum']:g}", _source(found, "momentum")),
        ("weight decay", f"{changes['optimizer']['weight_decay']:g}", _source(found, "weight_decay")),
        ("warm-up", schedule["warmup"], _source(found, "warmup_epochs")),
        ("duration", changes["duration"], _source(found, "duration_epochs")),
        ("schedule", _words(fixed), constant),
        ("batch norm", f"span {changes['batch_norm.span']}", _span_source(found)),
        ("label smoothing", f"{origin.label_smoothing:g}", constant),
        ("expected", *_result(found, config)),
    ]
    yield from columns(rows)
    yield from paragraph(f"source: {origin.source}")
    if not found.exact:
        yield from paragraph(
            "Interpolated: linear in the batch between the two runs, MLPerf's rule for the epochs to its target. Nobody"
            " has published a run with these numbers."
        )
    yield from paragraph("optimizer and schedule are replaced as a whole; all other keys are those of the config.")


def _source(found: Published, name: Number) -> str:
    if found.exact:
        return found.origin.name
    below, above = (getattr(run, name) for run in found.runs)
    if below == above:
        return f"{found.origin.name}, the same for both batches"
    first, second = found.runs
    return f"interpolated: {below:.6g} with {first.batch:,}, {above:.6g} with {second.batch:,}"


def _span_source(found: Published) -> str:
    if found.batch_norm_span is None:
        return "the project's default: the source has no span that divides this batch"
    return found.origin.name if found.exact else f"{found.origin.name}, of the nearer batch: not interpolated"


def _result(found: Published, config: RunConfig) -> tuple[str, str]:
    """The accuracy of the published runs and its source; of a recipe that has other keys than theirs, which keys."""
    comparison = compared(config)
    if comparison is not None and not comparison.other:
        return _expected(found), _expected_source(found)
    other = [] if comparison is None else sorted(comparison.other)
    return "unknown", f"other than {found.origin.name}'s: {', '.join(other)}"


def _expected(found: Published) -> str:
    epochs = found.number("epochs_to_target")
    if epochs is not None:
        return f"75.9 % top-1 after {epochs:.1f} epochs"
    accuracies = sorted({f"{100 * run.top1:.1f}" for run in found.runs if run.top1 is not None})
    return f"{' to '.join(accuracies)} % top-1 at the end"


def _expected_source(found: Published) -> str:
    if found.number("epochs_to_target") is not None:
        return _source(found, "epochs_to_target")
    return found.origin.name if found.exact else f"{found.origin.name}, of the two batches"


def _words(values: Mapping[str, Any]) -> str:
    """`{"name": "lars", "nesterov": True}` as `lars, nesterov true`."""
    parts = (value if key in ("name", "decay") else f"{key} {_flow(value)}" for key, value in values.items())
    return ", ".join(parts)


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    match value:
        case bool():
            return str(value).lower()
        case Mapping():
            return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case _:
            return str(value)
