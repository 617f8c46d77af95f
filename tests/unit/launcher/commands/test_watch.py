"""`launcher watch` on a command line: what it prints without a terminal, and runs that are elsewhere."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watch_records import event, records

from launcher import cli
from launcher.commands import watch
from launcher.commands.target import Target
from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.submissions import JobStatus
from launcher.watch.snapshot import Snapshot, from_json
from resnet_dist.telemetry import json_lines

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(small_run: RunDirectory) -> RunDirectory:
    """A run that has made 20 steps."""
    small_run.end_attempt(small_run.begin_attempt({"workers": 2}), 75, "stopped on request", 20)
    lines = [json_lines.encode(record) for record in [event("started", 0, total_steps=100), *records(1, 20)]]
    small_run.metrics.write_bytes(b"".join(lines))
    return small_run


def test_without_a_terminal_everything_is_printed_once(run: RunDirectory, capsys: Capture) -> None:
    assert cli.main(["watch", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("small  stopped  ")
    for part in ("20%  step 20/100", "training loss", "compute     75.0%", "1 attempt", "workers", "log of rank 0"):
        assert part in printed


@pytest.mark.parametrize("name", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_move_its_cursor_prints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", io.StringIO())
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert watch._is_terminal()
    monkeypatch.setenv("TERM", name)
    assert not watch._is_terminal()


def test_an_encoding_without_braille_gets_other_letters(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["watch", str(run.path), "--once"]) == 0
    sys.stdout.flush()
    printed = raw.getvalue().decode("ascii")
    assert "+----" in printed
    assert "***" in printed
    assert "?" not in printed.split("log of rank")[0]


def test_json_is_a_snapshot_in_a_line(run: RunDirectory, capsys: Capture) -> None:
    assert cli.main(["watch", str(run.path), "--json", "--every", "0.01", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    found = from_json(lines[0])
    assert found is not None
    assert (found.state, found.step, found.train["step"][-1]) == ("stopped", 20, 20)


def test_a_config_whose_run_has_not_begun(write_config: Write, capsys: Capture) -> None:
    assert cli.main(["watch", str(write_config())]) == 0
    assert "no attempt has begun" in capsys.readouterr().out
    assert cli.main(["status", str(write_config())]) == 64


def test_a_view_does_not_wait_for_a_scheduler(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, answered = threading.Event(), threading.Event()

    def job_status(_: Target) -> JobStatus:
        answer.wait(10)
        return JobStatus("pending", "Priority")

    monkeypatch.setattr(Target, "job_status", job_status)
    job = watch._Job(Target(run, True, submissions.now("slurm", "7")), None, waits=False)
    for _ in range(2):
        first = job()
        assert first is not None
        assert first.state == "unreachable"
    answer.set()
    while job() == first:
        answered.wait(0.01)
    assert job() == JobStatus("pending", "Priority")
    assert watch._Job(Target(run, True, submissions.now("slurm", "7")), None, waits=True)() == job()


def test_two_runs_and_overrides_of_their_configs(run: RunDirectory, write_config: Write, capsys: Capture) -> None:
    assert cli.main(["watch", str(run.path), "--once", str(write_config()), "name=other"]) == 0
    printed = capsys.readouterr().out
    assert "A ━━  small  stopped" in printed
    assert "B ╍╍  other  not started" in printed


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a", "b", "c"], "3 runs are given. Allowed: one, or two"),
        (["name=x"], "0 runs are given"),
        (["/nowhere"], "there is no run here"),
        (["a", "--every", "5"], "--every 5: allowed: a number of seconds above 0, with --json"),
        (["a", "--json", "--every", "0"], "--every 0: allowed"),
        (["a", "--json", "--count", "3"], "--count 3: allowed: a whole number above 0, with --every"),
        (["a", "--json", "--every", "1", "--count", "-3"], "--count -3: allowed"),
        ([], "the following arguments are required: RUN|CONFIG\n"),
    ],
    ids=[
        "three runs",
        "no run",
        "nothing there",
        "every without json",
        "every zero",
        "count without every",
        "negative count",
        "nothing given",
    ],
)
def test_wrong_usage(arguments: list[str], part: str, capsys: Capture) -> None:
    assert cli.main(["watch", *arguments]) == 64
    assert part in capsys.readouterr().err


def test_runs_of_the_same_name_have_different_titles(run: RunDirectory, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(run.path, tmp_path / "other" / "small")
    assert cli.main(["watch", str(run.path), str(tmp_path / "other" / "small"), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "A ━━  runs/small  stopped" in printed
    assert "B ╍╍  other/small  stopped" in printed


def test_numbers_too_large_to_be_drawn_are_left_out(run: RunDirectory, capsys: Capture) -> None:
    huge = [{**record, "loss": 1e308, "step_time_s": 1e308} for record in records(21, 60)]
    stalled = event("checkpoint", 60, stalled_s=1e308)
    run.metrics.write_bytes(run.metrics.read_bytes() + b"".join(map(json_lines.encode, [*huge, stalled, stalled])))
    assert cli.main(["watch", str(run.path), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "compute     75.0%" in printed


def test_a_run_on_a_volume_elsewhere_comes_as_json_from_a_reader(
    tmp_path: Path, write_config: Write, places: Any, capsys: Capture
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: kubernetes\nimage: registry.example.com/launcher:1\n")
    file = write_config('cluster: {walltime: "01:00:00"}')
    columns = {"step": [1, 2], "epoch": [0.1, 0.2], "time_s": [1, 2], "loss": [3.0, 2.5], "learning_rate": [1, 1]}
    inside = Snapshot(
        run="/runs/small", name="small", state="running", step=2, train={**columns, "images_per_s": [5, 5]}
    )
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Running"}})
    places.says("reader.log", f"Pod is starting\n{inside.to_json()}\n")
    assert cli.main(["watch", str(file), "--profile", str(site)]) == 0
    printed = capsys.readouterr().out
    assert "small  running  step 2" in printed
    assert "kubernetes job small" in printed
    reader = places.read("reader")
    for word in ("watch", "--json", "--every", "--count", "--place-says", "running"):
        assert word in reader
    assert any(call.startswith("kubectl --namespace=default delete") for call in places.calls())
    # A waiting one has nothing to read yet, and a launcher without `watch` says so.
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Initializing"}})
    (places.folder / "reader").unlink()
    assert cli.main(["watch", str(file), "--profile", str(site)]) == 0
    assert "small  pending" in capsys.readouterr().out
    assert not (places.folder / "reader").exists()
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Running"}})
    places.says("reader.log", "invalid choice: 'watch'\n")
    assert cli.main(["watch", str(file), "--profile", str(site)]) == 0
    assert "the cluster printed: invalid choice: 'watch'" in capsys.readouterr().out
    assert cli.main(["watch", str(file), "--profile", str(site), "--json"]) == 64


def test_a_run_of_a_ray_cluster_is_read_by_a_job(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from launcher.ray_backend import jobs

    asked: list[str] = []

    def lines(arguments: list[str], address: str) -> Iterator[str]:
        asked.extend([address, *arguments])
        yield "Running entrypoint for job\n"
        yield Snapshot(run="/runs/small", name="small", state="running", step=7).to_json()

    monkeypatch.setattr(jobs, "lines", lines)
    found = Target(run, is_here=False, submission=None, address="http://head:8265")
    given = cli.parser_of().parse_args(["watch", "x", "--place-says", "running"])
    source = watch._source(found, "small", given, waits=True)
    assert watch._first(source, rank=3).step == 7
    assert asked[:4] == ["http://head:8265", "watch", str(run.path), "--json"]
    assert asked[-2:] == ["--place-says", "running"]


def test_watch_needs_neither_torch_nor_ray_nor_textual_to_print(run: RunDirectory) -> None:
    code = "import sys; from launcher.commands import watch, target; from launcher import arguments; import argparse\n"
    code += "p = arguments.Parser(); watch.add_parser(p.add_subparsers(parser_class=arguments.Parser))\n"
    code += f"g = p.parse_args(['watch', {str(run.path)!r}]); g.run(g); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for module in ("torch", "ray", "numpy", "pandas", "textual"):
        assert f"'{module}'" not in done.stdout
