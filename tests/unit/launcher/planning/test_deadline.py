"""What is done by a deadline: times, candidates, and their table."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.errors import UsageError
from launcher.planning import deadline
from launcher.planning.forecast import Interval

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")
NOW = datetime.datetime(2026, 11, 26, 12, tzinfo=datetime.UTC)


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
def test_a_time_without_a_zone_is_local() -> None:
    found = deadline.parse("2026-12-01 06:00", NOW)
    assert found == datetime.datetime(2026, 12, 1, 11, tzinfo=datetime.UTC)
    assert f"{found:%H:%M %Z}" == "06:00 EST"


def test_a_zone_is_kept() -> None:
    assert deadline.parse("2026-12-01T06:00+01:00", NOW) == datetime.datetime(2026, 12, 1, 5, tzinfo=datetime.UTC)


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize(("text", "day"), [("07:01", 26), (" 7:01", 26), ("23:59", 26), ("07:00", 27), ("00:00", 27)])
def test_a_time_alone_is_the_next_such_local_time(text: str, day: int) -> None:
    found = deadline.parse(text, NOW)  # it is 07:00
    hour, minute = map(int, text.split(":"))
    assert found.isoformat() == f"2026-11-{day}T{hour:02}:{minute:02}:00-05:00"


@pytest.mark.usefixtures("in_new_york")
def test_a_time_of_the_next_day_has_the_offset_of_that_day() -> None:
    before_the_clocks_change = datetime.datetime(2026, 10, 31, 12, tzinfo=datetime.UTC)
    assert deadline.parse("06:00", before_the_clocks_change).isoformat() == "2026-11-01T06:00:00-05:00"


@pytest.mark.parametrize(
    "text", ["tomorrow", "", "24:00", "06:60", "6", "06:00+01:00", "2026-13-01", "2026-12-01 6 pm"]
)
def test_other_texts_are_refused(text: str) -> None:
    forms = r'a date and a time .*, such as "2026-12-01 06:00", or with a time zone .*"06:00"'
    with pytest.raises(UsageError, match=rf"is not a date and time\. Allowed: {forms}"):
        deadline.parse(text, NOW)


@pytest.mark.parametrize("text", ["2026-12-01", "20261201", "2026-W49-2"])
def test_a_date_alone_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--deadline {text}: has no time of the day\. Allowed: a date and a time"):
        deadline.parse(text, NOW)


@pytest.mark.usefixtures("in_new_york")
def test_the_past_is_refused_with_the_present() -> None:
    with pytest.raises(UsageError, match=r"--deadline 2026-11-26 06:59: is in the past: it is 2026-11-26 07:00 EST"):
        deadline.parse("2026-11-26 06:59", NOW)


def test_nodes_are_whole_numbers_around_those_of_the_config() -> None:
    assert deadline.nodes_around(configs.load(CONFIG)) == [4, 8, 16, 32]
    assert deadline.nodes_around(configs.load(CONFIG, ["cluster.nodes=1", "workers=8"])) == [1, 2, 4]
    assert deadline.nodes_around(configs.load(CONFIG, ["cluster.nodes=1", "workers=8", "place=local"])) == [1]


def test_the_candidates_are_the_config_and_all_other_published_runs() -> None:
    config = configs.load(CONFIG)
    found = list(deadline.candidates(config, [8], lambda one: None, own_only=False))
    pairs = [(one.recipe, one.config.batch.size) for one in found]
    assert pairs[0] == (deadline.OWN, 8192)
    assert ("Google", 8192) not in pairs  # it is the config's
    google = [("Google", batch) for batch in (4096, 32768, 65536)]
    nvidia = [("NVIDIA", batch) for batch in (1632, 3264, 13056, 49152, 58880, 67840)]
    sgd = [("Goyal et al. 2017", 256), ("Goyal et al. 2017", 8192), ("Nado et al. 2021", 32768)]
    assert pairs[1:] == [*google, *nvidia, *sgd]
    assert {str(one.config.workers) for one in found} == {"64"}
    lr = {one.config.batch.size: one.config.schedule.peak_lr for one in found if one.recipe == "NVIDIA"}
    assert lr[67840] == 24.699


def test_a_batch_with_fewer_images_than_workers_is_left_out() -> None:
    found = deadline.candidates(configs.load(CONFIG), [64], lambda one: None, own_only=False)
    assert ("Goyal et al. 2017", 256) not in [(one.recipe, one.config.batch.size) for one in found]


@pytest.mark.parametrize(
    ("override", "num"), [("model.name=resnet18", 1), ("data.num_samples=100000", 1), ("data.subset=0.5", 1)]
)
def test_another_network_or_other_images_have_no_published_candidates(override: str, num: int) -> None:
    found = deadline.candidates(configs.load(CONFIG, [override]), [8], lambda one: None, own_only=False)
    assert len(list(found)) == num


def test_a_run_is_in_time_with_its_upper_bound() -> None:
    wall_s = Interval(low=10, median=20, high=30)
    verdicts = [deadline.verdict(wall_s, left_s) for left_s in (30, 29, 10, 9)]
    assert verdicts == ["in time", "perhaps", "perhaps", "too late"]


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["plan", CONFIG, "--images-per-s", "1000", *options]) == 0
    text = capsys.readouterr().out
    *lines, last = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(last) <= 80 or last.startswith("python -m launcher.train")  # with --batch: to be copied
    return text.partition("\nDeadline ")[2].partition("\nRecipe\n")[0]


def in_hours(hours: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)).isoformat()


def test_what_is_in_time_is_sorted_by_gpu_hours(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--deadline", in_hours(1000), "--nodes", "4,8")
    rows = [line.split() for line in text.splitlines() if line.startswith(("    4 ", "    8 "))]
    hours = [float(row[row.index("to") + 2]) for row in rows]
    assert hours == sorted(hours)
    assert "75.9%, 10/10" in text
    assert "  in time\n" in text
    assert "too late" not in text


def test_a_narrow_terminal_has_fewer_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["plan", CONFIG, "--gpu", "H100", "--deadline", in_hours(1000), "--nodes", "4"]) == 0
    table = capsys.readouterr().out.partition("  in time\n")[2].splitlines()
    assert table[0].split() == ["nodes", "batch", "done", "top-1"]
    assert max(map(len, table[:9])) <= 40
    columns = {line.index("75.9%") for line in table[:9] if "75.9%" in line}
    assert columns == {table[0].index("top-1")}


def test_cpus_have_no_gpu_hours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    digits = [str(Path(CONFIG).with_name("digits_cpu.yaml")), "data.num_samples=1442", f"storage={tmp_path}"]
    assert cli.main(["plan", *digits, "--images-per-s", "100", "--deadline", in_hours(1000)]) == 0
    head = capsys.readouterr().out.partition("  in time\n")[2].splitlines()[0]
    assert head.split() == ["nodes", "batch", "recipe", "done", "(80%)", "top-1"]


def test_none_in_time_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--deadline", in_hours(0.02), "--nodes", "1")
    said = " ".join(line.strip() for line in text.splitlines()[1:3])
    assert said.startswith("No combination of nodes, batch and recipe (of 13) is certain to finish in time.")
    assert "  in time\n" not in text


def test_a_price_gives_the_cost_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--deadline", in_hours(1000), "--nodes", "8", "--batch", "8192"]
    (row,) = [line.split() for line in plan(capsys, *options).splitlines() if line.startswith("    8 ")]
    options += ["--price-per-gpu-hour", "10"]
    (priced,) = [line.split() for line in plan(capsys, *options).splitlines() if line.startswith("    8 ")]
    assert float(priced[-3].replace(",", "")) == pytest.approx(10 * float(row[-3]), rel=0.1)
