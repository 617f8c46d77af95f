"""Reads a site's profile from YAML: every mistake found at once, with file, line and the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import yaml

from cluster.errors import Mismatch, PlaceError
from cluster.profile import KubernetesProfile, Profile, SlurmProfile

Kind = Literal["slurm", "kubernetes"]
_KINDS: dict[str, type[SlurmProfile] | type[KubernetesProfile]] = {
    "slurm": SlurmProfile,
    "kubernetes": KubernetesProfile,
}
_FORM = "a YAML file of `key: value` lines"
_MAX_BYTES = 100_000  # a profile has a thousand: this one is another file given by mistake
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A rendered file is read by many and kept for long: what carries a secret's name has no place in it.
_SECRET = re.compile(r"token|secret|passw|api_?key|access_?key|private_?key|credential", re.IGNORECASE)


def shipped() -> dict[str, Path]:
    """The profiles that come with the package, by name."""
    folder = Path(str(importlib.resources.files("cluster") / "profiles"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


@overload
def load_profile(name: str | os.PathLike[str], kind: Literal["slurm"]) -> SlurmProfile: ...
@overload
def load_profile(name: str | os.PathLike[str], kind: Literal["kubernetes"]) -> KubernetesProfile: ...
def load_profile(name: str | os.PathLike[str], kind: Kind) -> Profile:
    """The profile of that name among the shipped ones, or in the YAML file of that path.

    Raises PlaceError where there is none, it is of another kind, or anything in it is wrong.
    """
    known = shipped()
    file = known.get(os.fspath(name), Path(name))
    try:
        raw = file.read_bytes()
        if len(raw) > _MAX_BYTES:
            raise PlaceError([Mismatch(str(file), "", f"more than {_MAX_BYTES} bytes", _FORM)])
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        allowed = f"the path of a YAML file, or one of {', '.join(known)}"
        raise PlaceError([Mismatch(str(file), "", found, allowed, _nearest(str(name), known))]) from None
    return parse_profile(text, str(file), kind)


def profile_places(name: str | os.PathLike[str]) -> dict[str, str]:
    """FILE:LINE of every key that the profile of that name or path gives, for messages about a profile that loads."""
    file = shipped().get(os.fspath(name), Path(name))
    root = yaml.compose(file.read_text("utf-8-sig"), Loader=yaml.SafeLoader)
    reader = _Reader(str(file))
    open_nodes = [("", root)]
    while open_nodes:
        key, node = open_nodes.pop()
        if isinstance(node, yaml.MappingNode):
            open_nodes += [(f"{key}.{part}" if key else part, value) for part, value in reader.items(node, key)]
    return reader.places


def parse_profile(text: str, name: str, kind: Kind) -> Profile:
    """The profile in `text`; `name` is the file's in messages. Raises PlaceError with every mistake."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        found = f"this is not YAML: {getattr(error, 'problem', None) or 'a character that is not printable'}"
        raise PlaceError([Mismatch(f"{name}:{line}", "", found, _FORM)]) from None
    except RecursionError:
        raise PlaceError([Mismatch(f"{name}:1", "", "brackets nested too deeply", _FORM)]) from None
    if not isinstance(root, yaml.MappingNode):
        raise PlaceError([Mismatch(f"{name}:1", "", "there are no keys", _FORM)])
    reader = _Reader(name)
    stated = next((value for key, value in root.value if key.value == "kind"), None)
    if stated is None or stated.value != kind:
        found = "missing" if stated is None else f'found "{stated.value}"'
        raise PlaceError([Mismatch(reader.place(stated or root), "kind", found, f"{kind}, which is asked for here")])
    profile: Any = reader.section(_KINDS[kind], root, "")
    if not reader.mismatches:
        reader.mismatches += _problems(profile, reader)
    if reader.mismatches:
        raise PlaceError(reader.mismatches)
    checked: Profile = profile
    return checked


