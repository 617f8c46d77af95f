"""Charts of braille dots."""

from __future__ import annotations

import pytest

from launcher.watch.chart import Chart, Curve, draw, number
from launcher.watch.lines import plain, width_of

LINE = [(float(x), float(x)) for x in range(101)]


def chart(*curves: Curve, **more: object) -> Chart:
    values = {"title": "loss", "show": number, "show_x": number, "x_name": "step", "x_range": (0.0, 100.0), **more}
    return Chart(curves=curves, **values)  # type: ignore[arg-type]


def shown(one: Chart, width: int = 30, height: int = 9) -> list[str]:
    return [plain(row) for row in draw(one, width, height)]


def test_a_line_rises_from_the_left_to_the_right() -> None:
    rows = shown(chart(Curve(LINE)))
    assert rows[0] == "loss"
    tops = [row[8:].rstrip() for row in rows[1:-2]]
    assert [len(row) for row in tops] == sorted((len(row) for row in tops), reverse=True)
    assert len(tops[0]) == 22
    assert rows[-2] == "       └" + "─" * 22
    assert rows[-1] == "        0      step 50     100"


def test_the_labels_are_round_values() -> None:
    labels = [row[:8].strip() for row in shown(chart(Curve(LINE)), height=12)[1:-2]]
    assert [label for label in labels if label.endswith("┤")] == ["100┤", "50┤", "0┤"]


def test_a_dashed_line_has_gaps_and_its_letter_at_its_end() -> None:
    flat = [(0.0, 1.0), (100.0, 1.0)]
    solid, dashed = (shown(chart(Curve(flat, dashed=is_dashed, name="B")))[1:-2] for is_dashed in (False, True))
    [row] = [row[8:] for row in dashed if row.endswith("B")]
    assert " " in row.strip()
    assert not any(" " in row[8:].strip() for row in solid)


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    points = [(float(x), None if 40 < x < 60 else 1.0) for x in range(101)]
    [row] = [row[8:] for row in shown(chart(Curve(points)))[1:-2] if row[8:].strip()]
    assert "  " in row.strip()


def test_marks_are_on_the_axis_and_above_it() -> None:
    rows = shown(chart(Curve(LINE), marks=[(50.0, "x", "mark"), (200.0, "2", "mark")]))
    column = rows[-2].index("x")
    assert column == 8 + 10
    assert rows[1][column] == "┊"
    assert "2" not in rows[-2]


@pytest.mark.parametrize(
    ("places", "end"), [((100.0, 100.0), "──x2"), ((99.9, 100.0), "──x2"), ((100.0, 100.0, 100.0, 100.0), "x2x3")]
)
def test_marks_of_one_step_are_beside_each_other_also_at_the_end(places: tuple[float, ...], end: str) -> None:
    marks = [(x, sign, "mark") for x, sign in zip(places, "x2x3", strict=False)]
    assert shown(chart(Curve(LINE), marks=marks))[-2].endswith(end)


def test_a_loss_over_many_powers_of_ten_has_a_logarithmic_axis() -> None:
    falling = [(float(x), 10.0 ** (2 - x / 25)) for x in range(101)]
    rows = shown(chart(Curve(falling), may_be_log=True))
    assert rows[0] == "loss, log axis"
    assert rows[1].startswith("    100┤")
    assert shown(chart(Curve(falling)))[0] == "loss"


@pytest.mark.parametrize(
    "points",
    [[], [(0.0, None)], [(3.0, 0.0)], [(1.0, 1e300), (2.0, -1e300)], [(5.0, 1.0), (1.0, 1.0)], [(1e20, 1e-300)]],
    ids=["none", "not finite", "one", "huge", "unordered", "tiny"],
)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (20, 6), (9, 4), (1, 1), (12, 3)])
def test_odd_values_and_sizes_are_drawn_inside(
    points: list[tuple[float, float | None]], width: int, height: int
) -> None:
    rows = draw(chart(Curve(points, name="A"), may_be_log=True, x_range=(0.0, 10.0)), width, height)
    assert len(rows) <= height
    if width >= 20:
        assert all(width_of(row) <= width for row in rows)
