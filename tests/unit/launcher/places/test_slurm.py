"""Output of SLURM's programs becomes a job status, a problem with a key, or ClusterUnavailable."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import PlaceError
from launcher.errors import ClusterUnavailable
from launcher.places import slurm as slurm_jobs

SCRIPT = "#!/bin/bash\n#SBATCH --nodes=1\n"


def test_a_script_is_checked_and_submitted_through_standard_input(places: Any) -> None:
    slurm_jobs.check(SCRIPT)
    assert slurm_jobs.submit(SCRIPT, "/runs/a/logs/slurm-%j.out") == "4711"
    assert places.calls() == ["sbatch --test-only", "sbatch --parsable --output=/runs/a/logs/slurm-%j.out"]
    assert places.read("script") == SCRIPT.rstrip("\n")


@pytest.mark.parametrize(
    ("option", "key", "words"),
    [
        ("--partition=nowhere", "partition", "Invalid partition name specified"),
        ("--nodes=99", "cluster.nodes", "Requested node configuration is not available"),
    ],
)
def test_a_refusal_of_sbatch_has_its_key(places: Any, option: str, key: str, words: str) -> None:
    with pytest.raises(PlaceError) as raised:
        slurm_jobs.check(f"#!/bin/bash\n#SBATCH {option}\n")
    [problem] = raised.value.problems
    assert (problem.key, problem.found) == (key, f"sbatch --test-only refuses it: {words}")


def test_a_controller_that_is_down_refuses_nothing(places: Any) -> None:
    places.says("down", "")
    with pytest.raises(ClusterUnavailable, match="Unable to contact slurm controller"):
        slurm_jobs.check(SCRIPT)


def test_a_missing_sbatch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterUnavailable, match=r"sbatch is not on this machine's PATH\. Run this on a machine"):
        slurm_jobs.check(SCRIPT)


@pytest.mark.parametrize(
    ("line", "state", "reason"),
    [
        ("PENDING|Resources", "pending", "the nodes that it needs are in use (Resources)"),
        ("PENDING|(Priority)", "pending", "jobs with a higher priority come first (Priority)"),
        ("PENDING|ReqNodeNotAvail, UnavailableNodes:n3", "pending",
         "a node that it requests is down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:n3)"),
        ("PENDING|QOSMaxJobsPerUserLimit", "pending", "QOSMaxJobsPerUserLimit"),
        ("CONFIGURING|None", "pending", "its nodes are being prepared"),
        ("SUSPENDED|None", "pending", "suspended"),
        ("RUNNING|None", "running", "running"),
        ("COMPLETING|None", "running", "completing"),
        ("TIMEOUT|TimeLimit", "gone", "SLURM reports TIMEOUT"),
        ("COMPLETED|None", "gone", "SLURM reports COMPLETED"),
        ("PENDING|Dependency\nRUNNING|None", "running", "running"),  # a job array
    ],
)  # fmt: skip
def test_a_state_of_squeue_becomes_a_job_status(places: Any, line: str, state: str, reason: str) -> None:
    places.says("jobs/7", line + "\n")
    status = slurm_jobs.ask("7")
    assert (status.state, status.reason) == (state, reason)


def test_a_job_that_slurm_does_not_know_is_gone_and_with_a_silent_controller_unreachable(places: Any) -> None:
    assert slurm_jobs.ask("7").state == "gone"
    places.says("down", "")
    status = slurm_jobs.ask("7")
    assert (status.state, status.reason) == (
        "unreachable",
        "slurm_load_jobs error: Unable to contact slurm controller",
    )


def test_saving_forbids_the_requeue_first_and_then_gives_notice(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    assert slurm_jobs.stop("7", save=True) == "slurm job 7 saves and exits; it is not requeued"
    assert places.calls()[1:] == ["scontrol update JobId=7 Requeue=0", "scancel --signal=USR2 --batch 7"]


def test_a_job_whose_requeue_cannot_be_disabled_is_cancelled(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    places.says("bin/scontrol", "#!/bin/bash\nexit 1\n")
    assert "KillWait" in slurm_jobs.stop("7", save=True)
    assert places.calls()[-1] == "scancel 7"


def test_killing_begins_with_the_shell_which_would_save(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    slurm_jobs.stop("7", save=False)
    assert places.calls()[1:] == [
        "scontrol update JobId=7 Requeue=0",
        "scancel --signal=KILL --batch 7",
        "scancel 7",
    ]


def test_a_waiting_job_has_nothing_to_save(places: Any) -> None:
    places.says("jobs/7", "PENDING|Priority\n")
    assert slurm_jobs.stop("7", save=True) == "slurm job 7 was pending and is cancelled"
    assert places.calls()[1:] == ["scancel 7"]


def test_a_job_that_is_gone_is_left_alone(places: Any) -> None:
    assert "nothing to stop" in slurm_jobs.stop("7", save=True)
    assert len(places.calls()) == 1
