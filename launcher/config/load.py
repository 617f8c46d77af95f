"""From a YAML file and overrides to a valid RunConfig, or to one error with every mistake.

`launcher.config.builder` checks keys and types, `launcher.config.rules` ranges and combinations.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config import paths, rules, yaml_source, yaml_text
from launcher.config.builder import Builder
from launcher.config.dotted_keys import flatten
from launcher.config.schema import SCHEMA_VERSION, RunConfig
from launcher.config.yaml_source import Document, describe
from launcher.errors import PROJECT, ConfigError, LauncherError, Problem, UsageError
from resnet_dist.errors import DataError, RecipeError, StorageError, StoreUnavailable
from resnet_dist.input_files import open_regular
from resnet_dist.recipe import durations
from resnet_dist.recipe.requirements import nearest_name
from resnet_dist.recipe.schema import plain

Overrides = Sequence[str] | Mapping[str, Any]

_MAX_BYTES = 1_000_000  # a config has a few thousand: a larger file is not a config
_HEAD = ("schema", "name", "storage", "place", "workers", "resources")  # the first keys of a resolved config


def load(
    path: str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    recorded: bool = False,
    places: Mapping[str, str] | None = None,
) -> RunConfig:
    """The run config in the YAML file at `path`, with `key=value` overrides; see `from_mapping`.

    `places`: where the values of a mapping of overrides were given, by key, such as `study.yaml:7`.

    Keys of earlier versions are read under their new names. Each is logged as a warning, unless the file was `recorded`
    by a run.

    Raises UsageError if there is no such file or an override cannot be read, ConfigError for invalid contents.
    """
    document = read(path, overrides, recorded=recorded, places=places)
    return _build(document, Path(os.path.abspath(path)).parent)  # noqa: PTH100 - see `from_mapping`


def read(
    path: str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    recorded: bool = False,
    places: Mapping[str, str] | None = None,
) -> Document:
    """The values of the YAML file at `path` with overrides, and where each was given. Raises as `load` does."""
    name, file = os.fspath(path), Path(path)
    try:
        with open_regular(file) if recorded else file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except IsADirectoryError:
        inside = ", ".join(sorted(found.name for found in file.glob("*.yaml"))[:10])
        here = f" (in this folder: {inside})" if inside else ""
        raise ConfigError([Problem(name, "", "this is a folder", f"a YAML file{here}")]) from None
    except FileNotFoundError:
        near = nearest_name(file.name, [other.name for other in file.parent.glob("*.yaml")])
        hint = f". Did you mean {file.parent / near}?" if near else ""
        raise UsageError(f"{name}: there is no such file. Allowed: the path of a YAML config{hint}") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}. Allowed: a YAML file that can be read") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError([Problem(name, "", "this is not a config: more than a megabyte", "a YAML file")])
    document = yaml_source.parse(yaml_source.decode(raw, name), name)
    return yaml_source.apply_overrides(document.with_new_names(warn=not recorded), overrides, places)


def from_mapping(
    data: Mapping[str, Any], folder: str | os.PathLike[str], overrides: Overrides = (), name: str = "config"
) -> RunConfig:
    """The run config with the nested keys in `data`. Paths are relative to `folder`.

    Durations may be text or `Duration`, paths text or `Path`. `overrides` are `key=value` texts, or a mapping from
    dotted keys to values. Messages have `name` in place of a file and line. Raises UsageError for an override that
    cannot be read, ConfigError for invalid contents.
    """
    document = Document(data, {}, name).with_new_names(warn=True)
    document = yaml_source.apply_overrides(document, overrides)
    return _build(document, Path(os.path.abspath(folder)))  # noqa: PTH100 - resolve() would follow links


def to_yaml(config: RunConfig) -> str:
    """The config with all defaults, as YAML that `load` reads back to an equal RunConfig."""
    data = plain(config)
    return yaml_text.dump({key: data[key] for key in (*_HEAD, *(key for key in data if key not in _HEAD))})


def in_users_lines(error: Exception, path: str | os.PathLike[str], overrides: Overrides = ()) -> Exception:
    """An error found after loading, with the file and line, or the override, that gave the value.

    A RecipeError becomes a ConfigError, a ConfigError gets the places that it lacks, and a DataError, StoreUnavailable
    or StorageError about `data.root`, `storage` or something inside gets the key and its place. Any other error is
    returned unchanged.
    """
    try:
        document = read(path, overrides)
    except LauncherError:  # the file has changed since, or was a pipe
        return error
    placed: Exception = error
    if isinstance(error, RecipeError) and error.key != PROJECT:
        placed = ConfigError([document.problem(error)])
    elif isinstance(error, ConfigError):
        placed = ConfigError([replace(one, place=one.place or document.place(one.key)) for one in error.problems])
    elif isinstance(error, DataError | StoreUnavailable | StorageError):
        key = "storage" if isinstance(error, StorageError) else "data.root"
        given = flatten(document.data).get(key)
        folder = paths.absolute(os.fspath(given), Path(path).parent.absolute()) if given else None
        if folder is not None and Path(error.path).is_relative_to(folder):
            placed = copy.copy(error)
            placed.__dict__.pop("__notes__", None)  # the list is that of `error`; its notes are added below
            place = document.place(key)
            is_named = place.endswith(f" {key}={error.path.rstrip('/')}")
            text = error.problem if is_named else str(error)
            placed.args = (f"{place}: {text}" if f" {key}=" in place else f"{place}: {key}: {text}",)
    if placed is error:
        return error
    for note in getattr(error, "__notes__", []):
        placed.add_note(note)
    return placed


def _build(document: Document, folder: Path) -> RunConfig:
    version = document.data.get("schema", SCHEMA_VERSION)
    if type(version) is not int or version != SCHEMA_VERSION:  # other versions have other keys: check nothing else
        allowed = f"{SCHEMA_VERSION}, the version that this launcher reads"
        raise ConfigError([Problem(document.place("schema"), "schema", f"found {describe(version)}", allowed)])
    builder = Builder(document, RunConfig, folder)
    config: RunConfig = builder.build()
    problems = builder.problems
    if builder.fits:
        for error in rules.problems(config):
            problems.append(document.problem(error))
    if problems:
        raise ConfigError(problems)
    return durations.resolved(config, config.duration)
