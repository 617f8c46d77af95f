"""Quotes values for a bash script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable


def quote(value: str) -> str:
    r"""`value` as one word of bash. Raises ValueError for a NUL character, which a variable cannot hold.

    Control characters other than newlines are escaped: sbatch refuses DOS line ends, terminals interpret others.

    >>> print(quote("/data/my images"), quote("$(rm -rf /)"), quote("a\rb"))
    '/data/my images' '$(rm -rf /)' $'a\rb'
    """
    if "\0" in value:
        raise ValueError("it contains a NUL character, which cannot be passed to a program")
    if all(character.isprintable() or character == "\n" for character in value):
        return shlex.quote(value)
    return "$'" + "".join(map(_escaped, value)) + "'"


def expanding(value: str, variables: Iterable[str]) -> str:
    """`value` as one word of bash in which `$NAME` of `variables` is expanded, and nothing else.

    >>> print(expanding("/scratch/$SLURM_JOB_ID/$HOME", ["SLURM_JOB_ID"]))
    /scratch/"$SLURM_JOB_ID"'/$HOME'
    """
    parts = re.split(rf"(\$(?:{'|'.join(variables)})\b)", value)  # every second one is a variable
    return "".join(f'"{part}"' if number % 2 else quote(part) for number, part in enumerate(parts) if part)


def assignment(name: str, value: str | int) -> str:
    """A line that sets the constant `name`."""
    return f"readonly {name}={quote(str(value))}"


def array(name: str, values: Iterable[str]) -> str:
    """A line that sets the array `name`."""
    return f"{name}=({' '.join(map(quote, values))})"


def _escaped(character: str) -> str:
    named = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": r"\\", "'": r"\'"}
    if character in named:
        return named[character]
    if character.isprintable():
        return character
    # As bytes, because \u depends on the locale. Python represents a byte that is not UTF-8 by a lone surrogate.
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
