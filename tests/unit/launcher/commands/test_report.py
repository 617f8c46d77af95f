"""`launcher report`: one run or several, as text, as JSON and as a page; also of runs that are odd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_runs import CONFIG, records_of, write_run

from launcher import cli
from launcher.run import lease
from launcher.run.directory import RunDirectory

Capture = pytest.CaptureFixture[str]
OLD_RUNS = Path(__file__).parents[3] / "fixtures" / "run-0.1" / "storage"


def report(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["report", *arguments]) == 0
    return capsys.readouterr().out


def described(capsys: Capture, *runs: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report(capsys, *(str(run.path) for run in runs), "--json"))
    return found


def test_the_result_comes_first(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path)
    lines = report(capsys, str(run.path)).splitlines()
    assert lines[0] == f"run {run.path}: finished, 1 attempt"
    assert lines[1].split(maxsplit=1) == ["top-1", "90.00 % (86.4 to 92.7 %: 95 %), loss 0.15"]
    assert lines[2].strip().startswith("355 val images at 32 px, central crop 1, weights of the step")


def test_several_runs_are_ranked_before_each_is_told(tmp_path: Path, capsys: Capture) -> None:
    runs = [write_run(tmp_path, name, records_of(top1=top1)) for name, top1 in (("a", 0.5), ("b", 0.9))]
    text = report(capsys, *(str(run.path) for run in runs))
    assert text.splitlines()[1].startswith("1  b    90.00 %")
    assert text.index("b has the highest top-1") < text.index(f"run {runs[0].path}: finished")
    found = described(capsys, *runs, runs[0])
    assert [Path(one["run"]).name for one in found["ranking"]] == ["b", "a"]
    assert [one["name"] for one in found["runs"]] == ["a", "b"]


def test_json_has_the_facts_of_the_page(tmp_path: Path, capsys: Capture) -> None:
    [found] = described(capsys, write_run(tmp_path))["runs"]
    assert (found["state"], found["step"], found["result"]["top1"]) == ("finished", 20, 0.9)
    assert found["goodput"]["useful_worker_s"] == pytest.approx(2 * (20 * 0.5 + 4))
    assert found["trained"]["optimizer"] == "sgd, Nesterov, momentum 0.9, weight decay 0.0005"
    assert found["config"]["batch"] == {"size": 64}
    assert found["reference_points"] is None
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["finished"]


def test_a_page_is_written_where_it_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    run, file = write_run(tmp_path), tmp_path / "report.html"
    assert report(capsys, str(run.path), "--html", str(file)).startswith(f"{file} (")
    assert file.read_text().startswith("<!doctype html>")
    for wrong in (tmp_path, tmp_path / "nowhere" / "report.html"):
        assert cli.main(["report", str(run.path), "--html", str(wrong)]) == 64
        assert "Allowed: a file to write, in a folder that exists" in capsys.readouterr().err


def test_json_is_alone_on_standard_output(tmp_path: Path, capsys: Capture) -> None:
    run, file = write_run(tmp_path), tmp_path / "report.html"
    assert cli.main(["report", str(run.path), "--json", "--html", str(file)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["runs"][0]["name"] == "run"
    assert printed.err.startswith(f"{file} (")


def test_a_checkpoint_in_place_of_a_run_names_the_run(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path)
    folder = run.checkpoints / "step-00000020"
    folder.mkdir()
    assert cli.main(["report", str(folder)]) == 64
    assert f"this is a checkpoint of a run. Allowed: the run directory, {run.path}" in capsys.readouterr().err
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xbb")
    for file in (run.metrics, run.finished_file, weights):
        assert cli.main(["report", str(file)]) == 64
        assert f"this is a file of a run. Allowed: the run directory, {run.path}" in capsys.readouterr().err


def test_a_file_that_is_no_config_is_told_as_such(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xbb")
    for words in (["report", str(file)], ["watch", str(file)], ["compare", str(file), str(file)]):
        assert cli.main(words) == 64
        said = f"{file}: is not a config. Allowed: a run directory, or a config (.yaml, .yml)"
        assert said in capsys.readouterr().err


def test_a_run_that_was_stopped_says_so_once(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path, finish=False)
    run.end_attempt(1, 75, "stopped on request", 20)
    assert "warning: not finished (stopped on request): these results are preliminary" in report(capsys, str(run.path))


@pytest.mark.parametrize(
    ("duration", "text"),
    [("300 steps", "300 steps; done: 20 (2.00 epochs)"), ("40 epochs", "40 epochs; done: 20 steps (2.00 epochs)")],
)
def test_the_duration_names_what_is_done_of_it(duration: str, text: str, tmp_path: Path, capsys: Capture) -> None:
    config = CONFIG.replace("12 epochs", duration)
    lines = report(capsys, str(write_run(tmp_path, config=config, finish=False).path)).splitlines()
    assert f"  {'duration':<14} {text}" in lines


@pytest.mark.parametrize("name", ["whole", "stopped"])
def test_runs_of_version_0_1_are_read(name: str, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(OLD_RUNS / name, tmp_path / name)
    file = tmp_path / "page.html"
    assert "attempt 1 started" in report(capsys, str(tmp_path / name))
    report(capsys, str(tmp_path / name), "--html", str(file))
    assert "Top-1 accuracy" in file.read_text()


def test_a_run_without_metrics_config_and_environment_is_read(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path)
    for file in (run.metrics, run.config, run.environment):
        file.unlink()
    text = report(capsys, str(run.path), "--html", str(tmp_path / "page.html")) + report(capsys, str(run.path))
    assert "warning: metrics.jsonl is missing or empty: there are no curves" in text
    assert "config.yaml and environment.json are missing or cannot be read: what they record is not shown" in text
    assert "there are no curves" in (tmp_path / "page.html").read_text()


def test_a_run_that_is_being_written_is_read(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path, finish=False)
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    with lease.acquire(run.lease):
        found = described(capsys, run)["runs"][0]
        text = report(capsys, str(run.path))
    assert found["state"] in ("starting", "running")
    assert found["result"]["top1"] == 0.9
    assert f"not finished ({found['state']}): these results are preliminary" in text
    assert "it is running" in text


def test_a_run_that_failed_before_its_first_step_says_why(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path, records=[], finish=False)
    run.end_attempt(1, 65, "DataError: a.jpg is broken", 0)
    run.mark_fatal(65, "DataError: a.jpg is broken")
    found = described(capsys, run)["runs"][0]
    assert (found["state"], found["result"]) == ("failed", None)
    assert "failed: DataError: a.jpg is broken" in found["warnings"]


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    call = f"cli.main(['report', {str(run.path)!r}, '--html', {str(tmp_path / 'page.html')!r}])"
    code = f"import sys; from launcher import cli; {call}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for module in ("torch", "ray", "matplotlib"):
        assert f"'{module}'" not in loaded
