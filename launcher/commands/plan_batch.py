"""`launcher plan CONFIG --batch B`: the published recipe for a batch, with the source of each number."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem, UsageError
from launcher.formatting import table
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.published import Number, Published, published
from resnet_dist.recipe.requirements import LARGEST_COUNT


def lines(path: str | os.PathLike[str], overrides: Sequence[str], batch: int) -> Iterator[str]:
    """The recipe of the config at `path` with `batch`, and the command that trains it.

    The optimizer of the config (sgd, or lars with its `lr_in_momentum`) selects the published runs. The config with
    the recipe has been loaded without a problem when this returns its first line. Raises ConfigError if nothing is
    published for this batch or network, or if the config does not fit the batch.
    """
    if not 1 <= batch <= LARGEST_COUNT:
        raise UsageError(f"--batch {batch}: Allowed: a whole number from 1 to {LARGEST_COUNT}")
    config = configs.load(path, overrides)
    place = f"command line: --batch {batch}"
    try:
        found = published(config, batch, replaces_optimizer=True)
    except RecipeError as error:
        raise ConfigError([Problem(place, "", error.problem, error.allowed)]) from None
    recipe = [f"{key}={_flow(value)}" for key, value in recipe_overrides(found, config).items()]
    configs.load(path, [*overrides, *recipe])  # raises for a batch that does not fit the workers, for example
    yield from _table(found, config)
    yield ""
    yield shlex.join(["python", "-m", "launcher.train", os.fspath(path), *overrides, *recipe])


def recipe_overrides(found: Published, config: RunConfig) -> dict[str, Any]:
    """The keys that change `config` to the published recipe; other keys keep their values."""
    schedule = dict(found.origin.schedule)
    peak_lr, warmup, duration = found.number("peak_lr"), *_lengths(found)
    if schedule.get("warmup_start_lr", 0.0) >= peak_lr:  # Goyal et al. 2017 at a batch of 256: nothing to warm up to
        del schedule["warmup_start_lr"]
        warmup = "0 steps"
    optimizer = {"momentum": found.number("momentum"), "weight_decay": found.number("weight_decay")}
    return {
        "name": f"{config.name}-{found.batch}",
        "batch.size": found.batch,
        "duration": duration,
        "optimizer": {"name": found.origin.optimizer["name"], **optimizer, **found.origin.optimizer},
        "schedule": {"peak_lr": peak_lr, "warmup": warmup, **schedule},
        "batch_norm.span": found.batch_norm_span or "auto",
        "regularization.label_smoothing": found.origin.label_smoothing,
    }


def _lengths(found: Published) -> tuple[str, str]:
    """Warm-up and duration: as the source gives them, or interpolated, in epochs."""
    if found.exact:
        (run,) = found.runs
        return str(run.warmup), str(run.duration)
    return f"{found.number('warmup_epochs'):g} epochs", f"{found.number('duration_epochs'):g} epochs"


def _table(found: Published, config: RunConfig) -> Iterator[str]:
    origin = found.origin
    yield f"{config.name} with a batch of {found.batch:,}: {found}"
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
        ("expected", _expected(found), _expected_source(found)),
    ]
    yield from table(rows, indent=2)
    yield f"  source: {origin.source}"
    if not found.exact:
        yield "  Interpolated: linear in the batch between the two runs, MLPerf's rule for the epochs to its target."
        yield "  Nobody has published a run with these numbers."
    yield "  optimizer and schedule are replaced as a whole; all other keys are those of the config."


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
