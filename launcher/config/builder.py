"""From a YAML document to a frozen dataclass, with every mistake found.

The dataclasses are the schema: their fields are the keys, their types the allowed values. A value is checked without
conversion: `"0.9"` is not a number, 1 is not a boolean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from launcher.config import paths
from launcher.config.schema import Workers
from launcher.config.yaml_source import Document, describe
from launcher.errors import Problem
from resnet_dist.recipe import durations
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.percentages import percentage
from resnet_dist.recipe.requirements import nearest_name

_LARGEST_NUMBER = 1e300  # times the largest batch, it is still finite
_LONGEST_TEXT = 4096  # characters of a path, at most, on Linux


class Builder:
    """Makes a dataclass of a document's values and collects `problems`.

    A value that does not fit is replaced by None, and `fits` becomes False, so that the remaining values are checked.
    Paths are relative to `folder`. With `text_as_written`, text is one line, and a number or boolean in its place is
    read with its spelling in the file: `1.10`, `true`.
    """

    def __init__(
        self, document: Document, root: Any, folder: Path | None = None, *, text_as_written: bool = False
    ) -> None:
        self.problems: list[Problem] = []
        self.fits = True
        self._document, self._root, self._folder = document, root, folder
        self._text_as_written = text_as_written

    def build(self) -> Any:
        """An instance of the root dataclass; incomplete where `fits` is False."""
        return self._section(self._root, self._document.data, "")

    def _section(self, kind: Any, value: object, key: str) -> object:
        known = _hints(kind)
        if isinstance(value, str) and "name" in known:
            value = {"name": value}
        if not isinstance(value, Mapping):
            return self._misfit(key, kind, value)
        prefix = f"{key}." if key else ""
        for name in value:
            if name not in known:
                suggestion = nearest_name(str(name), known) or self._same_key_elsewhere(str(name))
                self._note(f"{prefix}{name}", "unknown key", ", ".join(known), suggestion)
        made: dict[str, object] = {}
        for part in dataclasses.fields(kind):
            dotted = f"{prefix}{part.name}"
            if part.name in value:
                made[part.name] = self._value(known[part.name], value[part.name], dotted)
            elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
                made[part.name] = self._misfit(dotted, known[part.name])
        return kind(**made)

    def _value(self, hint: object, value: object, key: str) -> object:
        if value is None and type(None) in _options(hint):
            return None
        kind = next(option for option in _options(hint) if option is not type(None))
        if kind is Duration or kind is Workers:
            return self._parsed(kind, value, key)
        if dataclasses.is_dataclass(kind):
            return self._section(kind, value, key)
        if typing.get_args(kind)[:1] == (Duration,) and isinstance(value, Mapping):
            return self._by_time(typing.get_args(kind)[1], value, key)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            item, *others = typing.get_args(kind)
            if others == [Ellipsis]:
                return tuple(self._value(item, each, f"{key}[{number}]") for number, each in enumerate(value))
            value = tuple(value)
        if typing.get_origin(kind) is dict and isinstance(value, Mapping):
            item = typing.get_args(kind)[1]
            return {name: self._value(item, each, f"{key}.{name}") for name, each in value.items()}
        return self._scalar(hint, value, key)

    def _scalar(self, hint: object, value: object, key: str) -> object:
        is_path = key in paths.KEYS and self._folder is not None and not (key in paths.MAY_BE_EMPTY and value == "")
        value = _without_percentages(hint, value)
        if is_path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self._text_as_written and str in _options(hint) and isinstance(value, bool | int | float):
            value = self._document.texts[key]
        try:
            checked = _adapter(hint).validate_python(value, strict=True)
        except pydantic.ValidationError:
            return self._misfit(key, hint, value)
        if (bound := _exceeded_bound(checked)) is not None:
            self.fits = False
            self._note(key, f"found {describe(value)}", bound)
            return None
        if self._text_as_written and isinstance(checked, str) and not (checked.strip() and checked.isprintable()):
            return self._misfit(key, hint, value)
        return self._path(checked, key) if is_path and isinstance(checked, str) else checked

    def _parsed(self, kind: type[Duration] | type[Workers], value: object, key: str) -> object:
        if isinstance(value, kind):
            return value
        try:
            if kind is Workers:
                return Workers.parse(value)
            if isinstance(value, str):
                return Duration.parse(value)
        except ValueError:
            pass
        return self._misfit(key, kind, value)

    def _by_time(self, item: object, value: Mapping[object, object], key: str) -> object:
        """A section whose names are durations."""
        made = {self._parsed(Duration, time, key): self._value(item, each, key) for time, each in value.items()}
        if self.fits and len(made) < len(value):
            self._note(key, f"found one time twice in {', '.join(map(str, value))}", "each once")
        return made

    def _path(self, text: str, key: str) -> str:
        assert self._folder is not None
        path = paths.absolute(text, self._folder)
        problem = paths.problem(key, text, path)
        if problem is not None:
            self._note(key, *problem)
        return path

    def _same_key_elsewhere(self, name: str) -> str:
        """Where else the key `name` exists: at the top or in other sections."""
        top = _hints(self._root)
        inside = [f"{key}.{name}" for key, hint in top.items() if is_section(hint) and name in _hints(hint)]
        return " or ".join([name, *inside] if name in top else inside)

    def _misfit(self, key: str, hint: object, value: object = dataclasses.MISSING) -> object:
        self.fits = False
        if value is dataclasses.MISSING:
            self._note(key, "missing, and there is no default", _allowed(hint))
        else:
            self._note(key, f"found {describe(value)}", _allowed(hint), _suggestion(hint, value))
        return None

    def _note(self, key: str, found: str, allowed: str, suggestion: str = "") -> None:
        self.problems.append(Problem(self._document.place(key), key, found, allowed, suggestion))


def _without_percentages(hint: object, value: object) -> object:
    """`value` with text such as `75.9 %` replaced by 0.759, wherever `hint` has a number with a fraction."""
    options = _options(hint)
    if isinstance(value, str) and float in options and (fraction := percentage(value)) is not None:
        return float(fraction)
    kind = next((option for option in options if typing.get_origin(option) in (tuple, Mapping)), None)
    if isinstance(value, Mapping) and typing.get_origin(kind) is Mapping:
        return {name: _without_percentages(typing.get_args(kind)[1], item) for name, item in value.items()}
    if isinstance(value, tuple) and typing.get_origin(kind) is tuple and len(value) == len(typing.get_args(kind)):
        return tuple(map(_without_percentages, typing.get_args(kind), value))
    return value


def _exceeded_bound(value: object) -> str | None:
    """The bound, in words, that a number or a text exceeds, or one inside a list or a section; else None.

    Numbers that are not finite are left to the rules of each key.
    """
    match value:
        case int() if not -(2**63) <= value < 2**63:
            return "a whole number of 64 bits"
        case float() if _LARGEST_NUMBER < abs(value) < math.inf:
            return f"a number from -{_LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}"
        case str() if len(value) > _LONGEST_TEXT:
            return f"text of at most {_LONGEST_TEXT} characters"
        case Mapping():
            return next(filter(None, map(_exceeded_bound, value.values())), None)
        case list() | tuple():
            return next(filter(None, map(_exceeded_bound, value)), None)
    return None


def is_section(hint: object) -> bool:
    """Whether `hint` is a dataclass of keys. A duration and a number of workers are values."""
    return dataclasses.is_dataclass(hint) and hint not in (Duration, Workers)


def _options(hint: object) -> tuple[Any, ...]:
    """The members of a union, or `hint` itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@functools.cache