class _Reader:
    """Makes dataclasses of YAML's nodes and notes what does not fit."""

    def __init__(self, name: str) -> None:
        self.mismatches: list[Mismatch] = []
        self.places: dict[str, str] = {}
        self._name = name
        self._open: set[int] = set()  # the collections around the current node: an alias to one never ends

    def place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def where(self, key: str) -> str:
        """Where `key` was given; for one that was not, the file."""
        while key not in self.places and key:
            key = key.rpartition(".")[0]
        return self.places.get(key, self._name)

    def section(self, kind: Any, node: yaml.Node, key: str) -> Any:
        """An instance of the dataclass `kind`; None where it cannot be made."""
        hints = _hints(kind)
        if not isinstance(node, yaml.MappingNode):
            return self._misfit(node, key, f"a section with the keys {', '.join(hints)}")
        made: dict[str, Any] = {}
        for name, value in self.items(node, key):
            dotted = f"{key}.{name}" if key else name
            if name in hints:
                made[name] = self._value(hints[name], value, dotted)
            else:
                self._note(value, dotted, "unknown key", ", ".join(hints), _nearest(name, hints))
        for part in dataclasses.fields(kind):
            has_default = part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING
            if part.name not in made and not has_default:
                made[part.name] = None
                dotted = f"{key}.{part.name}" if key else part.name
                self._note(node, dotted, "missing, and there is no default", _allowed(hints[part.name]))
        return kind(**made)

    def _value(self, hint: Any, node: yaml.Node, key: str) -> Any:
        options = _options(hint)
        is_null = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")
        if type(None) in options and is_null:
            return None
        kind = next(option for option in options if option is not type(None))
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self.section(kind, node, key)
        if origin is tuple:
            if not isinstance(node, yaml.SequenceNode):
                return self._misfit(node, key, "a list: [first, second]")
            return tuple(self._value(arguments[0], item, key) for item in node.value)
        if origin is dict:
            if not isinstance(node, yaml.MappingNode):
                return self._misfit(node, key, "a section of names and values")
            return {name: self._value(str, value, f"{key}.{name}") for name, value in self.items(node, key)}
        if not isinstance(node, yaml.ScalarNode) or is_null:
            return self._misfit(node, key, _allowed(kind))
        return self._scalar(kind, origin, node, key)

    def _scalar(self, kind: Any, origin: Any, node: yaml.ScalarNode, key: str) -> Any:
        text = str(node.value)
        if origin is Literal:
            names = [str(name) for name in typing.get_args(kind)]
            if text not in names:
                self._note(node, key, f'found "{text}"', ", ".join(names), _nearest(text, names))
            return text
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind is int and re.fullmatch(r"[0-9]{1,9}", text):
            return int(text)
        if kind is str and text.strip() and text.isprintable():
            return text
        return self._misfit(node, key, _allowed(kind))

    def items(self, node: yaml.MappingNode, key: str) -> Iterator[tuple[str, yaml.Node]]:
        """Names and values of a section; the places of its keys are noted."""
        if id(node) in self._open:
            self._note(node, key, "an alias to what it stands in", "a profile written out")
            return
        self._open.add(id(node))
        seen: set[str] = set()
        for key_node, value in node.value:
            name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            dotted = f"{key}.{name}" if key else name
            if not name or name in seen:
                self._note(key_node, dotted, "given twice" if name else "a key that is no text", "each key once")
                continue
            seen.add(name)
            self.places[dotted] = self.place(key_node)
            yield name, value
        self._open.remove(id(node))

    def _misfit(self, node: yaml.Node, key: str, allowed: str) -> None:
        found = f'found "{node.value}"' if isinstance(node, yaml.ScalarNode) else "found a list or section"
        self._note(node, key, found, allowed)

    def _note(self, node: yaml.Node, key: str, found: str, allowed: str, suggestion: str = "") -> None:
        self.mismatches.append(Mismatch(self.place(node), key, found, allowed, suggestion))


def _problems(profile: Profile, reader: _Reader) -> Iterator[Mismatch]:
    """What the types cannot say. Kubernetes' own rules are with its manifests."""
    variables = {
        "environment": profile.environment,
        "network.environment": profile.network.environment,
    }
    for section, names in variables.items():
        for name in names:
            key = f"{section}.{name}"
            if _VARIABLE.fullmatch(name) is None:
                yield Mismatch(reader.where(key), key, "no name of a variable", "letters, digits and _, no digit first")
            elif _SECRET.search(name):
                allowed = (
                    "secrets: [{variable: ..., secret: ..., key: ...}]"
                    if isinstance(profile, KubernetesProfile)
                    else "variables of your login shell, which sbatch passes on"
                )
                yield Mismatch(reader.where(key), key, "this looks like a secret, and the script is no secret", allowed)
    if profile.notice_s < 1:
        yield Mismatch(reader.where("notice_s"), "notice_s", "found 0", "a whole number of seconds from 1 up")
    if isinstance(profile, SlurmProfile):
        yield from _slurm_problems(profile, reader)


def _slurm_problems(profile: SlurmProfile, reader: _Reader) -> Iterator[Mismatch]:
    def mismatch(key: str, found: str, allowed: str) -> Mismatch:
        return Mismatch(reader.where(key), key, found, allowed)

    # A socket's path has room for 107 characters; the job's folder and Ray's session take up to 75 of them.
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,29}", profile.scratch):
        yield mismatch("scratch", f'found "{profile.scratch}"', "an absolute path of at most 30 letters, digits, . _ -")
    if "{count}" not in profile.gpus or not re.fullmatch(r"--gp?[a-z-]+=[^\s{}]*\{count\}[^\s{}]*", profile.gpus):
        yield mismatch("gpus", f'found "{profile.gpus}"', "one option with {count}: --gres=gpu:a100:{count}")
    for option in profile.sbatch:
        if not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", option):
            yield mismatch("sbatch", f'found "{option}"', "options of sbatch in their long form: --reservation=name")
    for key in ("venv", "conda"):
        folder = getattr(profile, key)
        if folder is not None and not folder.startswith("/"):
            yield mismatch(key, f'found "{folder}"', "an absolute path, the same on every node")
    if sum(part is not None for part in (profile.venv, profile.conda, profile.container)) > 1:
        key = "container" if profile.container is not None else "conda"
        yield mismatch(key, "more than one of venv, conda and container", "the one that has Python and the launcher")
    for mount in () if profile.container is None else profile.container.mounts:
        if not re.fullmatch(r"/[^:,]*:/[^:,]*(:r[ow])?", mount):
            yield mismatch("container.mounts", f'found "{mount}"', "SOURCE:TARGET or SOURCE:TARGET:ro, absolute paths")


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; `Literal[...] | None` is one of typing's own kind."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {part.name: hints[part.name] for part in dataclasses.fields(kind)}


def _allowed(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if len(_options(hint)) > 1:
        return " or ".join(_allowed(option) for option in _options(hint))
    if dataclasses.is_dataclass(hint):
        return f"a section with the keys {', '.join(part.name for part in dataclasses.fields(hint))}"
    words: dict[Any, str] = {bool: "true or false", int: "a whole number", str: "text", type(None): "null"}
    return words.get(hint, "a list or section")


def _nearest(word: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")
