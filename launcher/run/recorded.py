"""What a run has recorded of its recipe, read as the version that wrote it meant it, and what a config changes of it.

Needs no torch, so that a finished run is compared at once.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import format
from resnet_dist.errors import CheckpointError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import MEANT_BY_ABSENCE, Recipe

# What a run is: a change would make its later half another experiment.
FIXED = ("seed", "model", "data", "batch.size", "batch_norm", "optimizer.name", "optimizer.convention", "precision")
# Where the images lie and how they are read may change, if they are the same images (their fingerprint is compared).
FREE = ("data.root", "data.decoder", "data.prefetch", "data.num_samples", "model.weights")
# What a config may leave to the run, and the value that does so.
LEFT_TO_THE_RUN = {"span": "auto", "momentum": None, "epsilon": None}  # keys of batch_norm

# The last section of a config.yaml since version 0.1: a file without it is torn.
_LAST_SECTION = "log"


def newest_of(run: RunDirectory) -> tuple[str, dict[str, Any]] | None:
    """Where the run's recipe is recorded, and the recipe, as it stands: the newest checkpoint, or else config.yaml.

    Hashes are not compared. None where nothing can be read.
    """
    try:
        folders = format.step_folders(run.checkpoints)
    except OSError:
        folders = []
    for path in folders:
        try:
            format.check_sizes(path)
            state = format.read_json(path / format.STATE)
        except CheckpointError:
            continue
        if isinstance(state, dict) and isinstance(state.get("recipe"), dict):
            return str(path), state["recipe"]
    name = str(run.config)
    try:
        data = yaml_source.parse(yaml_source.decode(run.config.read_bytes(), name), name).data
    except (OSError, ConfigError):
        return None
    if _LAST_SECTION not in data:
        return None
    others = {part.name for part in dataclasses.fields(RunConfig)} - {part.name for part in dataclasses.fields(Recipe)}
    return name, {key: value for key, value in data.items() if key not in others}


def going_on(config: RunConfig, recipe: Mapping[str, Any]) -> RunConfig:
    """The config with what it leaves to the run, of the recorded `recipe`."""
    before = _meant(recipe)
    left = [name for name, value in LEFT_TO_THE_RUN.items() if getattr(config.batch_norm, name) == value]
    kept = {name: before[f"batch_norm.{name}"] for name in left}
    return dataclasses.replace(config, batch_norm=dataclasses.replace(config.batch_norm, **kept))


def changes(place: str, recipe: Mapping[str, Any], config: RunConfig) -> list[str]:
    """What `config` changes of the recorded `recipe`, a line each. Raises ConfigError for what a run cannot change.

    `place` is where the recipe is recorded. A key that only the recipe has cannot be carried out here: it is refused
    where it may belong to what the run is, and noted elsewhere.
    """
    before, after = _meant(recipe), dict(_flat(configs.plain(config.recipe())))
    known = [key for key, _ in _keys(Recipe)]
    noted: list[str] = []
    refused: list[Problem] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if not _is_among(key, known):
            found = f"the run has {old!r}; this version has no such key: a newer version wrote it, or it was removed"
            allowed = "the version that wrote the run, or another name"
            line = f"  not known to this version: {key}, which the run has as {old!r}; the run goes on without it"
        elif old != new:
            found, allowed = f"the run has {old!r}, the config {new!r}", "the run's value, or another name"
            line = f"  changed since: {key} was {old!r}, is {new!r}"
        else:
            continue
        if _is_among(key, FIXED) and not _is_among(key, FREE):
            refused.append(Problem(place, key, found, allowed))
        else:
            noted.append(line)
    if refused:
        raise ConfigError(refused)
    return noted


def refuse_changes(config: RunConfig, run: RunDirectory) -> None:
    """Raise ConfigError where `config` changes what the run cannot change. Nothing is compared with what is lost."""
    found = newest_of(run)
    if found is not None:
        place, recipe = found
        changes(place, recipe, going_on(config, recipe))


def _meant(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values by dotted key, and what the keys that are not recorded meant to the version that wrote it."""
    recorded = dict(_flat(recipe))
    absent = {key: MEANT_BY_ABSENCE.get(key, default) for key, default in _keys(Recipe) if key not in recorded}
    return recorded | {key: value for key, value in absent.items() if value is not dataclasses.MISSING and value != {}}


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys that this version knows, with their defaults as a file has them; MISSING without one."""
    hints = typing.get_type_hints(kind)
    for part in dataclasses.fields(kind):
        key = f"{prefix}{part.name}"
        if dataclasses.is_dataclass(hints[part.name]) and hints[part.name] is not Duration:
            yield from _keys(hints[part.name], f"{key}.")
        elif part.default_factory is not dataclasses.MISSING:
            yield key, configs.plain(part.default_factory())
        else:
            yield key, configs.plain(part.default)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a section without a key has none, be it there or not."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_among(key: str, keys: Iterable[str]) -> bool:
    """Whether `key` is one of `keys` or lies in a section among them."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)
