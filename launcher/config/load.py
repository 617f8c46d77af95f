"""From a YAML file and overrides to a RunConfig that can run, or to one error that names every mistake.

The dataclasses are the schema: their fields are the keys, their types what is allowed. A value is checked without
conversion (`"0.9"` is no number, 1 is no boolean); then `launcher.config.rules.problems` judges the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from launcher.config import rules, yaml_source
from launcher.config.schema import RANGE_PATTERN, SCHEMA_VERSION, RunConfig, Workers
from launcher.config.yaml_source import Document, describe, nearest
from launcher.errors import ConfigError, Problem, UsageError
from resnet_dist.errors import RecipeError
from resnet_dist.recipe import durations
from resnet_dist.recipe.durations import Duration

Overrides = Sequence[str] | Mapping[str, Any]

# Durations in JSON schema: what `Duration.parse` takes.
DURATION_PATTERN = r"^\s*[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s+(epoch|step|sample)s?\s*$"

_MAX_BYTES = 1_000_000  # a config has a few thousand: this one is a data file given by mistake
_PATHS = ("storage", "data.root", "model.weights", "preemption.notice_file")
_HEAD = ("schema", "name", "storage", "place", "workers", "resources")  # what a resolved config begins with
_FIRST_OF_EXPONENT = re.compile(r"[eE][+-]?0*[0-9]{3}")  # 1e100 epochs: exact arithmetic would fill the memory


def load(path: str | os.PathLike[str], overrides: Overrides = ()) -> RunConfig:
    """The run that the YAML file at `path` describes, with `key=value` overrides; see `from_mapping`.

    Raises UsageError where there is no such file or an override cannot be read, ConfigError for all else that is wrong.
    """
    return _build(read(path, overrides), Path(os.path.abspath(path)).parent)  # noqa: PTH100 - as `from_mapping` has it


def read(path: str | os.PathLike[str], overrides: Overrides = ()) -> Document:
    """The values of the YAML file at `path`, overrides among them, and where each was given; raises as `load` does."""
    name, file = os.fspath(path), Path(path)
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except IsADirectoryError:
        inside = ", ".join(sorted(found.name for found in file.glob("*.yaml"))[:10])
        here = f" (in this folder: {inside})" if inside else ""
        raise ConfigError([Problem(name, "", "this is a folder", f"a YAML file{here}")]) from None
    except FileNotFoundError:
        near = nearest(file.name, (other.name for other in file.parent.glob("*.yaml")))
        hint = f". Did you mean {file.parent / near}?" if near else ""
        raise UsageError(f"{name}: there is no such file. Allowed: the path of a YAML config{hint}") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}. Allowed: a YAML file that can be read") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError([Problem(name, "", "this is no config: more than a megabyte", "a YAML file")])
    document = yaml_source.parse(yaml_source.decode(raw, name), name)
    return yaml_source.apply_overrides(document, overrides)


def from_mapping(
    data: Mapping[str, Any], folder: str | os.PathLike[str], overrides: Overrides = (), name: str = "config"
) -> RunConfig:
    """The run that `data` describes: the YAML file's keys, nested. Paths are relative to `folder`.

    Durations may be text or `Duration`, paths text or `Path`. `overrides` are `key=value` texts, or a mapping from
    dotted keys to values. Raises UsageError for a bad override, ConfigError for all else that is wrong; `name` stands
    where a file's name and line would.
    """
    document = yaml_source.apply_overrides(Document(data, {}, name), overrides)
    return _build(document, Path(os.path.abspath(folder)))  # noqa: PTH100 - resolve() would follow links


def to_yaml(config: RunConfig) -> str:
    """The config with every default filled in, as YAML that `load` reads back to an equal RunConfig."""
    data = plain(config)
    return yaml_source.dump({key: data[key] for key in (*_HEAD, *(key for key in data if key not in _HEAD))})


def plain(value: Any) -> Any:
    """A config, a section or a value of one, in YAML's own types."""
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, Workers):
        return value.plain()
    if dataclasses.is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def json_schema() -> dict[str, Any]:
    """The schema of a config file (JSON Schema 2020-12), for editors that complete and check YAML."""
    schema = pydantic.TypeAdapter(RunConfig).json_schema()
    sections: dict[str, Any] = schema["$defs"]
    for section in (schema, *sections.values()):
        section["additionalProperties"] = False
    for key, section in sections.items():
        if "name" in section["properties"]:  # `optimizer: sgd` is short for its name
            sections[key] = {"anyOf": [{"type": "string"}, section]}
    sections["Workers"] = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": RANGE_PATTERN}]}
    sections["Duration"] = {"type": "string", "pattern": DURATION_PATTERN, "description": durations.FORM}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def in_users_lines(error: Exception, path: str | os.PathLike[str], overrides: Overrides = ()) -> Exception:
    """A RecipeError that came late, when the data set's size was known, as a ConfigError with file and line.

    Any other error stays as it is.
    """
    if not isinstance(error, RecipeError):
        return error
    place = read(path, overrides).place(error.key)
    placed = ConfigError([Problem(place, error.key, error.problem, error.allowed)])
    for note in getattr(error, "__notes__", []):
        placed.add_note(note)
    return placed


