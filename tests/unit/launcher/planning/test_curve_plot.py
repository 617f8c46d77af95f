"""The curve of the learning rate in a terminal."""

from __future__ import annotations

import pytest

from launcher.planning.curve_plot import curve

TICKS = ("0", "1", "2", "3", "4 epochs")


@pytest.mark.parametrize("width", [12, 34, 60, 76])
@pytest.mark.parametrize("steps", [1, 7, 226, 100_000])
def test_a_curve_has_its_height_and_is_not_wider_than_asked(width: int, steps: int) -> None:
    lines = list(curve(lambda step: step + 1.0, steps, width=width, height=10, ticks=TICKS))
    assert len(lines) == 12
    assert max(map(len, lines)) <= width
    assert lines[0].split()[0] == f"{steps:.3g}"
    assert lines[-2].split()[0] == "0"
    assert (lines[-1].split()[0], lines[-1].split()[-1]) == ("0", "epochs" if width > 12 else lines[-1].split()[-1])


def test_a_rising_line_rises_and_its_area_is_half() -> None:
    lines = list(curve(float, 1000, width=52, height=10, ticks=("0", "1"), ascii_only=True))[:10]
    bars = [line.partition("|")[2].count("#") for line in lines]
    assert bars == sorted(bars)
    cells = sum(len(line.partition("|")[2].replace(" ", "")) for line in lines)
    assert cells / (10 * 46) == pytest.approx(0.5, abs=0.08)


def test_a_peak_of_few_steps_and_a_small_value_are_seen() -> None:
    lines = list(curve(lambda step: 1.0 if step == 999 else 0.001, 1000, width=50, height=10, ticks=("0", "1")))
    assert lines[0].endswith("█")
    assert lines[9].count("▁") > 40


def test_a_rate_of_0_is_an_empty_plot() -> None:
    lines = list(curve(lambda step: 0.0, 10, width=30, height=4, ticks=("0", "1"), ascii_only=True))
    assert all(line.endswith("|") for line in lines[:4])


def test_ticks_that_do_not_fit_are_left_out() -> None:
    def ticks(width: int) -> list[str]:
        texts = ("0", "1,000", "2,000", "3,000", "4,000_epochs")
        return list(curve(float, 100, width=width, height=2, ticks=texts))[-1].split()

    assert ticks(70) == ["0", "1,000", "2,000", "3,000", "4,000_epochs"]
    assert ticks(36) == ["0", "2,000", "4,000_epochs"]
    assert ticks(24) == ["0", "4,000_epochs"]


def test_ascii_is_ascii() -> None:
    assert "".join(curve(float, 100, width=40, height=5, ticks=("0", "1"), ascii_only=True)).isascii()
