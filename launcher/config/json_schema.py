"""The JSON schema of a config, with which editors complete keys, show what they mean, and mark mistakes."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pydantic

from launcher.config.builder import is_section
from launcher.config.reference import meanings
from launcher.config.schema import RANGE_PATTERN, RunConfig
from resnet_dist.recipe import durations, percentages

# Durations: the text that `Duration.parse` accepts.
DURATION_PATTERN = rf"(^\s*[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s+(epoch|step|sample)s?\s*$)|({percentages.PATTERN})"


def json_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a config file. The meanings are those of docs/config.md."""
    schema = pydantic.TypeAdapter(RunConfig).json_schema()
    sections: dict[str, Any] = schema["$defs"]
    kinds = {kind.__name__: kind for kind in _kinds(RunConfig)}
    for name, section in (("RunConfig", schema), *sections.items()):
        section["additionalProperties"] = False
        section.pop("title", None)
        explained = meanings(kinds[name]) if name in kinds else {}
        for key, value in section.get("properties", {}).items():
            value.pop("title", None)
            if key in explained:
                value["description"] = explained[key]
    for key, section in sections.items():
        if "name" in section["properties"]:  # `optimizer: sgd` is short for `optimizer: {name: sgd}`
            explained = {"description": section.pop("description")}  # of both forms: an editor shows it at the key
            sections[key] = {**explained, "anyOf": [{"type": "string"}, section]}
    sections["Workers"] = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": RANGE_PATTERN}]}
    sections["Duration"] = {"type": "string", "pattern": DURATION_PATTERN, "description": durations.FORM}
    _allow_percentages(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "resnet-launcher config", **schema}


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    """`kind` and the dataclasses of its sections, at any depth."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        if is_section(hint) and dataclasses.is_dataclass(hint):
            yield from _kinds(typing.cast(type[Any], hint))


def _allow_percentages(schema: Any) -> None:
    """Allow text such as `75.9 %` wherever a JSON schema allows any number, in place."""
    if isinstance(schema, list):
        for item in schema:
            _allow_percentages(item)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "number":
        schema["type"] = ["number", "string"]
        schema["pattern"] = percentages.PATTERN  # of the text
    for item in schema.values():
        _allow_percentages(item)
