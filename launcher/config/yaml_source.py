"""From YAML text to plain values, with the place of each.

Reads the subset of YAML that a config needs, by the rules of YAML 1.2: `1e-4` is a number, `yes`, `on` and `12:30:00`
are text. A number with a leading zero is text as well, because YAML 1.1 reads 010 as 8 and YAML 1.2 as 10, and so is a
whole number of more than 64 bits. Refuses duplicate keys, tags such as !!python/object, keys that are not text, a
second document, and aliases that expand to more than 10,000 values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from launcher.config import credentials
from launcher.config.dotted_keys import flatten
from launcher.config.old_keys import RENAMED, old_keys, warn_once, with_new_names
from launcher.errors import ConfigError, Problem, UsageError
from resnet_dist.errors import RecipeError

MAX_VALUES = 10_000  # a config has about 100; ten lines of nested aliases expand to billions
FORM = "a YAML file of `key: value` lines"
_NO_TABS = "use spaces; YAML does not allow tabs"

# YAML 1.2.2, section 10.3.2 (core schema), except leading zeros and whole numbers of 20 digits or more.
SCALARS: dict[str, tuple[re.Pattern[str], list[str]]] = {
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "tag:yaml.org,2002:int": (
        re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]{0,18})|0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16})$"),
        list("-+0123456789"),
    ),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
}
_TEXT = "tag:yaml.org,2002:str"
_LONG_NUMBER = re.compile(r"[-+]?[0-9]{20,}|0o[0-7]{22,}|0x[0-9a-fA-F]{17,}")
_MAX_SHOWN = 100  # characters of an override's value, in a message
_OVERRIDDEN = ("command line: ", "argument ")  # how the place of an override begins
_COLLECTIONS: dict[type[yaml.Node], str] = {
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes; `_Reader` turns them into values."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it


for _tag, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


@dataclass(frozen=True)
class Document:
    """The values of a file, and the place of each: `configs/x.yaml:14`, or `command line: workers=2`."""

    data: Mapping[str, Any]
    places: Mapping[str, str]  # by dotted key; a list's items are not listed
    whole: str  # the place of keys that are not given
    texts: Mapping[str, str] = field(default_factory=dict)  # scalars as they are written, by dotted key: list[0].key

    def place(self, key: str) -> str:
        """The place of `key`; if it was not given, that of a key in it, of its section, or the file's first line."""
        while key:
            inside = (place for known, place in self.places.items() if known.startswith(f"{key}."))
            place = self.places.get(key) or next(inside, None)
            if place is not None:
                return place
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return self.whole

    def gives(self, key: str) -> bool:
        """Whether the document has a value for `key`, or in the section `key`."""
        flat = flatten(self.data)
        return key in flat or any(known.startswith(f"{key}.") for known in flat)

    def gives_as_text(self, section: str) -> bool:
        """Whether the document gives `section` as text, its name."""
        return isinstance(flatten(self.data).get(section), str)

    def problem(self, error: RecipeError) -> Problem:
        """The error with its place. If the file gives some of its keys and overrides the others, it names both."""
        given = [key for key in (error.key, *error.others) if self.gives(key)] or [error.key]
        first, *others = (self.place(key) for key in given)
        apart = [
            place if place.startswith(_OVERRIDDEN) else f"{key} in {place}"
            for key, place in zip(given[1:], others, strict=True)
            if first != place and (first.startswith(_OVERRIDDEN) or place.startswith(_OVERRIDDEN))
        ]
        beside = f" (see {', '.join(apart)})" if apart else ""
        return Problem(first, error.key, f"{error.problem}{beside}", error.allowed)

    def with_new_names(self, *, warn: bool) -> Document:
        """The document under the present names of keys. `warn`: log each old one.

        Raises ConfigError if a key is given under both names.
        """
        places, problems = dict(self.places), []
        for old, value in old_keys(self.data):
            place = self.place(old)
            if warn:
                warn_once(place, old, value)
            if old in RENAMED:
                new = RENAMED[old].key
                if new in flatten(self.data):
                    problems.append(Problem(place, old, f"given with its new name, {new}", f"only {new}"))
                places[new] = place
        if problems:
            raise ConfigError(problems)
        return replace(self, data=with_new_names(self.data), places=places)


