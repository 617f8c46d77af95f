"""Manifests as YAML: one document each, the same text every time, long texts as blocks that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

Manifest = dict[str, Any]

# Text that no reader of YAML takes for anything else; all other is quoted. kubectl reads YAML 1.1 with parts of 1.2,
# PyYAML 1.1 alone: `1e3` is a number to one of them, and `on` to neither.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\./)[A-Za-z0-9_./@+=-]*(?:[ :][A-Za-z0-9_./@+=()-]+)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


class _Dumper(yaml.SafeDumper):
    """Writes equal values out, never as &id001, and lists inside their key's indentation."""

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


def to_yaml(manifests: Iterable[Mapping[str, Any]], heading: Sequence[str] = ()) -> str:
    """All of them as one file that `kubectl apply -f` takes; each line of `heading` becomes a comment at its top."""
    comments = "".join(f"# {line}".rstrip() + "\n" for text in heading for line in text.splitlines() or [""])
    documents = [
        yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
        for manifest in manifests
    ]
    return comments + "---\n".join(documents)
