"""Errors of this package: a run or a profile that a scheduler does not accept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake in a config or a profile.

    >>> print(Problem("site.yaml:3", "partitoin", "unknown key", "partition, account", "partition"))
    site.yaml:3: partitoin: unknown key. Allowed: partition, account. Did you mean partition?
    """

    place: str  # FILE:LINE, or the override on the command line; empty if the caller has to look `key` up
    key: str  # dotted; empty if the file as a whole is meant
    found: str
    allowed: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.place, self.key) if part)
        hint = f". Did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{where}{self.found}. Allowed: {self.allowed}{hint}"


class PlaceError(ValueError):
    """A run or a profile that a scheduler does not accept. `problems` holds all that were found.

    The command line exits with 78: a retry with the same input would fail too.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
