"""The recipe that a run has recorded, and its differences from a config.

A recipe is read with the defaults of the version that wrote it. No torch is needed, so a finished run is compared fast.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.config import yaml_source
from launcher.config.builder import Builder
from launcher.config.dotted_keys import flatten
from launcher.config.old_keys import with_new_names
from launcher.config.schema import RunConfig
from launcher.config.yaml_source import Document
from launcher.errors import ConfigError, Problem
from launcher.run.directory import RunDirectory
from launcher.run.progress import newest_state
from resnet_dist.input_files import read_whole
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import MEANT_BY_ABSENCE, Recipe, plain

# A run cannot change these: its later half would be another experiment.
FIXED = ("seed", "model", "data", "batch.size", "batch_norm", "optimizer.name", "optimizer.lr_in_momentum", "precision")
# Exceptions: where the images are, how they are read, and what happens to broken ones may change. Their fingerprint is
# compared elsewhere.
FREE = (
    "data.root",
    "data.source",
    "data.image_key",
    "data.label_key",
    "data.cache",
    "data.decoder",
    "data.prefetch",
    "data.num_samples",
    "data.on_error",
    "data.max_bad_images",
    "data.known_bad",
    "model.weights",
)
# Keys that a run keeps if the config has the value given here.
KEPT_BY_THE_RUN = {"span": "auto", "momentum": None, "epsilon": None}  # keys of batch_norm

# The last section of every config.yaml since version 0.1: a file without it is incomplete.
_LAST_SECTION = "log"


def newest_recipe(run: RunDirectory) -> tuple[str, dict[str, Any]] | None:
    """The recorded recipe and the file it comes from: the newest checkpoint, or else config.yaml.

    None if nothing can be read.
    """
    found = newest_state(run)
    if found is not None and isinstance(found[1].get("recipe"), dict):
        return str(found[0]), found[1]["recipe"]
    name = str(run.config)
    try:
        data = yaml_source.parse(yaml_source.decode(read_whole(run.config), name), name).data
    except (OSError, ConfigError):
        return None
    if _LAST_SECTION not in data:
        return None
    others = {part.name for part in dataclasses.fields(RunConfig)} - {part.name for part in dataclasses.fields(Recipe)}
    return name, {key: value for key, value in data.items() if key not in others}


def recipe_of(recorded: Mapping[str, Any]) -> Recipe | None:
    """The recorded recipe, without keys that this version does not have; None if a value is not valid here."""
    builder = Builder(Document(with_new_names(recorded), {}, ""), Recipe)
    recipe: Recipe = builder.build()
    return recipe if builder.fits else None


def with_kept_values(config: RunConfig, recipe: Mapping[str, Any]) -> RunConfig:
    """The config with the values that the run keeps, from the recorded `recipe`."""
    before = _with_defaults(recipe)
    names = [name for name, value in KEPT_BY_THE_RUN.items() if getattr(config.batch_norm, name) == value]
    kept = {name: before[f"batch_norm.{name}"] for name in names}
    return dataclasses.replace(config, batch_norm=dataclasses.replace(config.batch_norm, **kept))


def changes(place: str, recipe: Mapping[str, Any], config: RunConfig) -> list[str]:
    """The differences of `config` from the recorded `recipe`, one line each. Raises ConfigError for fixed keys.

    `place` is the file of the recipe. Keys that this version does not know raise ConfigError in sections that a run
    cannot change, and are ignored with a line elsewhere.
    """
    before, after = _with_defaults(recipe), flatten(plain(config.recipe()))
    known = [key for key, _ in _keys(Recipe)]
    noted: list[str] = []
    refused: list[Problem] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if not _is_among(key, known):
            found = (
                f"the run has {shown(old)}; this version has no such key: it was added or removed by another version"
            )
            allowed = "the version that wrote the run, or another name"
            line = f"  ignored: {key} = {shown(old)} in the recorded run, which this version does not have"
        elif old != new:
            found, allowed = f"the run has {shown(old)}, the config {shown(new)}", "the run's value, or another name"
            line = f"  changed: {key} was {shown(old)}, is {shown(new)}"
        else:
            continue
        if _is_among(key, FIXED) and not _is_among(key, FREE):
            refused.append(Problem("", key, f"{found} (recorded in {place})", allowed))
        else:
            noted.append(line)
    if refused:
        raise ConfigError(refused)
    return noted


def shown(value: object) -> str:
    """A value of a key in a message.

    >>> shown(None), shown(0.5)
    ('null', '0.5')
    """
    return "null" if value is None else repr(value)


def target_of(config: RunConfig) -> dict[str, float]:
    """The target of `stop_at` by its name; empty without one."""
    return {name: value for name, value in plain(config.stop_at).items() if value is not None}


def is_done(config: RunConfig, run: RunDirectory) -> bool:
    """Whether the run is finished, with nothing left to do for `config`.

    A longer duration continues a run unless it has reached its target; another target continues it, too.
    """
    summary = run.summary() or {}
    if not summary or summary.get("stop_at", {}) != target_of(config):
        return False
    return summary.get("target_reached") is True or summary.get("duration") == str(config.duration)


def refuse_changes(config: RunConfig, run: RunDirectory) -> None:
    """Raise ConfigError if `config` changes a fixed key. Nothing is compared if the recorded recipe cannot be read."""
    found = newest_recipe(run)
    if found is not None:
        place, recipe = found
        changes(place, recipe, with_kept_values(config, recipe))


def _with_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values by dotted key, and the defaults that missing keys had in the version that wrote them."""
    recorded = flatten(with_new_names(recipe))
    absent = {key: MEANT_BY_ABSENCE.get(key, default) for key, default in _keys(Recipe) if key not in recorded}
    return recorded | {key: value for key, value in absent.items() if value is not dataclasses.MISSING and value != {}}


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All dotted keys of a dataclass with their defaults as written in a file; MISSING for required keys."""
    hints = typing.get_type_hints(kind)
    for part in dataclasses.fields(kind):
        key = f"{prefix}{part.name}"
        if dataclasses.is_dataclass(hints[part.name]) and hints[part.name] is not Duration:
            yield from _keys(hints[part.name], f"{key}.")
        elif part.default_factory is not dataclasses.MISSING:
            yield key, plain(part.default_factory())
        else:
            yield key, plain(part.default)


def _is_among(key: str, keys: Iterable[str]) -> bool:
    """Whether `key` is one of `keys` or is inside a section among them."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)
