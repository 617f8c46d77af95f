"""Output of SLURM's programs becomes a job status, a problem with a key, or ClusterUnavailable."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cluster.errors import PlaceError
from launcher.errors import ClusterUnavailable
from launcher.places import programs
from launcher.places import slurm as slurm_jobs
from launcher.places.programs import NotAnswered, PlaceUnavailable

SCRIPT = "#!/bin/bash\n#SBATCH --nodes=1\n"


def sbatch_calls(places: Any) -> list[str]:
    return [call for call in places.calls() if call.startswith("sbatch")]


def test_a_script_is_checked_and_submitted_through_standard_input(places: Any) -> None:
    slurm_jobs.check(SCRIPT)
    assert slurm_jobs.submit(SCRIPT, "a", "/runs/a/logs/slurm-%j.out") == "4711"
    assert sbatch_calls(places) == ["sbatch --test-only", "sbatch --parsable --output=/runs/a/logs/slurm-%j.out"]
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


def test_a_controller_that_restarts_is_asked_until_it_answers(places: Any, patient: None) -> None:
    places.says("down", "2")
    slurm_jobs.check(SCRIPT)
    places.says("down", "2")
    assert slurm_jobs.submit(SCRIPT, "a") == "4711"
    places.says("down", "2")
    assert slurm_jobs.ask("4711").state == "pending"
    places.says("down", "1")
    assert slurm_jobs.stop("4711", save=True) == "slurm job 4711 was pending and is cancelled"
    assert sbatch_calls(places) == 3 * ["sbatch --test-only"] + ["sbatch --parsable"]


def test_a_submission_without_an_answer_is_looked_for_and_not_repeated(places: Any, patient: None) -> None:
    places.says("jobs/4710", "RUNNING|None\n")  # an older job of that name
    places.says("hung", "")
    assert slurm_jobs.submit(SCRIPT, "a") == "4711"
    assert sbatch_calls(places) == ["sbatch --parsable"]


def test_a_submission_without_an_answer_is_not_repeated_although_squeue_does_not_list_it(
    places: Any, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SUBMIT_LIMIT_S", 0.5)
    places.says("jobs/4710", "RUNNING|None\n")
    places.says("hung", "")
    places.says("loses", "")
    with pytest.raises(PlaceUnavailable, match=r"may have been submitted.*\n    squeue lists no new job named a"):
        slurm_jobs.submit(SCRIPT, "a")
    assert sbatch_calls(places) == ["sbatch --parsable"]


@pytest.mark.parametrize(
    ("printed", "outcome"),
    [
        ("Unable to contact slurm controller (connect failure)", "; nothing was submitted\n    Unable to contact"),
        ("Socket timed out on send/recv operation",
         "; the job may have been submitted. Before another try, see: squeue --me --name=a\n    Socket timed out"),
    ],
)  # fmt: skip
def test_an_error_says_whether_the_job_was_submitted(places: Any, printed: str, outcome: str) -> None:
    places.says("bin/sbatch", f"#!/bin/bash\necho 'sbatch: error: {printed}' >&2\nexit 1\n")
    with pytest.raises(PlaceUnavailable) as raised:
        slurm_jobs.submit(SCRIPT, "a")
    assert str(raised.value).startswith(f"sbatch: SLURM cannot be reached{outcome}")


def test_an_output_without_a_job_id_is_not_taken_for_a_failure_to_submit(places: Any) -> None:
    places.says("bin/sbatch", "#!/bin/bash\necho welcome to the cluster\n")
    with pytest.raises(PlaceUnavailable, match="no job id in its output; the job may have been submitted"):
        slurm_jobs.submit(SCRIPT, "a")
    places.says("bin/sbatch", "#!/bin/bash\necho welcome to the cluster\necho '4712;lab'\n")
    assert slurm_jobs.submit(SCRIPT, "a") == "4712"


def test_a_refusal_is_not_repeated_and_has_the_lines_of_a_sites_plugin(places: Any, patient: None) -> None:
    plugin = "echo 'sbatch: error: GPU jobs need an account' >&2; echo 'allocation failure: Unspecified error' >&2"
    places.says("bin/sbatch", f'#!/bin/bash\necho "sbatch $*" >> "$CALLS"\n{plugin}\nexit 1\n')
    with pytest.raises(PlaceError, match="refuses it: GPU jobs need an account; Unspecified error"):
        slurm_jobs.check(SCRIPT)
    assert len(places.calls()) == 1


def test_a_missing_sbatch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ClusterUnavailable, match=r"sbatch is not on this machine's PATH\. Allowed: a machine that has sbatch"
    ):
        slurm_jobs.check(SCRIPT)


@pytest.mark.parametrize(
    ("line", "state", "reason"),
    [
        ("PENDING|Resources", "pending", "the nodes that it needs are in use (Resources)"),
        ("PENDING|(Priority)", "pending", "jobs with a higher priority come first (Priority)"),
        ("PENDING|ReqNodeNotAvail, UnavailableNodes:n3", "pending",
         "a node that it requests is down, drained or reserved (ReqNodeNotAvail, UnavailableNodes:n3)"),
        ("PENDING|QOSMaxJobsPerUserLimit", "pending", "QOSMaxJobsPerUserLimit"),
        ("PENDING|BeginTime|2", "pending",
         "requeued, restart 2: SLURM delays the restart of a requeued job (BeginTime)"),
        ("PENDING|None|10", "pending", "requeued, restart 10"),
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


def test_a_job_that_slurm_does_not_know_is_gone(places: Any) -> None:
    status = slurm_jobs.ask("7")
    assert (status.state, status.reason) == ("gone", "SLURM has no record of job 7")


def test_accounting_says_how_a_forgotten_job_ended(places: Any) -> None:
    places.says("accounting", "TIMEOUT|75:0\n")
    assert slurm_jobs.ask("7").reason == "SLURM's accounting reports TIMEOUT, exit code 75"


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "REQUEUED"])
def test_a_job_that_is_live_in_the_accounting_is_not_gone(places: Any, state: str) -> None:
    places.says("accounting", f"{state}|0:0\n")
    with pytest.raises(PlaceUnavailable, match="its state is unknown"):
        slurm_jobs.ask("7")


@pytest.mark.parametrize(
    "printed",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
        "Slurm backup controller in standby mode",
        "Transport endpoint is not connected",
    ],
)
def test_silence_is_not_gone(places: Any, printed: str) -> None:
    places.says("bin/squeue", f"#!/bin/bash\necho 'slurm_load_jobs error: {printed}' >&2\nexit 1\n")
    with pytest.raises(NotAnswered, match=f"squeue: SLURM cannot be reached\n    {re.escape(printed)}"):
        slurm_jobs.ask("7")


def test_an_answer_about_something_else_is_not_gone(places: Any) -> None:
    places.says("bin/squeue", "#!/bin/bash\necho 'squeue: error: Unrecognized option: --Format' >&2\nexit 1\n")
    with pytest.raises(PlaceUnavailable, match="the state of job 7 is unknown\n    Unrecognized option"):
        slurm_jobs.ask("7")


@pytest.mark.parametrize("job", ["-A", "--me", "7\n8", "", "--help"])
@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
@pytest.mark.parametrize("save", [True, False])
def test_no_id_becomes_an_option(places: Any, job: str, state: str, save: bool) -> None:
    log = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$PLACE/words"; echo -n end >> "$PLACE/words"\n'
    places.says("bin/squeue", f"{log}printf '%-32s%-16s%-256s\\n' {state} 0 None\n")
    for program in ("scancel", "scontrol"):
        places.says(f"bin/{program}", log)
    slurm_jobs.stop(job, save=save)
    for call in places.read("words").split("end")[:-1]:
        words = call.split("\0")[:-1]
        place = [number for number, word in enumerate(words) if word in (job, f"--jobs={job}", f"JobId={job}")]
        assert len(place) == 1
        if words[place[0]] == job:
            assert words[place[0] - 1 :] == ["--", job]


def test_saving_forbids_the_requeue_first_and_then_gives_notice(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    assert slurm_jobs.stop("7", save=True) == "slurm job 7 saves and exits; it is not requeued"
    assert places.calls()[1:] == ["scontrol update JobId=7 Requeue=0", "scancel --signal=USR2 --batch -- 7"]


def test_a_job_whose_requeue_cannot_be_disabled_is_cancelled(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    places.says("bin/scontrol", "#!/bin/bash\nexit 1\n")
    assert "KillWait" in slurm_jobs.stop("7", save=True)
    assert places.calls()[-1] == "scancel -- 7"


def test_killing_begins_with_the_shell_which_would_save(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    slurm_jobs.stop("7", save=False)
    assert places.calls()[1:] == [
        "scontrol update JobId=7 Requeue=0",
        "scancel --signal=KILL --batch -- 7",
        "scancel -- 7",
    ]


def test_a_waiting_job_has_nothing_to_save(places: Any) -> None:
    places.says("jobs/7", "PENDING|Priority\n")
    assert slurm_jobs.stop("7", save=True) == "slurm job 7 was pending and is cancelled"
    assert places.calls()[1:] == ["scancel -- 7"]


def test_a_job_that_is_gone_is_left_alone(places: Any) -> None:
    assert "nothing to stop" in slurm_jobs.stop("7", save=True)
    assert not any(call.startswith("scancel") for call in places.calls())


def test_a_job_is_not_called_cancelled_without_an_answer(places: Any) -> None:
    places.says("jobs/7", "RUNNING|None\n")
    places.says("bin/scontrol", "#!/bin/bash\ntouch $PLACE/down\n")
    with pytest.raises(NotAnswered, match="scancel: SLURM cannot be reached"):
        slurm_jobs.stop("7", save=True)
