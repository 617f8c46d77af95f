"""What can be wrong between a run and a place, in the four parts that a user needs: where, what, allowed, nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mismatch:
    """One thing that a place cannot take.

    >>> print(Mismatch("site.yaml:3", "partitoin", "unknown key", "partition, account", "partition"))
    site.yaml:3: partitoin: unknown key. Allowed: partition, account. Did you mean partition?
    """

    place: str  # FILE:LINE of the profile; empty for what stands in the run's own config
    key: str  # dotted; empty when the file as a whole is meant
    found: str
    allowed: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.place, self.key) if part)
        hint = f". Did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{where}{self.found}. Allowed: {self.allowed}{hint}"


class PlaceError(ValueError):
    """A run or a profile that a place cannot take. `mismatches` holds all that were found.

    The command line reports it with exit code 78: it is never worth another try as it is.
    """

    def __init__(self, mismatches: Sequence[Mismatch]) -> None:
        super().__init__("\n".join(map(str, mismatches)))
        self.mismatches = tuple(mismatches)
