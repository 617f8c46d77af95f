"""Every key of a config, its type, default and meaning: read from the dataclasses that hold them.

python -m launcher.config.reference          writes docs/config.md
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.config.schema import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "config.md"

HEAD = """# Every key of a config

Read from the code by `python -m launcher.config.reference`; a test keeps this page true. `launcher config show CONFIG`
prints a config with all its defaults, `launcher config schema` a JSON schema for editors. A duration is `44 epochs`,
`500 steps` or `1e6 samples`. Any key can be overridden on the command line: `batch.size=256`.
"""

Row = tuple[str, str, str, str]  # key, type, default, meaning


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *_sections(RunConfig, "")])


def _sections(kind: type[Any], prefix: str) -> Iterator[str]:
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    own: list[Row] = []
    nested: list[tuple[str, type[Any]]] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if _is_section(hint):
            nested.append((field.name, hint))
            continue
        own.append((f"{prefix}{field.name}", _type(hint), _default(field), comments.get(field.name, "")))
    doc = inspect.cleandoc(kind.__doc__ or "").replace("\n", " ")
    yield f"## {prefix.rstrip('.') or 'The run'}\n"
    if prefix:
        yield f"{doc}\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    yield "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in own) + "\n"
    for name, section in nested:
        yield from _sections(section, f"{prefix}{name}.")


def _is_section(hint: Any) -> bool:
    """A dataclass of keys; a duration and a number of workers are one value each."""
    return dataclasses.is_dataclass(hint) and getattr(hint, "parse", None) is None


def _comments(kind: type[Any]) -> dict[str, str]:
    """The comment at the end of each field's line, of the class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        lines = inspect.getsource(base)
        for token in tokenize.generate_tokens(io.StringIO(lines).readline):
            name = re.match(r"\s+(\w+):", token.line)
            if token.type == tokenize.COMMENT and name:
                found[name[1]] = token.string.lstrip("# ")
    return found


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(str(value) for value in typing.get_args(hint))
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return " or ".join([*(_type(argument) for argument in arguments if argument is not type(None)), "nothing"])
    if arguments and typing.get_origin(hint) not in (tuple, dict) and not hasattr(typing.get_origin(hint), "keys"):
        return " or ".join(_type(argument) for argument in arguments)
    if arguments:
        inner = ", ".join("..." if argument is Ellipsis else _type(argument) for argument in arguments)
        return f"{'list of' if typing.get_origin(hint) is tuple else 'section of'} {inner}"
    words = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true, false",
        "Any": "anything",
        "Workers": "whole number or A..B",
    }
    name = getattr(hint, "__name__", str(hint))
    return words.get(name, name.lower())


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value) + "]"
    return "{}" if value == {} else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
