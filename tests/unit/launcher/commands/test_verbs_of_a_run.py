"""`launcher status`, `logs`, `cancel`, `list` and `report`: the same on every scheduler, from the run directory."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.commands import logs
from launcher.run import lease, submissions
from launcher.run.directory import RunDirectory

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def running_process(small_run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run's lease and ends with 75 when it is asked to save."""
    code = f"""
import signal, sys
from pathlib import Path
from launcher.run import lease
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
held = lease.acquire(Path({str(small_run.lease)!r}))
print("held", flush=True)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def held_elsewhere(run: RunDirectory) -> None:
    run.lease.mkdir()
    with lease.acquire(run.path / "other"):
        holder = lease.holder(run.path / "other")
    assert holder is not None
    content = {**dataclasses.asdict(holder), "host": "n7"}
    (run.lease / "00000001.json").write_text(json.dumps(content))


def status(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = cli.main(["status", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_status_takes_a_run_or_its_config(
    small_run: RunDirectory, write_config: Write, capsys: Capture, places: Any
) -> None:
    small_run.end_attempt(small_run.begin_attempt({"workers": 2}), 75, "stopped on request", 40)
    for target in (str(small_run.path), str(write_config())):
        code, found = status(capsys, target)
        assert code == 0
        assert {key: found[key] for key in ("state", "step", "total_steps", "exit_code", "attempt")} == {
            "state": "stopped", "step": 40, "total_steps": 100, "exit_code": 75, "attempt": 1,
        }  # fmt: skip
    assert cli.main(["status", str(small_run.path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{small_run.path}: stopped, step 40 of 100 (40%)",
        "  exit code  75",
        "  because    stopped on request",
        "  attempt    1 on 2 workers",
    ]


def test_a_waiting_run_shows_the_reason_of_its_scheduler(small_run: RunDirectory, capsys: Capture, places: Any) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    places.says("jobs/7", "PENDING|Priority\n")
    code, found = status(capsys, str(small_run.path))
    assert (code, found["state"], found["job"]) == (0, "pending", "slurm job 7")
    assert found["reason"] == "jobs with a higher priority come first (Priority)"


def test_an_unreachable_scheduler_is_not_a_failure_and_has_an_exit_code(
    small_run: RunDirectory, capsys: Capture, places: Any
) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    places.says("down", "")
    code, found = status(capsys, str(small_run.path))
    assert (code, found["state"]) == (69, "unknown")
    assert "Unable to contact slurm controller" in found["reason"]


def test_no_run_is_a_usage_error_with_what_is_allowed(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["status", str(tmp_path)]) == 64
    assert (
        "there is no run here. Allowed: a run directory (launcher list STORAGE shows them)" in capsys.readouterr().err
    )


def test_a_run_on_a_volume_elsewhere_is_read_by_a_reader(
    tmp_path: Path, write_config: Write, places: Any, capsys: Capture
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: kubernetes\nimage: registry.example.com/launcher:1\n")
    file = write_config('cluster: {walltime: "01:00:00"}')
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Running"}})
    inside = {"run": "/runs/small", "state": "running", "step": 12, "loss": 2.5}
    places.says("reader.log", json.dumps(inside))
    code, found = status(capsys, str(file), "--profile", str(site))
    assert (code, found["state"], found["step"], found["job"]) == (0, "running", 12, "kubernetes job small")
    assert '"--place-says"' in places.read("reader") or "--place-says" in places.read("reader")
    # A waiting one has nothing to read yet: no reader is started.
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Initializing"}})
    (places.folder / "reader").unlink()
    code, found = status(capsys, str(file), "--profile", str(site))
    assert found["state"] == "pending"
    assert not (places.folder / "reader").exists()


def test_a_report_of_a_run_on_a_volume_elsewhere_comes_through_a_reader(
    tmp_path: Path, write_config: Write, places: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: kubernetes\nimage: registry.example.com/launcher:1\n")
    file = write_config('cluster: {walltime: "01:00:00"}')
    places.says("reader.log", "goodput: 97.0%\n")
    assert cli.main(["report", str(file), "--profile", str(site)]) == 0
    assert "goodput: 97.0%" in capfd.readouterr().out
    made = places.read("reader")
    assert "report" in made
    assert str(tmp_path / "runs" / "small") in made
    assert cli.main(["report", str(file)]) == 64  # without a profile there is no reader


def test_a_name_is_searched_in_the_usual_folders(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, places: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status", "small"]) == 64
    error = capsys.readouterr().err
    assert f"no run with this name in {tmp_path}, {tmp_path}/home/resnet_runs" in error
    assert "a run directory, STORAGE/small" in error
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out.startswith(f"no runs in {tmp_path} and {tmp_path}/home/resnet_runs and ")
    small_run.end_attempt(small_run.begin_attempt(), 75, "stopped on request", 40)
    small_run.storage.rename(tmp_path / "home" / "resnet_runs")
    assert cli.main(["status", "small"]) == 0
    assert "resnet_runs/small: " in capsys.readouterr().out
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"runs in {tmp_path}/home/resnet_runs"
    assert lines[2].startswith("small ")


def test_a_folder_of_runs_is_refused_and_its_runs_are_named(small_run: RunDirectory, capsys: Capture) -> None:
    assert cli.main(["status", str(small_run.storage)]) == 64
    error = capsys.readouterr().err
    assert f"{small_run.storage}: this folder contains runs. Allowed: the path of one: small" in error


def test_the_state_that_a_reader_is_given_counts(small_run: RunDirectory, capsys: Capture) -> None:
    submissions.record(small_run, submissions.now("kubernetes", "small", {"namespace": "default"}))
    small_run.begin_attempt()
    held_elsewhere(small_run)
    file = small_run.lease / "00000001.json"
    os.utime(file, (1.0, 1.0))
    for word, state in (("gone", "failed"), ("running", "unknown")):
        _, found = status(capsys, str(small_run.path), "--place-says", word)
        assert found["state"] == state


def test_status_needs_no_torch_and_no_ray() -> None:
    code = "import sys; from launcher import cli; cli.main(['status', '/nowhere']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout
    for module in ("torch", "ray", "numpy", "torchvision"):
        assert f"'{module}'" not in loaded


def test_logs_are_the_newest_attempts_of_rank_0(small_run: RunDirectory, capsys: Capture) -> None:
    for number, rank, text in ((1, 0, "first"), (2, 0, "second"), (2, 1, "other")):
        if len(small_run.attempts()) < number:
            assert small_run.begin_attempt() == number
        small_run.logs(number).log(rank).write_text(f"{text}\nno end of line")
    shown = {(): "second", ("--rank", "1"): "other", ("--attempt", "1"): "first"}
    for options, text in shown.items():
        assert cli.main(["logs", str(small_run.path), *options]) == 0
        assert capsys.readouterr().out == f"{text}\nno end of line"


def test_a_missing_rank_or_attempt_is_reported_with_the_existing_ones(small_run: RunDirectory, capsys: Capture) -> None:
    small_run.begin_attempt()
    assert cli.main(["logs", str(small_run.path)]) == 64
    assert "its workers have not started" in capsys.readouterr().err
    for rank in range(2):
        small_run.logs(1).log(rank).write_text("")
    assert cli.main(["logs", str(small_run.path), "--rank", "7"]) == 64
    assert "attempt 1 has no log of rank 7. Allowed: 0 to 1" in capsys.readouterr().err
    assert cli.main(["logs", str(small_run.path), "--attempt", "3"]) == 64
    assert "there is no attempt 3. Allowed: 1" in capsys.readouterr().err


def test_before_the_first_attempt_logs_show_the_reason_and_the_output_of_the_job(
    small_run: RunDirectory, capsys: Capture, places: Any
) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    places.says("jobs/7", "RUNNING|None\n")
    (small_run.path / "logs" / "slurm-7.out").write_text("12:00:00 job 7, restart 0\n")
    assert cli.main(["logs", str(small_run.path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "12:00:00 job 7, restart 0\n"
    assert "no attempt yet: starting, slurm job 7 has begun" in captured.err


def test_following_continues_with_the_next_attempt_and_ends_with_the_run(small_run: RunDirectory) -> None:
    small_run.begin_attempt()
    small_run.logs(1).log(0).write_text("one\n")
    written: list[str] = []
    live = threading.Event()
    live.set()
    reader = threading.Thread(
        target=logs.follow, args=(small_run, 0, None, live.is_set, written.append), kwargs={"poll_s": 0.01}
    )
    reader.start()
    _until(lambda: "one\n" in written)
    with small_run.logs(1).log(0).open("a") as file:
        file.write("two\nhalf a ")
    _until(lambda: "two\n" in written)
    with small_run.logs(1).log(0).open("a") as file:
        file.write("line\n")
    _until(lambda: "half a line\n" in written)
    small_run.begin_attempt()
    small_run.logs(2).log(0).write_text("three\n")
    _until(lambda: "three\n" in written)
    with small_run.logs(2).log(0).open("a") as file:
        file.write("the end")
    live.clear()
    reader.join(30)
    assert not reader.is_alive()
    assert "".join(written) == "one\ntwo\nhalf a line\n--- attempt 2\nthree\nthe end"


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cancel_asks_a_process_of_this_machine_to_save(
    small_run: RunDirectory, running_process: subprocess.Popen[str], capsys: Capture
) -> None:
    assert cli.main(["cancel", str(small_run.path)]) == 0
    assert f"process {running_process.pid} saves and stops" in capsys.readouterr().out
    assert running_process.wait(30) == 75


def test_cancel_now_kills_it(small_run: RunDirectory, running_process: subprocess.Popen[str]) -> None:
    assert cli.main(["cancel", str(small_run.path), "--now"]) == 0
    assert running_process.wait(30) == -signal.SIGKILL


def test_cancel_reaches_a_process_on_another_machine_through_the_storage(
    small_run: RunDirectory, capsys: Capture
) -> None:
    small_run.begin_attempt()
    held_elsewhere(small_run)
    assert cli.main(["cancel", str(small_run.path), "--save"]) == 0
    assert small_run.logs(1).stop_request.exists()
    assert cli.main(["cancel", str(small_run.path), "--now"]) == 64
    assert "on n7" in capsys.readouterr().err


def test_cancel_stops_a_submitted_run_through_its_scheduler(
    small_run: RunDirectory, places: Any, capsys: Capture
) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    places.says("jobs/7", "RUNNING|None\n")
    assert cli.main(["cancel", str(small_run.path)]) == 0
    assert places.calls()[-1] == "scancel --signal=USR2 --batch -- 7"
    assert capsys.readouterr().out == "slurm job 7 saves and exits; it is not requeued\n"


def test_cancel_of_a_run_that_has_ended_does_nothing(small_run: RunDirectory, places: Any, capsys: Capture) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    assert cli.main(["cancel", str(small_run.path)]) == 0
    assert "nothing to " in capsys.readouterr().out
    assert cli.main(["cancel", str(small_run.path), "--save", "--now"]) == 64


def test_list_shows_every_run_and_asks_only_about_live_ones(
    small_run: RunDirectory, places: Any, capsys: Capture, train_record: Callable[..., str]
) -> None:
    for name, job in (("a-done", "1"), ("b-waits", "2"), ("c-waits", "3")):
        run = RunDirectory(small_run.storage, name)
        run.create()
        run.write_config(small_run.config.read_text())
        submissions.record(run, dataclasses.replace(submissions.now("slurm", job), time="2020-01-01T00:00:00+00:00"))
        if name == "a-done":
            run.end_attempt(run.begin_attempt(), 0, "finished", 100)
            run.mark_finished({"step": 100, "top1": 0.755, "duration": "100 steps"})
        else:
            places.says(f"jobs/{job}", "PENDING|Resources\n")
    (small_run.storage / "no-run").mkdir()
    assert cli.main(["list", str(small_run.storage), "--json"]) == 0
    found = {Path(one["run"]).name: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert found == {"a-done": "finished", "b-waits": "pending", "c-waits": "pending", "small": "unknown"}
    asked = [call for call in places.calls() if call.startswith("squeue")]
    assert [call.split("--jobs=")[1].split()[0] for call in asked] == ["2", "3"]
    assert cli.main(["list", str(small_run.storage)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["RUN", "STATE", "STEP", "LOSS", "TOP-1", "JOB"]
    assert lines[1].split() == ["a-done", "finished", "100", "of", "100", "75.50%", "slurm", "job", "1"]


def test_list_asks_an_unreachable_scheduler_once(small_run: RunDirectory, places: Any) -> None:
    for name in ("a", "b"):
        submissions.record(RunDirectory(small_run.storage, name), submissions.now("slurm", "7"))
    places.says("down", "")
    assert cli.main(["list", str(small_run.storage)]) == 0
    assert len(places.calls()) == 1


def test_list_of_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    assert cli.main(["list", str(tmp_path / "nowhere")]) == 64


def test_list_names_the_runs_that_ended_before_their_first_step_below_the_others(
    small_run: RunDirectory, capsys: Capture
) -> None:
    for name, step in (("trained", 40), ("refused", None)):
        run = RunDirectory(small_run.storage, name)
        run.create()
        run.end_attempt(run.begin_attempt(), 78, f"{run.config}: ConfigError: wrong", step)
        run.mark_fatal(78, "ConfigError: wrong")
    assert cli.main(["list", str(small_run.storage)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["RUN", "STATE", "STEP"],
        ["trained", "failed", "40"],
        ["2", "runs", "ended"],
        ["refused", "ConfigError:", "wrong"],
        ["small", "no", "attempt"],
    ]
    assert cli.main(["list", str(small_run.storage), "--json"]) == 0
    assert [Path(one["run"]).name for one in json.loads(capsys.readouterr().out)] == ["refused", "small", "trained"]


def test_a_path_is_printed_once(small_run: RunDirectory, capsys: Capture) -> None:
    number = small_run.begin_attempt()
    small_run.incident(number).mkdir(parents=True)
    small_run.end_attempt(number, 76, f"StorageError: {small_run.metrics}: the disk is full", 40, {"steps_redone": 2})
    small_run.mark_fatal(76, f"StorageError: {small_run.metrics}: the disk is full")
    for verb in ("status", "report", "list"):
        assert cli.main([verb, str(small_run.storage if verb == "list" else small_run.path)]) == 0
        out = capsys.readouterr().out
        assert out.count(str(small_run.path)) == (verb != "list")
        assert "metrics.jsonl: the disk is full" in out
        assert ("incidents/attempt-1/summary.txt" in out) == (verb != "list")
    assert cli.main(["compare", str(small_run.path), str(small_run.path)]) == 1
    assert capsys.readouterr().out.count(str(small_run.path)) == 2  # as A and as B


def test_cancel_signals_nothing_in_a_directory_that_everybody_may_write_to(
    small_run: RunDirectory, running_process: subprocess.Popen[str], capsys: Capture
) -> None:
    small_run.path.chmod(0o777)
    assert cli.main(["cancel", str(small_run.path), "--now"]) == 64
    assert f"everybody may write to {small_run.path}. Allowed: after `chmod o-w`" in capsys.readouterr().err
    assert running_process.poll() is None
    assert cli.main(["status", str(small_run.path)]) == 0


def test_no_scheduler_is_asked_because_of_a_record_that_anybody_may_have_written(
    small_run: RunDirectory, places: Any, capsys: Capture
) -> None:
    submissions.record(small_run, submissions.now("slurm", "7"))
    small_run.submissions.chmod(0o666)
    _, found = status(capsys, str(small_run.path))
    assert (found["state"], found["job"]) == ("unknown", "slurm job 7")
    assert f"everybody may write to {small_run.submissions}" in found["reason"]
    assert cli.main(["list", str(small_run.storage)]) == 0
    assert cli.main(["cancel", str(small_run.path)]) == 64
    assert places.calls() == []


def test_an_option_in_place_of_an_id_reaches_no_program(small_run: RunDirectory, places: Any, capsys: Capture) -> None:
    for record in (
        {"place": "kubernetes", "id": "a", "details": {"namespace": "--kubeconfig=/tmp/evil"}},
        {"place": "slurm", "id": "--me"},
    ):
        with small_run.submissions.open("a") as file:
            file.write(json.dumps({**record, "time": "2026-01-01T00:00:00+00:00", "host": "h"}) + "\n")
    for verb in ("status", "cancel"):
        cli.main([verb, str(small_run.path)])
    assert cli.main(["list", str(small_run.storage)]) == 0
    assert places.calls() == []


def test_logs_of_any_size_are_printed_whole(
    small_run: RunDirectory, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CHUNK_BYTES", 8)
    small_run.begin_attempt()
    text = "a\nlonger than a chunk\n\nend without a newline"
    small_run.logs(1).log(0).write_text(text)
    (small_run.logs(1).path / "rank-x.log").write_text("")
    assert cli.main(["logs", str(small_run.path)]) == 0
    assert capsys.readouterr().out == text
    assert cli.main(["logs", str(small_run.path), "--rank", "7"]) == 64
    assert "Allowed: 0" in capsys.readouterr().err
