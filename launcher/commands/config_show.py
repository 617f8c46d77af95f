"""`launcher config show CONFIG [--sources]`, and `launcher config schema`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.arguments import config_arguments
from launcher.config import load as configs
from launcher.config import yaml_source, yaml_text
from launcher.config.json_schema import json_schema
from launcher.config.yaml_source import Document

DEFAULT = "default"
_COMMENT_COLUMN = 44


def add_parsers(kinds: Any) -> None:
    """show CONFIG [key=value ...] [--sources] · schema"""
    kind = kinds.add_parser("show", help="the resolved config as YAML")
    config_arguments(kind)
    kind.add_argument("--sources", action="store_true", help="also where each value comes from, as comments")
    kind.set_defaults(run=_show)
    kinds.add_parser("schema", help="the JSON schema of a config, for editors").set_defaults(run=_schema)


def _show(given: argparse.Namespace) -> int:
    text = configs.to_yaml(configs.load(given.config, given.overrides))
    if given.sources:
        document = configs.read(given.config, given.overrides)
        text = "\n".join(with_sources(yaml_source.parse(text, given.config).data, document)) + "\n"
    print(text, end="")
    return 0


def with_sources(config: Mapping[str, Any], document: Document, prefix: str = "") -> Iterator[str]:
    """The lines of a YAML file of the resolved `config`, with the source of each value as a comment.

    A source is "default", the line of the file, or "command line", by the `document` that the config was made of.
    """
    indent = "  " * prefix.count(".")
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from with_sources(value, document, f"{key}.")
        else:
            yield (
                f"{indent}{name}: {yaml_text.flow(value)}".ljust(_COMMENT_COLUMN) + f"  # {source_of(key, document)}"
            )


def source_of(key: str, document: Document) -> str:
    """Where the value of `key` was given: "default", "command line", or a file and line."""
    section = key.removesuffix(".name")  # `optimizer: sgd` is short for `optimizer: {name: sgd}`
    if not document.gives(key) and not (key != section and document.gives_as_text(section)):
        return DEFAULT
    place = document.place(key)
    return "command line" if place.startswith("command line") else place


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0
