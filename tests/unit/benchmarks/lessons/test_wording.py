"""Numbers and verdicts as text."""

from __future__ import annotations

import pytest

from benchmarks.lessons import wording
from launcher.study.statistics import Summary, Verdict, summarise


def summary(*values: float) -> Summary:
    found = summarise(values)
    assert found is not None
    return found


def test_a_fraction_is_shown_in_percent_with_half_of_its_interval() -> None:
    assert wording.percent(summary(0.841, 0.859, 0.850)) == "85.0 ± 2.2 %"
    assert wording.percent(summary(0.5)) == "50.0 % (n = 1: no interval)"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((-0.20, -0.21, -0.22), "-21.0 points (-23.5 to -18.5)"),
        ((-0.01, 0.01, 0.0), "+0.0 points (-2.5 to +2.5: inconclusive)"),
        ((-0.0001,), "+0.0 points (n = 1: no interval, inconclusive)"),
    ],
)
def test_a_difference_has_its_interval_and_says_if_it_is_inconclusive(values: tuple[float, ...], text: str) -> None:
    assert wording.in_points(summary(*values)) == text.replace("-", wording.MINUS)


def test_names_are_sorted_by_the_verdict_on_their_difference() -> None:
    differences = {"a": summary(1.0, 1.1, 1.2), "b": summary(-1.0, 1.0, 0.0), "c": summary(-1.0, -1.1, -1.2)}
    assert wording.sorted_by_verdict(differences) == {"larger": ["a"], "smaller": ["c"], "inconclusive": ["b"]}


def test_a_sentence_leaves_out_verdicts_without_names() -> None:
    predicates = {"larger": "helps with {}", "smaller": "harms with {}", "inconclusive": "is unclear with {}"}

    def text(larger: list[str], smaller: list[str], inconclusive: list[str]) -> str:
        kinds: dict[Verdict, list[str]] = {"larger": larger, "smaller": smaller, "inconclusive": inconclusive}
        return wording.sentence("It", kinds, **predicates)

    assert text(["a"], ["b", "c"], ["d"]) == "It helps with a, harms with b and c, and is unclear with d."
    assert text([], ["b"], ["d"]) == "It harms with b, and is unclear with d."
    assert text([], [], ["d"]) == "It is unclear with d."


def test_a_list_of_names_is_a_part_of_a_sentence() -> None:
    assert [wording.listed(names) for names in (["a", "b", "c"], ["a"], [])] == ["a, b and c", "a", "none"]


def test_seconds_and_numbers_of_any_size_are_short() -> None:
    assert [wording.duration(seconds) for seconds in (45, 245)] == ["45 s", "4 min 5 s"]
    assert [wording.power(value) for value in (0.00231, 3.4e-14, 27.0)] == ["0.0023", "3.4e-14", "27"]
