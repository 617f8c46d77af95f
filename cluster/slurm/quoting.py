"""The one way for a value to enter a bash script."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def quote(value: str) -> str:
    r"""`value` as one word of bash, whatever is in it; only NUL, which no variable can hold, raises ValueError.

    Text with control characters other than newlines is written with escapes: sbatch refuses a script with DOS line
    ends, and a terminal would act on the rest.

    >>> print(quote("/data/my images"), quote("$(rm -rf /)"), quote("a\rb"))
    '/data/my images' '$(rm -rf /)' $'a\rb'
    """
    if "\0" in value:
        raise ValueError("a value with a NUL character cannot be passed to a program")
    if all(character.isprintable() or character == "\n" for character in value):
        return shlex.quote(value)
    return "$'" + "".join(map(_escaped, value)) + "'"


def assignment(name: str, value: str | int) -> str:
    """A line that makes `name` a constant."""
    return f"readonly {name}={quote(str(value))}"


def array(name: str, values: Iterable[str]) -> str:
    """A line that makes `name` an array."""
    return f"{name}=({' '.join(map(quote, values))})"


def _escaped(character: str) -> str:
    named = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": r"\\", "'": r"\'"}
    if character in named:
        return named[character]
    if character.isprintable():
        return character
    # Bytes: \u would depend on the locale. Half a surrogate pair is how Python shows a byte that is not UTF-8.
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
