"""What a scheduler is asked for because of a record, and what is said when it does not answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.commands import logs, schedulers
from launcher.commands.list_runs import statuses
from launcher.errors import UsageError
from launcher.places.programs import PlaceUnavailable
from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.submissions import Submission

SLURM = submissions.now("slurm", "7")
KUBERNETES = submissions.now("kubernetes", "small", {"namespace": "training", "context": "lab"})
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("submission", [SLURM, KUBERNETES])
def test_a_scheduler_that_does_not_answer_leaves_the_state_unknown(places: Any, submission: Submission) -> None:
    places.says("down", "")
    job = schedulers.ask(submission)
    assert job.state == "unreachable"
    assert "cannot be reached: " in job.reason
    assert "\n" not in job.reason
    with pytest.raises(PlaceUnavailable, match=f"cannot be reached; {submission} may still run: use the same command"):
        schedulers.stop(submission, save=True)


@pytest.mark.parametrize("submission", [SLURM, KUBERNETES])
def test_a_missing_program_leaves_the_state_unknown(monkeypatch: pytest.MonkeyPatch, submission: Submission) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job = schedulers.ask(submission)
    assert job.state == "unreachable"
    assert "is not on this machine's PATH" in job.reason


@pytest.mark.parametrize("submission", [SLURM, KUBERNETES, submissions.now("ray", "a", {"address": "http://h:1"})])
def test_nothing_is_sent_because_of_a_record_that_somebody_else_may_have_written(
    places: Any, submission: Submission
) -> None:
    doubtful = dataclasses.replace(submission, distrust="everybody may write to it")
    job = schedulers.ask(doubtful)
    assert (job.state, job.reason) == ("unreachable", f"{submission} was not looked up: everybody may write to it")
    with pytest.raises(UsageError, match="was not stopped: everybody may write to it"):
        schedulers.stop(doubtful, save=True)
    assert places.calls() == []


def test_status_of_a_silent_scheduler_is_unknown(places: Any, small_run: RunDirectory, capsys: Capture) -> None:
    submissions.record(small_run, SLURM)
    places.says("down", "")
    assert cli.main(["status", str(small_run.path)]) == 69
    out = capsys.readouterr().out
    assert ": unknown" in out
    assert "because    squeue: SLURM cannot be reached: Unable to contact slurm controller (connect failure)" in out
    assert cli.main(["cancel", str(small_run.path)]) == 69
    assert "slurm job 7 may still run: use the same command again" in capsys.readouterr().err


def test_the_log_of_a_run_is_followed_while_its_scheduler_is_silent(
    places: Any, small_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    submissions.record(small_run, SLURM)
    places.says("down", "3")
    monkeypatch.setattr(logs, "ASK_EVERY_S", 0.0)
    assert cli.main(["logs", str(small_run.path), "--follow"]) == 0
    assert capsys.readouterr().err.count("although the run may have ended") == 1
    assert len([call for call in places.calls() if call.startswith("squeue")]) == 4


def test_a_silent_cluster_does_not_hide_another(places: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run = RunDirectory(tmp_path / "runs", name)
        submission = (
            SLURM
            if name == "c"
            else dataclasses.replace(KUBERNETES, details={"namespace": "training", "context": name})
        )
        submissions.record(run, submission)
    places.says("jobs/7", "PENDING|Priority\n")
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Waiting"}})
    silent = 'case $* in *--context=a*) echo "connection refused" >&2; exit 1 ;; esac'
    places.says("bin/kubectl", places.read("bin/kubectl").replace("\n", f"\n{silent}\n", 1))
    assert [status.state for status in statuses(tmp_path / "runs")] == ["unknown", "pending", "pending"]


@pytest.mark.parametrize("context", ["", "-A", "--kubeconfig=x", "a\nb"])
@pytest.mark.parametrize("verb", ["status", "cancel", "logs"])
def test_a_context_that_is_no_name_is_refused(
    places: Any, write_config: Callable[..., Path], capsys: Capture, verb: str, context: str
) -> None:
    command = [verb, str(write_config()), "--profile", "kubernetes-cpu", f"--context={context}"]
    assert cli.main(command) == 64
    assert f"error: --context {context!r}: not a context's name" in capsys.readouterr().err
    assert places.calls() == []
