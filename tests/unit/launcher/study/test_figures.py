from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from launcher.study import figures, report
from launcher.study.figures import draw
from launcher.study.page import page
from launcher.study.results import Results, collect
from launcher.study.rounds import next_round
from launcher.study.schema import Figure
from launcher.study.state import State
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states

TEXT = (
    "hypothesis: a < b & c\ngrid: {schedule.peak_lr: [0.001, 0.1], optimizer.nesterov: [false, true]}\nseeds: [0, 1]\n"
    "compare: {baseline: {optimizer.nesterov: false}}\n"
    "figures:\n  - {kind: line, x: schedule.peak_lr, y: top1}\n"
    "  - {kind: bar, x: optimizer.nesterov, y: loss}\n"
)


@pytest.fixture
def results(make_plan: MakePlan) -> Results:
    plan = make_plan(TEXT)
    given = {run.name: finished(top1=0.5 + run.number / 100, loss=1.0 + run.number) for run in plan.runs[1:]}
    now = states(plan, {**given, plan.runs[0].name: State("failed", "it broke", code=76)})
    return collect(plan, next_round(plan, now), now)


@pytest.mark.parametrize(
    "figure",
    [
        Figure(kind="line", x="schedule.peak_lr", y="top1"),
        Figure(kind="line", x="optimizer.nesterov", y="loss"),
        Figure(kind="bar", x="optimizer.nesterov", y="top1"),
        Figure(kind="curve", y="train.loss"),
    ],
    ids=lambda figure: f"{figure.kind}-{figure.y}",
)
def test_a_figure_is_a_png_and_an_svg(results: Results, figure: Figure) -> None:
    made = draw(figure, results)
    assert made is not None
    assert Image.open(io.BytesIO(made["png"])).size == (960, 600)
    svg = made["svg"].decode()
    assert "<svg" in svg
    assert ("peak_lr 0.1" in svg) is (figure.x != "schedule.peak_lr")
    assert draw(figure, results) == made  # the same bytes


def test_a_figure_without_numbers_is_left_out(results: Results) -> None:
    assert draw(Figure(kind="layers", y="gradient_norm"), results) is None


def test_the_page_needs_no_other_file(results: Results) -> None:
    report.write(results, ["launcher", "study", "x.yaml"])
    text = (results.plan.file.folder / "report.html").read_text()
    assert "a &lt; b &amp; c" in text
    assert "inconclusive" in text
    assert "failed with exit code 76: it broke" in text
    assert text.count("<svg") == 2
    assert "<h2>top1 against peak_lr</h2>" in text
    assert "<h2>loss against nesterov</h2>" in text
    assert "7 of 8 runs finished; they took 70 s as the sum over runs" in text
    assert "launcher study x.yaml" in text
    assert not re.search(r"<(script|link|img)|(?:src|href)=\"(?!#)[^\"]*//", text)
    names = sorted(path.name for path in (results.plan.file.folder / "figures").iterdir())
    assert names == ["1-line-top1-by-peak_lr.png", "1-line-top1-by-peak_lr.svg",
                     "2-bar-loss-by-nesterov.png", "2-bar-loss-by-nesterov.svg"]  # fmt: skip


def test_without_matplotlib_tables_and_page_are_written(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "is_available", lambda: False)
    lines = report.write(results, ["launcher"])
    assert lines[-1] == figures.MISSING
    assert sorted(path.name for path in results.plan.file.folder.iterdir()) == [
        "report.html", "results.csv", "results.json",
    ]  # fmt: skip


def test_a_page_without_results_says_how_many_runs_are_done(make_plan: MakePlan) -> None:
    plan = make_plan("")
    now = states(plan, {})
    facts = {"command": "c", "environment": {
        "time": "", "python": "", "packages": {}, "system": "", "num_cpus": 2, "git": None}}  # fmt: skip
    assert "0 of 1 runs finished" in page(collect(plan, next_round(plan, now), now), [], facts)
