"""Programs of schedulers: what they get of this shell, what is asked again, and what of their output is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher.places import programs
from launcher.places.programs import (
    NotAnswered,
    PlaceUnavailable,
    call,
    call_once,
    dropped,
    environment,
    until_answered,
)

OUTER_JOB = {
    "SLURM_JOB_ID": "4711", "SLURM_MEM_PER_NODE": "64000", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "64",
    "SLURM_EXPORT_ENV": "NONE", "SLURM_UMASK": "0077", "CUDA_VISIBLE_DEVICES": "3", "SRUN_CPUS_PER_TASK": "1",
}  # fmt: skip
SHELL = {
    "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "debug", "SBATCH_NO_REQUEUE": "1", "SBATCH_EXPORT": "NONE",
    "SQUEUE_STATES": "RUNNING", "SQUEUE_FORMAT": "%i", "SCANCEL_NAME": "other", "SCANCEL_INTERACTIVE": "1",
    "SLURM_TIME_FORMAT": "relative", "SCONTROL_ALL": "1", "SACCT_FORMAT": "JobID",
}  # fmt: skip
REACHING = {
    "SLURM_CONF": "/site/slurm.conf", "SLURM_CLUSTERS": "big", "SLURM_JWT": "token", "KUBECONFIG": "/me/config",
    "HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "site",
}  # fmt: skip


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (OUTER_JOB | SHELL | REACHING | {"MY_PATH": "/data"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("program", ["sbatch", "squeue", "scancel", "scontrol", "sacct"])
def test_slurms_programs_do_not_get_options_from_the_shell_or_an_outer_job(shell: None, program: str) -> None:
    given = environment(program)
    assert not (OUTER_JOB | SHELL).keys() & given.keys()
    assert REACHING.items() <= given.items()
    assert given["MY_PATH"] == "/data"
    assert set(dropped(program)) == (OUTER_JOB | SHELL).keys()


def test_the_language_of_a_job_is_that_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert environment("sbatch")["LC_ALL"] == "de_DE.UTF-8"
    assert environment("kubectl")["LC_ALL"] == "C"  # it translates its messages, which are read here


def test_kubectl_gets_no_defaults_of_options(shell: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECTL_APPLYSET", "KUBECTL_EXTERNAL_DIFF", "KUBERC"):
        monkeypatch.setenv(name, "mine")
    given = environment("kubectl")
    assert "mine" not in given.values()
    assert (given["KUBERC"], given["KUBECTL_KUBERC"]) == ("off", "false")
    assert REACHING.items() <= given.items()


def test_programs_are_called_with_that_environment(places: Any, shell: None) -> None:
    call("sbatch", "--test-only", given="#!/bin/bash\n")
    seen = dict(line.partition("=")[::2] for line in places.read("environment").splitlines())
    assert not (OUTER_JOB | SHELL).keys() & seen.keys()
    assert seen["SLURM_CONF"] == "/site/slurm.conf"


def test_a_program_that_hangs_has_not_answered(places: Any) -> None:
    places.says("bin/squeue", "#!/bin/bash\nexec sleep 60\n")
    with pytest.raises(NotAnswered, match=r"squeue: SLURM cannot be reached\n    no answer within 0\.1 s") as raised:
        call_once("squeue", timeout_s=0.1)
    assert raised.value.maybe_arrived


def fails(*errors: NotAnswered) -> Callable[[], str]:
    left = list(errors)

    def request() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return request


def test_a_request_is_repeated_until_it_is_answered_and_that_is_logged_once(
    patient: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert until_answered(fails(*3 * [NotAnswered("squeue: SLURM", "error: connection refused")])) == "answer"
    [record] = caplog.records
    assert record.getMessage() == "squeue: SLURM cannot be reached: connection refused; asking again for up to 20 s"


def test_one_lost_request_makes_the_outcome_unknown(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "FIRST_WAIT_S", 0.01)
    refused, lost = NotAnswered("x", maybe_arrived=False), NotAnswered("x", maybe_arrived=True)
    with pytest.raises(NotAnswered) as raised:
        until_answered(fails(*[lost, *100 * [refused]]), limit_s=0.1)
    assert raised.value.maybe_arrived
    with pytest.raises(NotAnswered) as raised:
        until_answered(fails(*100 * [refused]), limit_s=0.1)
    assert not raised.value.maybe_arrived


def test_another_error_is_not_repeated(patient: None) -> None:
    calls = []

    def request() -> None:
        calls.append(1)
        raise PlaceUnavailable("no")

    with pytest.raises(PlaceUnavailable, match="no"):
        until_answered(request)
    assert calls == [1]


def test_output_is_below_the_first_line_without_control_characters_and_repetitions() -> None:
    coloured = "\x1b]0;title\x07\x1b[31msbatch: error: no\x1b[0m\n"
    printed = f"{coloured}sbatch: error: no\n\nE1126 07:45:24.525652 1 x.go:2] noise\n\x00yes\x9b2J"
    error = PlaceUnavailable("sbatch refuses it", printed)
    assert str(error) == "sbatch refuses it\n    no\n    yes"
    assert error.in_one_line() == "sbatch refuses it: yes"


def test_long_output_is_cut_at_its_start() -> None:
    lines = str(PlaceUnavailable("first", "\n".join(map(str, range(1000))))).splitlines()
    assert len(lines) < 50
    assert (lines[0], lines[-1]) == ("first", "    999")