def parse(text: str, name: str) -> Document:
    """Read one YAML document; `name` is the file's name in messages. Raises ConfigError."""
    root = _compose(text, name)
    if root is None:
        raise ConfigError([Problem(f"{name}:1", "", "the file is empty", FORM)])
    reader = _Reader(name)
    data = reader.value(root, "")
    if not isinstance(data, dict):
        reader.problems.append(Problem(f"{name}:1", "", f"found {describe(data)}", FORM))
    if reader.problems:
        raise ConfigError(reader.problems)
    return Document(data, reader.places, f"{name}:1", reader.texts)


def decode(raw: bytes, name: str) -> str:
    """The text of a file's bytes. Raises ConfigError if they are not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(f"{name}:{line}", "", f"byte 0x{raw[error.start]:02x} is not UTF-8", "text in UTF-8")
        raise ConfigError([problem]) from None


def apply_overrides(
    document: Document, overrides: Sequence[str] | Mapping[str, Any], given_at: Mapping[str, str] | None = None
) -> Document:
    """`document` with overrides: a sequence of `key=value` with YAML values, or a mapping from dotted keys to values.

    `given_at`: the places of a mapping's values, by key. The last override of a key wins. `optimizer: sgd` in the file
    and `optimizer.momentum=0.95` can be combined. Raises UsageError for an override that cannot be read, or that would
    drop the other keys of a section.
    """
    data, places = _copy(document.data), dict(document.places)
    for key, value, place in _parsed(overrides, given_at or {}):
        section, *rest = key.split(".")
        target = data
        for depth, part in enumerate(rest, start=1):
            inner = target.get(section)
            if inner is None or isinstance(inner, str):
                inner = {} if inner is None else {"name": inner}
            if not isinstance(inner, dict):
                parent = ".".join(key.split(".")[:depth])
                raise UsageError(f"{place}: {parent} is {describe(inner)}, not a section. Allowed: {parent}=VALUE")
            target[section] = inner
            target, section = inner, part
        if isinstance(target.get(section), dict) and not isinstance(value, dict):
            raise UsageError(
                f"{place}: {key} is a section, and its other keys would be lost. Allowed: {key}.KEY=VALUE, for example"
                f" {key}.{next(iter(target[section]), 'name')}=..., or {key}={{...}} for a whole section"
            )
        target[section] = value
        places = {known: where for known, where in places.items() if not known.startswith(f"{key}.")}
        places[key] = place
    return Document(data, places, document.whole)


def describe(value: object) -> str:
    """A value as a message shows it: `"high" (a string)`."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case int() | float():
            is_short = abs(value) < 10**30 or not math.isfinite(value)
            return f"{value} (a number)" if is_short else "a number of more than 30 digits"
        case str() if _LONG_NUMBER.fullmatch(value):
            return f"a number of {len(value)} digits"
        case str():
            return f'"{value if len(value) <= 80 else value[:77] + "..."}" (a string)'
        case Mapping():
            return "a section" if value else "an empty section"
        case list() | tuple():
            shown = json.dumps(list(value), default=str, ensure_ascii=False)
            return f"{shown} (a list of {len(value)})" if len(shown) <= 80 else f"a list of {len(value)}"
        case _:
            return f"an object of type {type(value).__name__}"


def _compose(text: str, name: str) -> yaml.Node | None:
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line[: len(line) - len(line.lstrip())] and line.strip():
            raise ConfigError([Problem(f"{name}:{number}", "", "a tab before the text", _NO_TABS)])
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_number = 1 if mark is None else mark.line + 1
        found, allowed = f"this is not YAML: {error.problem or error.context}", FORM
        if "'\\t'" in found:
            found, allowed = "a tab", _NO_TABS
        elif "but found another document" in found:
            found, allowed = "a second document begins here (---)", "one document in a file"
        raise ConfigError([Problem(f"{name}:{line_number}", "", found, allowed)]) from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        found = f"character U+{ord(text[error.position]):04X} is not printable"
        raise ConfigError([Problem(f"{name}:{line_number}", "", found, "printable text")]) from None
    except RecursionError:
        raise ConfigError([Problem(f"{name}:1", "", "brackets nested too deeply", FORM)]) from None