def _build(document: Document, folder: Path) -> RunConfig:
    version = document.data.get("schema", SCHEMA_VERSION)
    if type(version) is not int or version != SCHEMA_VERSION:  # other versions have other keys: no more can be said
        allowed = f"{SCHEMA_VERSION}, the version that this launcher reads"
        raise ConfigError([Problem(document.place("schema"), "schema", f"found {describe(version)}", allowed)])
    builder = _Builder(document, folder)
    config: RunConfig = builder.section(RunConfig, document.data, "")
    problems = builder.problems
    if builder.fits:
        for error in rules.problems(config):
            problems.append(Problem(document.place(error.key), error.key, error.problem, error.allowed))
    if problems:
        raise ConfigError(problems)
    return config


class _Builder:
    """Makes dataclasses of a document's values and notes what does not fit.

    Where a value does not fit, None takes its place, so that the rest is still looked at; `fits` is False then.
    """

    def __init__(self, document: Document, folder: Path) -> None:
        self.problems: list[Problem] = []
        self.fits = True
        self._document, self._folder = document, folder

    def section(self, kind: Any, value: object, key: str) -> Any:
        """An instance of the dataclass `kind`."""
        known = _hints(kind)
        if isinstance(value, str) and "name" in known:
            value = {"name": value}
        if not isinstance(value, Mapping):
            return self._misfit(key, kind, value)
        for name in value:
            if name not in known:
                dotted = f"{key}.{name}" if key else str(name)
                self._note(dotted, "unknown key", ", ".join(known), _known_key(str(name), known))
        made: dict[str, Any] = {}
        for part in dataclasses.fields(kind):
            dotted = f"{key}.{part.name}" if key else part.name
            if part.name in value:
                made[part.name] = self._value(known[part.name], value[part.name], dotted)
            elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
                made[part.name] = self._misfit(dotted, known[part.name])
        return kind(**made)

    def _value(self, hint: Any, value: Any, key: str) -> Any:
        if hint is Duration or (hint == Duration | None and value is not None):
            return self._duration(value, key)
        if hint is Workers:
            return self._workers(value, key)
        if dataclasses.is_dataclass(hint):
            return self.section(hint, value, key)
        if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
            if Duration in typing.get_args(hint):
                return tuple(self._duration(item, key) for item in value)
            value = tuple(value)
        if key in _PATHS and isinstance(value, os.PathLike):
            value = os.fspath(value)
        try:
            checked = _adapter(hint).validate_python(value, strict=True)
        except pydantic.ValidationError:
            return self._misfit(key, hint, value)
        return self._path(checked, key) if key in _PATHS and checked is not None else checked

    def _duration(self, value: object, key: str) -> Duration | None:
        if isinstance(value, Duration):
            return value
        if not isinstance(value, str) or _FIRST_OF_EXPONENT.search(value):
            return self._misfit(key, Duration, value)  # type: ignore[no-any-return]
        try:
            return Duration.parse(value)
        except ValueError:
            return self._misfit(key, Duration, value)  # type: ignore[no-any-return]

    def _workers(self, value: object, key: str) -> Workers | None:
        if isinstance(value, Workers):
            return value
        try:
            return Workers.parse(value)  # type: ignore[arg-type]
        except ValueError:
            return self._misfit(key, Workers, value)  # type: ignore[no-any-return]

    def _path(self, text: str, key: str) -> str:
        """`text` made absolute from the config's folder. Links stay: other nodes may mount them elsewhere."""
        expanded = os.path.expanduser(text)  # noqa: PTH111 - a user that does not exist is found below
        if not text.strip() or not text.isprintable():
            self._note(key, f"found {describe(text)}", "the path of a file or folder")
        elif re.match(r"\w+://", text):
            self._note(key, f'found "{text}", the address of an object store', "a folder that every node sees")
        elif "$" in text:
            allowed = f"the path itself, or {key}=... on the command line, where the shell fills in its variables"
            self._note(key, f'found "{text}", where a variable stays as it is', allowed)
        elif expanded.startswith("~"):
            self._note(key, f'found "{text}", a user that is not known here', "an absolute path")
        absolute = os.path.abspath(self._folder / expanded)  # noqa: PTH100 - resolve() would follow links
        session = next(_ray_sessions(absolute), None) if key == "storage" and text.isprintable() else None
        if session is not None:
            found = f'found "{text}", which is in Ray\'s session folder {session}: Ray deletes it'
            self._note(key, found, "an absolute path outside of it, on storage that every node sees")
        return absolute

    def _misfit(self, key: str, hint: Any, value: object = dataclasses.MISSING) -> Any:
        self.fits = False
        if value is dataclasses.MISSING:
            self._note(key, "missing, and there is no default", _allowed(hint))
        else:
            self._note(key, f"found {describe(value)}", _allowed(hint), _meant(hint, value))
        return None

    def _note(self, key: str, found: str, allowed: str, suggestion: str = "") -> None:
        self.problems.append(Problem(self._document.place(key), key, found, allowed, suggestion))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by name, in the order of `dataclasses.fields`."""
    hints = typing.get_type_hints(kind)
    return {part.name: hints[part.name] for part in dataclasses.fields(kind)}


@functools.cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(hint)


def _known_key(name: str, known: Mapping[str, Any]) -> str:
    """The key that an unknown one was meant to be: a near one here, or the same one in another section."""
    near = nearest(name, known)
    if near:
        return near
    top = _hints(RunConfig)
    sections = [key for key in top if dataclasses.is_dataclass(top[key]) and top[key] not in (Duration, Workers)]
    inside = [f"{key}.{name}" for key in sections if name in _hints(top[key])]
    return " or ".join([name, *inside] if name in top else inside)


def _allowed(hint: Any) -> str:
    """What values a type takes, in words."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint) or hint:
        case typing.Union | types.UnionType:
            return " or ".join(_allowed(argument) for argument in arguments)
        case origin if origin is Literal:
            return ", ".join(map(str, arguments))
        case origin if origin is tuple:
            return "a list of durations" if Duration in arguments else f"a list of {len(arguments)} numbers"
        case origin if origin is Duration:
            return durations.FORM
        case origin if origin is Workers:
            return "a whole number, or a range such as 2..4"
        case origin if dataclasses.is_dataclass(origin):
            name = "its name, or " if "name" in _hints(hint) else ""
            return f"{name}a section with the keys {', '.join(_hints(hint))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return words.get(hint, "a section of names and values")


