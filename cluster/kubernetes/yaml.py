"""Manifests as YAML: one document each, deterministic, with long texts as readable blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

Manifest = dict[str, Any]

# Text that every YAML reader parses as text; other text is quoted. kubectl reads YAML 1.1 with parts of 1.2, PyYAML
# reads 1.1: they disagree about `1e3`.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\./)[A-Za-z0-9_./@+=-]*(?:[ :][A-Za-z0-9_./@+=()-]+)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


class _Dumper(yaml.SafeDumper):
    """Writes equal values out, without &id001, and indents lists below their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    lines = text.split("\n")
    is_block = len(lines) > 1 and all(line.isprintable() and line == line.rstrip() for line in lines)
    if is_block and lines[0] == lines[0].lstrip() != "":
        style: str | None = "|"
    else:
        style = None if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def to_yaml(manifests: Iterable[Mapping[str, Any]], heading: Sequence[str] = ()) -> str:
    """All manifests as one file for `kubectl apply -f`, after the lines of `heading` as comments.

    Characters that are not printable, line breaks included, are escaped in comments as in a Python string.
    """
    comments = "".join(f"# {''.join(map(_printable, line))}".rstrip() + "\n" for line in heading)
    documents = [
        yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
        for manifest in manifests
    ]
    return comments + "---\n".join(documents)