class _Reader:
    """Turns nodes into values and collects their places and the problems."""

    def __init__(self, name: str) -> None:
        self.places: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._name = name
        self._num_values = 0
        self._open: set[int] = set()  # ids of the collections around the current node; an alias to one has no end

    def value(self, node: yaml.Node, key: str) -> Any:
        self._num_values += 1
        if self._num_values > MAX_VALUES or id(node) in self._open:
            found = f"aliases expand without end, or to more than {MAX_VALUES} values"
            raise ConfigError([Problem(self._place(node), key, found, "a config written out")])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if node.tag != _COLLECTIONS[type(node)]:
            self._refuse_tag(node, key)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            made: Any = dict(self._items(node, key))
        else:
            made = [self.value(item, f"{key}[{number}]") for number, item in enumerate(node.value)]
        self._open.remove(id(node))
        return made

    def _items(self, node: yaml.MappingNode, key: str) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
                is_scalar = isinstance(key_node, yaml.ScalarNode)
                found = f"found the key {key_node.value!r}" if is_scalar else "a key in brackets"
                self.problems.append(Problem(self._place(key_node), key, found, "keys that are text"))
                continue
            name = str(key_node.value)
            dotted = f"{key}.{name}" if key else name
            if name in first_lines:
                found = f"given twice, first in line {first_lines[name]}"
                self.problems.append(Problem(self._place(key_node), dotted, found, "each key once"))
                continue
            first_lines[name] = key_node.start_mark.line + 1
            self.places[dotted] = self._place(key_node)
            yield name, self.value(value_node, dotted)

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        text = self.texts[key] = str(node.value)
        if node.tag == _TEXT:
            return text
        if node.tag not in SCALARS or SCALARS[node.tag][0].match(text) is None:
            self._refuse_tag(node, key)
            return text
        match node.tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0)
            case _:  # Python writes inf and nan without YAML's dot
                return float(re.sub(r"\.(?=[in])", "", text.lower()))

    def _refuse_tag(self, node: yaml.Node, key: str) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self.problems.append(Problem(self._place(node), key, f"found the tag {tag}", "plain values, without tags"))

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _parsed(overrides: Sequence[str] | Mapping[str, Any], places: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and place of each override, under the present names of keys."""
    for key, value, place in _given(overrides, places):
        section, dot, name = key.rpartition(".")
        prefix = f"{section}{dot}"
        for old, old_value in old_keys({name: value}, prefix):
            warn_once(place, old, old_value)
        for new_name, new_value in with_new_names({name: value}, prefix).items():
            yield f"{prefix}{new_name}", new_value, place


def _given(overrides: Sequence[str] | Mapping[str, Any], places: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield key, value, places.get(key) or _override_place("argument", key, repr(value))
        return
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        place = _override_place("command line:", key, text) if equals else f"command line: {override}"
        if not equals or re.fullmatch(r"[^\W\d][\w-]*(\.[^\W\d][\w-]*)*", key) is None:
            raise UsageError(
                f"{place}: this is not an override. Allowed: key=value, for example optimizer.momentum=0.95"
            )
        if not text.strip():
            raise UsageError(f"{place}: there is no value after the =. Allowed: {key}=VALUE, or {key}=null for none")
        try:
            root, reader = _compose(text, place), _Reader(place)
            value = None if root is None else reader.value(root, key)
        except ConfigError as error:
            raise UsageError(f"{place}: the value is not YAML. {error.problems[0].found}") from None
        if reader.problems:
            raise UsageError(f"{place}: {reader.problems[0].found}. Allowed: {reader.problems[0].allowed}")
        yield key, value, place


def _override_place(start: str, key: str, text: str) -> str:
    """The place of an override, with its value unless that may be secret."""
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return f"{start} {key}={'...' if credentials.in_text(text[: 10 * _MAX_SHOWN]) else shown}"
