"""Whatever is in the files of a run: the verbs that read it end with a message, and no other run is disturbed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher import cli
from launcher.run import heartbeats, lease, submissions
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat

VERBS: tuple[tuple[str, ...], ...] = (
    ("status", "RUN"), ("status", "RUN", "--json"), ("list", "STORAGE"), ("list", "STORAGE", "--json"), ("logs", "RUN"),
    ("report", "RUN"), ("compare", "RUN", "OTHER"), ("compare", "OTHER", "RUN", "--json"),
)  # fmt: skip
FILES = ("attempts.jsonl", "metrics.jsonl", "submissions.jsonl", "FATAL", "FINISHED", "config.yaml", "environment.json",
         "skips.json", "lease/00000001.json", "logs/attempt-1/rank-0.log", "logs/attempt-1/heartbeat/rank-0",
         "checkpoints/step-00000010/manifest.json", "checkpoints/step-00000010/state.json")  # fmt: skip


@pytest.fixture
def pair(small_run: RunDirectory, places: Any) -> tuple[RunDirectory, RunDirectory]:
    """A run with every kind of file, and a finished one beside it."""
    for name in ("small", "other"):
        run = RunDirectory(small_run.storage, name)
        run.create()
        run.write_config(small_run.config.read_text())
        run.write_environment({"python": "3.11"})
        submissions.record(run, submissions.now("slurm", "7"))
        with lease.acquire(run.lease):
            run.begin_attempt({"workers": 1, "from_step": 0})
        logs = run.logs(1)
        logs.heartbeats.mkdir()
        heartbeats.write(logs, Heartbeat(rank=0, host="n1", pid=9, tick=1, phase="step", step=11, age_s=0.0))
        logs.log(0).write_text("a line\n")
        numbers = {"epoch": 0.08, "loss": 2.5, "step_time_s": 0.1, "images_per_s": 80.0}
        records = [
            {"kind": "event", "step": 0, "event": "started", "detail": {"total_steps": 100}},
            {"kind": "train", "step": 10, **numbers},
        ]
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        (run.checkpoints / "step-00000010").mkdir()
        for file in ("manifest.json", "state.json"):
            (run.checkpoints / "step-00000010" / file).write_text("{}")
        run.end_attempt(
            1, 76, "why", 11, {"steps_redone": 1, "seconds_lost": 2.0, "checkpoint_step": 10, "decision": "no"}
        )
    other = RunDirectory(small_run.storage, "other")
    other.mark_finished({"step": 100, "top1": 0.5, "duration": "100 steps"})
    RunDirectory(small_run.storage, "small").mark_fatal(76, "why")
    return RunDirectory(small_run.storage, "small"), other


def outputs(run: RunDirectory, other: RunDirectory) -> dict[tuple[str, ...], str]:
    """What each verb prints; asserts that each ends with an exit code of its own and no traceback."""
    names = {"RUN": str(run.path), "OTHER": str(other.path), "STORAGE": str(run.storage)}
    found: dict[tuple[str, ...], str] = {}
    for verb in VERBS:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main([names.get(word, word) for word in verb])
        assert "Traceback" not in error.getvalue(), error.getvalue()
        assert code in (0, 1, 64, 69, 76, 78), (verb, code, error.getvalue())
        out.getvalue().encode()  # a terminal can show it
        found[verb] = out.getvalue()
    listed = {Path(one["run"]).name: one for one in json.loads(found["list", "STORAGE", "--json"])}
    assert {"small", "other"} >= listed.keys() >= {"other"}
    assert (listed["other"]["state"], listed["other"]["step"], listed["other"]["top1"]) == ("finished", 100, 0.5)
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["started", "ended", "train", "eval", "event", "slurm"])
    | st.sampled_from(["2026-01-01T00:00:00+00:00", 1, 10, 5e-324]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = (
    "event", "attempt", "time", "exit_code", "cause", "last_step", "facts", "kind", "step", "epoch", "loss", "detail",
    "place", "id", "details", "host", "pid", "rank", "phase", "age_s", "top1", "message", "duration", "format", "files",
    "images_per_s", "step_time_s", "sample_ids", "process_start", "boot_id", "seed", "batch", "data",
)  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of the content of a file: other bytes, a torn line, or a key with another value or without one."""
    kind = draw(st.sampled_from(["bytes", "torn", "value", "without", "object"]))
    content, at, key, value = draw(st.binary(max_size=60)), draw(st.integers(0, 400)), "", None
    if kind in ("value", "without", "object"):
        key, value = draw(st.sampled_from(KEYS)), draw(json_values)
    objects = draw(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6))

    def change(before: bytes) -> bytes:
        if kind == "bytes":
            return content
        if kind == "torn":
            return before[:at] + content
        if kind == "object":
            return before + json.dumps(objects).encode() + b"\n"
        lines = []
        for line in before.splitlines() if b"\n{" in before or before.count(b"\n") < 2 else [before]:
            try:
                record = json.loads(line)
                record.pop(key, None) if kind == "without" else record.update({key: value})
                lines.append(json.dumps(record).encode())
            except (ValueError, AttributeError):
                lines.append(line)
        return b"\n".join(lines) + b"\n"

    return change


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FILES), damage(), min_size=1, max_size=3))
def test_no_damage_to_the_files_of_a_run_gives_a_traceback_or_disturbs_another_run(
    pair: tuple[RunDirectory, RunDirectory], changes: dict[str, Callable[[bytes], bytes]]
) -> None:
    run, other = pair
    before = {name: (run.path / name).read_bytes() if (run.path / name).exists() else b"" for name in FILES}
    for name, change in changes.items():
        (run.path / name).write_bytes(change(before[name]))
    try:
        outputs(run, other)
    finally:
        for name, content in before.items():
            (run.path / name).write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "lease", "logs", "checkpoints", "logs/attempt-1/heartbeat"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling", "endless", "missing", "unreadable"])
def test_special_files_in_place_of_those_of_a_run_neither_hang_nor_break_a_verb(
    pair: tuple[RunDirectory, RunDirectory], name: str, kind: str
) -> None:
    run, other = pair
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "unreadable":
        path.symlink_to(path.name)
    outputs(run, other)


def test_a_run_whose_reason_of_failure_cannot_be_read_has_failed(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run, other = pair
    run.fatal_file.write_text("{")
    found = json.loads(outputs(run, other)["status", "RUN", "--json"])
    assert (found["state"], found["exit_code"], found["reason"]) == ("failed", 76, "the recorded reason cannot be read")


def test_a_long_torn_line_and_a_line_of_nested_brackets_are_left_out(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run, other = pair
    for file in (run.metrics, run.attempts_file, run.submissions):
        with file.open("ab") as more:
            more.write(b"x" * 5_000_000 + b"\n" + b"[" * 100_000 + b"\n" + b'{"step": ' + b"9" * 5000 + b"}\n")
    with run.metrics.open("a") as more:
        more.write('{"kind": "train", "step": 11, "loss": 2.5}\n')
    found = json.loads(outputs(run, other)["status", "RUN", "--json"])
    assert (found["step"], found["loss"], found["attempt"]) == (11, 2.5, 1)