def _hints(kind: Any) -> dict[str, object]:
    """The types of a dataclass's fields by name, in their order."""
    hints = typing.get_type_hints(kind)
    return {part.name: hints[part.name] for part in dataclasses.fields(kind)}


@functools.cache
def _adapter(hint: Any) -> pydantic.TypeAdapter[object]:
    return pydantic.TypeAdapter(hint)


def _allowed(hint: object) -> str:
    """The values that a type takes, for a message."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint) or hint:
        case typing.Union | types.UnionType:
            return " or ".join(_allowed(argument) for argument in arguments)
        case origin if origin is Literal:
            return ", ".join(map(str, arguments))
        case origin if origin is tuple:
            if arguments[-1] is not Ellipsis:
                return f"a list of {len(arguments)} numbers"
            return "a list of durations" if Duration in arguments else "a list: [first, second]"
        case origin if origin is Duration:
            return durations.FORM
        case origin if origin is Workers:
            return "a whole number, or a range such as 2..4"
        case origin if dataclasses.is_dataclass(origin):
            name = "its name, or " if "name" in _hints(hint) else ""
            return f"{name}a section with the keys {', '.join(_hints(hint))}"
    words: dict[object, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
    }
    return words.get(hint, "a section of names and values")


def _suggestion(hint: object, value: object) -> str:
    """The value of the right type that was probably meant, or an empty string."""
    kinds = _options(hint)
    names = [str(name) for kind in kinds if typing.get_origin(kind) is Literal for name in typing.get_args(kind)]
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return f'"{value}"'
    if bool in kinds and str(value).lower() in ("yes", "on", "y", "1", "no", "off", "n", "0"):
        return "true" if str(value).lower() in ("yes", "on", "y", "1") else "false"
    if Workers in kinds and isinstance(value, str | float):
        kinds = (int,)
    if str in kinds and isinstance(value, Mapping):
        return "text in quotes"
    if (int in kinds or float in kinds) and isinstance(value, str | float):
        digits = str(value).replace("_", "")  # 1_000 is text in YAML 1.2
        number = re.fullmatch(r"[+-]?[0-9]{1,15}(\.[0-9]*)?([eE][+-]?[0-9])?", digits)
        if number and float in kinds:
            return f"{float(digits):g}"
        if number and float(digits).is_integer():
            return str(int(float(digits)))
    if not isinstance(value, str):
        return ""
    return nearest_name(re.sub(r"^(b?)fp?(?=[0-9])", r"\1float", value), names)  # fp32 is float32, not tf32
