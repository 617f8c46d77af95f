"""Two runs side by side: the first step that differs, in what, by how much, and the possible cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.arguments import Parser
from launcher.commands.compare import add_parser
from launcher.errors import UsageError
from launcher.run.directory import RunDirectory

Change = Callable[[dict[str, Any]], None]


class Runs:
    """Writes run directories and compares them as the command line does."""

    def __init__(self, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.storage, self._capsys = storage, capsys

    def write(
        self,
        name: str,
        *,
        steps: range = range(1, 21),
        config: str = "schema: 1\nlog: {every_steps: 1}\n",
        environment: dict[str, Any] | None = None,
        change: Change = lambda record: None,
    ) -> RunDirectory:
        run = RunDirectory(self.storage, name)
        run.create()
        run.begin_attempt({"place": "local", "workers": 2})
        run.write_config(config)
        if environment is not None:
            run.write_environment(environment)
        records = []
        for step in steps:
            record = {"kind": "train", "step": step, "learning_rate": 0.1 * step, "loss": 2.0 / step}
            records.append({**record, "gradient_norm": 1.0 + step, "sample_ids": 1000 * step})
        records.append({"kind": "eval", "step": steps[-1], "loss": 1.5, "top1": 0.5, "top5": 0.75, "num_samples": 355})
        for record in records:
            change(record)
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        run.end_attempt(1, 0, "finished", steps[-1])
        return run

    def text(self, *options: str) -> tuple[int, str]:
        code = compare(str(self.storage / "a"), str(self.storage / "b"), *options)
        return code, self._capsys.readouterr().out

    def data(self, *options: str) -> tuple[int, dict[str, Any]]:
        code, text = self.text("--json", *options)
        return code, json.loads(text)


def compare(*arguments: str) -> int:
    parser = Parser()
    add_parser(parser.add_subparsers(parser_class=Parser))
    given = parser.parse_args(["compare", *arguments])
    return int(given.run(given))


@pytest.fixture
def runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runs:
    return Runs(tmp_path, capsys)


def at(step: int, key: str, value: Any) -> Change:
    def change(record: dict[str, Any]) -> None:
        if record["step"] >= step and record["kind"] == "train":
            record[key] = value

    return change


def without(*keys: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        for key in keys:
            record.pop(key, None)

    return change


def test_equal_runs_are_the_same_to_the_last_bit(runs: Runs) -> None:
    runs.write("a")
    runs.write("b")
    code, text = runs.text("--tolerance", "0")
    assert code == 0
    assert "20 steps in common (1 to 20): the same within 0" in text
    assert text.count("equal in every step") == 8  # four quantities of train and four of eval
    assert "config: the same" in text


@pytest.mark.parametrize("other", [None, 1.0])  # 1.0: recorded by version 0.1
def test_a_top_5_of_at_most_5_classes_is_not_compared(runs: Runs, other: float | None) -> None:
    def top5_is(value: float | None) -> Change:
        return lambda record: record.update({"top5": value} if record["kind"] == "eval" else {})

    runs.write("a", change=top5_is(None))
    runs.write("b", change=top5_is(other))
    code, text = runs.text("--tolerance", "0")
    assert code == 0
    assert "top1" in text
    assert "top5" not in text


@pytest.mark.parametrize(
    ("key", "value"), [("sample_ids", 7), ("learning_rate", 0.5), ("loss", 0.3), ("gradient_norm", 9.0)]
)
def test_the_first_step_that_differs_is_named_with_what_differs(runs: Runs, key: str, value: float) -> None:
    runs.write("a")
    runs.write("b", change=at(7, key, value))
    code, found = runs.data()
    assert code == 1
    first = found["train"]["first_difference"]
    assert first["step"] == 7
    assert [name for name, pair in first["quantities"].items() if pair["differs"]] == [key]
    assert first["quantities"][key]["b"] == value


def test_absolute_relative_and_largest_difference(runs: Runs) -> None:
    runs.write("a", change=at(1, "loss", 2.0))
    runs.write("b", change=lambda record: record.update(loss={3: 2.5, 9: 4.0}.get(record["step"], 2.0)))
    _, found = runs.data()
    first = found["train"]["first_difference"]
    assert (first["step"], first["quantities"]["loss"]["absolute"], first["quantities"]["loss"]["relative"]) == (
        3, 0.5, 0.2,
    )  # fmt: skip
    largest = found["train"]["largest"]["loss"]
    assert (largest["step"], largest["absolute"], largest["relative"]) == (9, 2.0, 0.5)
    assert found["train"]["largest"]["learning_rate"]["absolute"] == 0


def test_differences_within_the_tolerance_are_the_same_and_still_shown(runs: Runs) -> None:
    runs.write("a", change=lambda record: record.update(loss=1.0))
    runs.write("b", change=lambda record: record.update(loss=1.0 + 1e-5 if record["step"] == 5 else 1.0))
    assert runs.text("--tolerance", "1e-4")[0] == 0
    assert runs.text("--tolerance", "1e-6")[0] == 1
    _, found = runs.data("--tolerance", "1e-4")
    assert found["train"]["first_difference"] is None
    assert found["train"]["largest"]["loss"]["step"] == 5
    assert found["train"]["largest"]["loss"]["absolute"] == pytest.approx(1e-5)


def test_no_tolerance_lets_another_sample_pass(runs: Runs) -> None:
    runs.write("a", change=at(1, "sample_ids", 10**15))
    runs.write("b", change=at(1, "sample_ids", 10**15 + 1))
    code, text = runs.text("--tolerance", "0.5")
    assert code == 1
    assert "the runs used different images" in text
    assert "1000000000000001" in text


def test_quantities_that_older_runs_lack_are_named_and_the_others_compared(runs: Runs) -> None:
    runs.write("a", change=without("gradient_norm", "sample_ids"))
    runs.write("b", change=at(4, "loss", 9.0))
    code, found = runs.data()
    assert code == 1
    assert found["train"]["not_recorded"] == {"sample_ids": "A", "gradient_norm": "A"}
    assert found["train"]["first_difference"]["step"] == 4
    _, text = runs.text()
    assert "not recorded in A" in text
    assert "or other images: their ids were not recorded" in text


def test_a_loss_that_is_not_finite_differs_from_one_that_is(runs: Runs) -> None:
    runs.write("a", change=at(6, "loss", None))
    runs.write("b")
    code, text = runs.text()
    assert code == 1
    assert "not finite" in text
    runs.write("b", change=at(6, "loss", None))
    assert runs.text()[0] == 0


def test_only_common_steps_are_compared_with_a_warning_for_a_different_interval(runs: Runs) -> None:
    runs.write("a", steps=range(1, 21))
    runs.write("b", steps=range(5, 31, 5), config="schema: 1\nlog: {every_steps: 5}\n")
    code, text = runs.text()
    assert code == 0
    assert "log.every_steps is 1 in A and 5 in B" in text
    assert "4 steps in common (5 to 20)" in text
    assert "steps only in B  25, 30" in text
    assert "steps only in A  1 to 4, 6 to 9" in text


def test_a_single_common_step_is_named(runs: Runs) -> None:
    runs.write("a", steps=range(1, 5))
    runs.write("b", steps=range(4, 9))
    assert "1 step in common (step 4): " in runs.text()[1]


def test_runs_without_a_common_step_are_not_called_the_same(runs: Runs) -> None:
    runs.write("a", steps=range(1, 5))
    runs.write("b", steps=range(5, 9))
    code, text = runs.text()
    assert code == 1
    assert "nothing could be compared" in text


def test_steps_done_again_after_a_restart_count_once(runs: Runs) -> None:
    runs.write("a", steps=range(1, 5))
    run = runs.write("b", steps=range(1, 5))
    again = {"kind": "train", "step": 4, "learning_rate": 0.4, "loss": 0.5, "gradient_norm": 5.0, "sample_ids": 4000}
    torn = run.metrics.read_text().replace('"loss": 0.5, "gradient_norm": 5.0', '"loss": 9.0, "gradient_norm": 5.0')
    started = {"kind": "event", "step": 3, "event": "started", "detail": {}}
    run.metrics.write_text(torn + json.dumps(started) + "\n" + json.dumps(again) + "\n")
    assert runs.data()[1]["train"]["first_difference"] is None


def test_a_different_evaluation_is_a_difference(runs: Runs) -> None:
    runs.write("a")
    runs.write("b", change=lambda record: record.update(top1=0.6) if record["kind"] == "eval" else None)
    code, found = runs.data()
    assert code == 1
    assert found["train"]["first_difference"] is None
    assert found["eval"]["first_difference"]["quantities"]["top1"]["differs"]


def test_config_and_environment_are_shown_by_dotted_key_and_do_not_change_the_exit_code(runs: Runs) -> None:
    runs.write("a", config="schema: 1\nengine: {name: ddp}\n", environment={"time": "1", "packages": {"torch": "2.11"}})
    config = "schema: 1\nengine: {name: zero, stage: 1}\n"
    runs.write("b", config=config, environment={"time": "2", "packages": {"torch": "2.14"}, "host": "n1"})
    code, found = runs.data()
    assert code == 0
    assert found["config"] == {"engine.name": {"a": "ddp", "b": "zero"}, "engine.stage": {"b": 1}}
    assert found["environment"] == {"packages.torch": {"a": "2.11", "b": "2.14"}, "host": {"b": "n1"}}
    _, text = runs.text()
    assert '  engine.name   "ddp"     "zero"' in text.splitlines()
    assert "  engine.stage  (absent)  1" in text.splitlines()


def test_an_environment_that_was_never_written_is_not_recorded(runs: Runs) -> None:
    runs.write("a")
    runs.write("b", environment={"host": "n1"})
    code, text = runs.text()
    assert code == 0
    assert "environment: not recorded in A" in text


def test_attempts_are_listed_with_how_they_ended(runs: Runs) -> None:
    runs.write("a")
    run = runs.write("b")
    run.begin_attempt({"place": "ray", "workers": 4, "from_step": 0, "excluded": [], "num_micro_batches": None})
    _, text = runs.text()
    assert "  place ray, workers 4, from step 0  no end recorded" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("  A ", "  B "))]
    assert [(row[:2], "exit" in row) for row in rows] == [(["A", "1"], True), (["B", "1"], True), (["B", "2"], False)]


def test_columns_are_aligned(runs: Runs) -> None:
    runs.write("a")
    runs.write("b", change=at(7, "loss", 0.123456789))
    _, text = runs.text()
    rows = [line for line in text.splitlines() if "absolute" in line or line.startswith("    loss")]
    head = rows[0]
    loss = next(row for row in rows if row.lstrip().startswith("loss"))
    assert loss.index("0.123456789") == head.index("B")


def test_no_run_there_is_a_usage_error(runs: Runs, tmp_path: Path) -> None:
    runs.write("a")
    with pytest.raises(UsageError, match="there is no run here"):
        runs.text()


def test_runs_are_named_as_in_status(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.storage = tmp_path / "home" / "resnet_runs"
    runs.write("a")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a.yaml"
    config.write_text(
        f"schema: 1\nname: a\nstorage: {tmp_path}/home/resnet_runs\nduration: 20 steps\nbatch: {{size: 8}}\n"
        "model: {name: resnet20, num_classes: 10}\ndata: {root: /images}\nschedule: {peak_lr: 0.1}\n"
    )
    assert compare("a", str(config)) == 0
    assert f"A  {tmp_path}/home/resnet_runs/a" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"no run with this name in .*, STORAGE/b, or the run's config"):
        compare("a", "b")


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_config_or_an_environment_that_cannot_be_read_is_not_recorded(runs: Runs, name: str) -> None:
    runs.write("a", environment={"python": "3.11"})
    run = runs.write("b", environment={"python": "3.11"})
    (run.path / name).write_bytes(b"\xff\0{[")
    code, text = runs.text()
    assert code == 0
    assert f"{name.partition('.')[0]}: not recorded in B" in text


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_an_invalid_tolerance_is_refused(runs: Runs, tolerance: str) -> None:
    with pytest.raises(UsageError, match="a number from 0 up"):
        runs.text("--tolerance", tolerance)


def test_steps_that_were_not_logged_before_the_first_difference_are_named(runs: Runs) -> None:
    sparse = "schema: 1\nlog: {every_steps: 10}\n"
    runs.write("a", steps=range(10, 41, 10), config=sparse)
    runs.write("b", steps=range(10, 41, 10), config=sparse, change=at(20, "loss", 9.0))
    code, text = runs.text()
    assert code == 1
    assert "differ from step 20 on" in text
    assert "steps 11 to 19 were not logged by both (log.every_steps), and may differ already" in text


def test_without_a_common_step_the_logged_steps_are_shown(runs: Runs) -> None:
    runs.write("a", steps=range(10, 41, 10), config="schema: 1\nlog: {every_steps: 10}\n")
    runs.write("b", steps=range(7, 29, 7), config="schema: 1\nlog: {every_steps: 7}\n")
    code, text = runs.text()
    assert code == 1
    assert "A logged steps 10 to 40 by 10, B logged 7 to 28 by 7 (log.every_steps)" in text
    assert "train both with log.every_steps=1" in text


def test_a_finished_run_without_records_is_told_from_one_that_has_done_no_step(runs: Runs) -> None:
    for name in "ab":
        runs.write(name).metrics.unlink()
    assert "A and B logged no step: none is done yet, or fewer than log.every_steps" in runs.text()[1]
    RunDirectory(runs.storage, "a").mark_finished({"step": 20})
    text = runs.text()[1]
    assert "A: metrics.jsonl is missing or empty" in text
    assert "B logged no step: none is done yet" in text


def evaluated(top1: float) -> Change:
    return lambda record: record.update({"top1": top1} if record["kind"] == "eval" else {})


def test_two_runs_are_ranked_above_their_first_difference(runs: Runs) -> None:
    runs.write("a", change=evaluated(0.5))
    runs.write("b", change=evaluated(0.9))
    code, text = runs.text()
    assert code == 1
    assert text.index("1  b    90.00 %  86.4 to 92.7 %") < text.index("differ from step")
    assert "b has the highest top-1, by more than the sampling error of the val images" in text
    assert [Path(row["run"]).name for row in runs.data()[1]["ranking"]] == ["b", "a"]


def test_more_than_two_runs_are_ranked_with_the_keys_that_differ(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, top1, seed in (("a", 0.5, 0), ("b", 0.9, 1), ("c", 0.89, 2)):
        config = f"schema: 1\nname: {name}\nseed: {seed}\n"
        runs.write(name, change=evaluated(top1), config=config)
    folders = [str(runs.storage / name) for name in "abc"]
    assert compare(*folders) == 0
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [["1", "b"], ["2", "c"], ["3", "a"]]
    assert "the difference to c is within the sampling error" in text
    assert text.splitlines()[-2:] == ["        b  c  a", "  seed  1  2  0"]
    assert "first_difference" not in text
    assert compare(*folders, "--json") == 0
    assert [row["place"] for row in json.loads(capsys.readouterr().out)["ranking"]] == [1, 2, 3]
    assert compare(folders[0], folders[0]) == 0
    assert "has the highest top-1" not in capsys.readouterr().out


def test_one_run_alone_is_not_compared(runs: Runs) -> None:
    runs.write("a")
    with pytest.raises(UsageError, match="RUN"):
        compare(str(runs.storage / "a"))