def _meant(hint: Any, value: object) -> str:
    """The value of the right type that was probably meant, or an empty text."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    names = [name for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return f'"{value}"'
    if bool in kinds and str(value).lower() in ("yes", "on", "y", "1", "no", "off", "n", "0"):
        return "true" if str(value).lower() in ("yes", "on", "y", "1") else "false"
    if Workers in kinds and isinstance(value, str | float):
        kinds = (int,)
    if (int in kinds or float in kinds) and isinstance(value, str | float):
        number = re.fullmatch(r"[+-]?[0-9]{1,15}(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", str(value))
        if number and float in kinds:
            return f"{float(value):g}"
        if number and float(value).is_integer():
            return str(int(float(value)))
    if not isinstance(value, str):
        return ""
    spelled = re.sub(r"^(b?)fp?(?=[0-9])", r"\1float", value)  # fp32 is float32, and not its neighbour tf32
    return nearest(spelled, map(str, names))


def _ray_sessions(path: str) -> Iterator[Path]:
    """The folders of Ray sessions that `path` lies in: Ray's own names, in Ray's own places."""
    temporary = os.environ.get("RAY_TMPDIR", "/tmp")  # Ray's rule; its sessions are in a folder "ray" of it
    roots = {Path("/tmp/ray"), Path(temporary), Path(temporary, "ray")}
    for start in (path, os.path.realpath(path)):
        for folder in (Path(start), *Path(start).parents):
            dated = re.match(r"session_(latest|\d{4}-\d{2}-\d{2})", folder.name) and "ray" in folder.parent.parts
            # `ray start --temp-dir` may be anywhere, but the name has Ray's form: date, time, process.
            stamped = re.match(r"session_\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_\d+", folder.name)
            if dated or stamped or (folder.name.startswith("session_") and folder.parent in roots):
                yield folder
