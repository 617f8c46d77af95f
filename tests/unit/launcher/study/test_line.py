from __future__ import annotations

from fractions import Fraction

import pytest

from launcher.study.line import Line, time_left_s
from launcher.study.rounds import Job, next_round
from launcher.study.state import State
from launcher.study.training import Moment
from tests.unit.launcher.study.conftest import MakePlan
from tests.unit.launcher.study.runs import finished, states, stopped

TEXT = "grid: {batch.size: [8, 16]}\nseeds: [0, 1, 2]"


def test_the_time_left_is_that_of_finished_runs_of_the_same_combination(make_plan: MakePlan) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {"-8_seed-0": finished(seconds=10.0), "-16_seed-0": finished(seconds=30.0)})
    jobs = next_round(plan, now).jobs
    assert time_left_s(plan, jobs, now, {}, size=2) == (10.0 + 10.0 + 30.0 + 30.0) / 2
    assert time_left_s(plan, jobs, now, {}, size=100) == 30.0  # as long as the longest run


def test_a_part_that_is_done_does_not_count_and_a_running_run_knows_best(make_plan: MakePlan) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {"-8_seed-0": finished(seconds=10.0), "-8_seed-1": stopped(4), "-16": State("failed")})
    jobs = next_round(plan, now).jobs
    assert [job.run.name for job in jobs] == ["size-8_seed-1", "size-8_seed-2"]
    assert time_left_s(plan, jobs, now, {}, size=1) == 5.0 + 10.0
    assert time_left_s(plan, jobs, now, {"size-8_seed-2": Moment(4, 8, 7.0)}, size=1) == 5.0 + 7.0
    halves = [Job(job.run, Fraction(3, 4)) for job in jobs]
    assert time_left_s(plan, halves, now, {}, size=1) == 2.5 + 7.5


def test_before_the_first_run_is_done_the_running_ones_tell(make_plan: MakePlan) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {})
    jobs = next_round(plan, now).jobs
    assert time_left_s(plan, jobs, now, {}, size=2) is None
    assert time_left_s(plan, jobs, now, {"size-8_seed-0": Moment(2, 8, 6.0)}, size=2) == (6.0 + 5 * 8.0) / 2


def test_the_line_counts_runs(make_plan: MakePlan, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {"-8_seed-0": finished(seconds=100.0), "-8_seed-1": State("failed")})
    line = Line(plan, now, size=1)
    line.begin(next_round(plan, now), next_round(plan, now).jobs)
    line.moments["size-16_seed-0"] = Moment(1, 8, None)
    assert line.text() == "small: 1 of 6 runs done, 1 running (12%), 1 failed, 6:40 left"
    line.show()
    line.show()  # the same again
    assert capsys.readouterr().out.count("\n") == 1


def test_the_line_shows_how_far_the_running_runs_are_and_counts_those_that_stopped(make_plan: MakePlan) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {"-8_": stopped(4)})
    line = Line(plan, now, size=6)
    line.begin(next_round(plan, now), next_round(plan, now).jobs)
    line.moments |= {"size-8_seed-0": Moment(5, 8, None), "size-16_seed-0": Moment(0, None, None)}
    assert line.text().startswith("small: 0 of 6 runs done, 2 running (62%), 0 failed, 2 stopped, ")
    line.moments["size-16_seed-0"] = Moment(199, 200, None)
    assert "2 running (62%, 99%), 0 failed" in line.text()
    line.moments |= {f"size-16_seed-{seed}": Moment(seed, 8, None) for seed in range(3)}
    line.moments["size-8_seed-1"] = Moment(4, 8, None)
    assert "5 running (0% to 62%), 0 failed, 1 stopped" in line.text()


def test_without_a_terminal_the_line_is_printed_now_and_then(
    make_plan: MakePlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(TEXT)
    now, clock = states(plan, {}), [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    line = Line(plan, now, size=1)
    line.begin(next_round(plan, now), next_round(plan, now).jobs)
    for second in range(70):
        clock[0] = 1000.0 + second
        line.moments["size-8_seed-0"] = Moment(second, 100, None)
        line.show()
    found = capsys.readouterr().out.splitlines()
    assert [text.partition("running ")[2].partition(")")[0] for text in found] == ["(0%", "(30%", "(60%"]


def test_on_a_terminal_the_line_does_not_wrap(
    make_plan: MakePlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(TEXT)
    now = states(plan, {})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    line = Line(plan, now, size=1)
    line.begin(next_round(plan, now), next_round(plan, now).jobs)
    line.show()
    assert capsys.readouterr().out == "small: 0 of 6 runs "
