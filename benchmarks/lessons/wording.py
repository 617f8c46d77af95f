"""Numbers, intervals and verdicts as text. The data choose the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.study.statistics import Summary, Verdict

MOST_DIGITS = 4  # after the point
MINUS = "\N{MINUS SIGN}"


def percent(summary: Summary) -> str:
    """A fraction in percent, with half of its 95 % interval.

    >>> from launcher.study.statistics import summarise
    >>> percent(summarise([0.841, 0.859, 0.850]))
    '85.0 ± 2.2 %'
    """
    half = "" if summary.half is None else f" ± {100 * summary.half:.1f}"
    return f"{100 * summary.mean:.1f}{half} %{_few(summary)}"


def share(fraction: float) -> str:
    """A fraction in whole percent.

    >>> share(0.6)
    '60 %'
    """
    return f"{100 * fraction:.0f} %"


def number(summary: Summary, digits: int = 2) -> str:
    """A number, with half of its 95 % interval."""
    half = "" if summary.half is None else f" ± {summary.half:.{digits}f}"
    return f"{summary.mean:.{digits}f}{half}{_few(summary)}"


def _few(summary: Summary) -> str:
    return f" (n = {summary.n}: no interval)" if summary.half is None else ""


def in_points(difference: Summary) -> str:
    """A difference of fractions in percentage points, with its interval, and the verdict if there is none.

    >>> from launcher.study.statistics import summarise
    >>> in_points(summarise([-0.20, -0.21, -0.22]))
    '−21.0 points (−23.5 to −18.5)'
    >>> in_points(summarise([-0.01, 0.01, 0.0]))
    '+0.0 points (−2.5 to +2.5: inconclusive)'
    """
    return _difference(difference, 100.0, 1, " points")


def in_units(difference: Summary, digits: int = 2) -> str:
    """A difference of numbers, with its interval, and the verdict if there is none."""
    return _difference(difference, 1.0, digits, "")


def _difference(difference: Summary, factor: float, digits: int, unit: str) -> str:
    if difference.half is None:
        return f"{signed(factor * difference.mean, digits)}{unit} (n = {difference.n}: no interval, inconclusive)"
    ends = [factor * (difference.mean + sign * difference.half) for sign in (-1, 1)]
    while digits < MOST_DIGITS and any(end != 0 and round(end, digits) == 0 for end in ends):
        digits += 1  # on which side of 0 an end is decides the verdict
    low, high = (signed(end, digits) for end in ends)
    verdict = ": inconclusive" if difference.verdict == "inconclusive" else ""
    return f"{signed(factor * difference.mean, digits)}{unit} ({low} to {high}{verdict})"


def signed(value: float, digits: int) -> str:
    """`value` with its sign, and a minus sign that is as wide as a plus."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = f"{0:+.{digits}f}"
    return text.replace("-", MINUS)


def by_verdict(verdict: Verdict, *, larger: str, smaller: str, inconclusive: str) -> str:
    """The text for a verdict."""
    return {"larger": larger, "smaller": smaller, "inconclusive": inconclusive}[verdict]


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names in a sentence.

    >>> listed(["a", "b", "c"]), listed([])
    ('a, b and c', 'none')
    """
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def sorted_by_verdict(differences: Mapping[str, Summary]) -> dict[Verdict, list[str]]:
    """The names by the verdict of their difference, in their order."""
    found: dict[Verdict, list[str]] = {"larger": [], "smaller": [], "inconclusive": []}
    for name, difference in differences.items():
        found[difference.verdict].append(name)
    return found


def sentence(subject: str, kinds: Mapping[Verdict, Sequence[str]], **predicates: str) -> str:
    """A sentence about the names of each verdict that has any; `{}` in its predicate stands for them.

    >>> kinds = {"larger": ["A"], "smaller": [], "inconclusive": ["B", "C"]}
    >>> sentence("It", kinds, larger="helps with {}", smaller="harms with {}", inconclusive="is unclear with {}")
    'It helps with A, and is unclear with B and C.'
    """
    parts = [predicates[verdict].format(listed(names)) for verdict, names in kinds.items() if names]
    return f"{subject} {joined(parts)}."


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence that may have commas of their own.

    >>> joined(["sees", "hears"])
    'sees, and hears'
    """
    return ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(45), duration(245)
    ('45 s', '4 min 5 s')
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def power(value: float) -> str:
    """A positive number of any size, with two digits.

    >>> power(0.00231), power(3.4e-14), power(27.0), power(351.0)
    ('0.0023', '3.4e-14', '27', '350')
    """
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if 10 <= rounded < 1e6 else f"{rounded:g}"
