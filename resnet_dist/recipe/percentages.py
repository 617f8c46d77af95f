"""Percentages as text: `75.9 %` is 0.759 wherever a config expects a number, and a part of the run in a duration."""

from __future__ import annotations

import re
from fractions import Fraction

# of the text, also in JSON schema; the bound on the digits is for exact fractions
PATTERN = r"^\s*[0-9]{1,9}(\.[0-9]{0,12})?\s*%\s*$"


def percentage(text: str) -> Fraction | None:
    """The exact number that `text` means, or None if it is not a percentage.

    >>> percentage("75.9 %"), float(percentage("75.9%")), percentage("75.9")
    (Fraction(759, 1000), 0.759, None)
    """
    return Fraction(text.strip().removesuffix("%").strip()) / 100 if re.match(PATTERN, text) else None
