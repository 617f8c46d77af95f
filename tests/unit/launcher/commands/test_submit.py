"""`launcher submit`: a run is checked first, recorded, and not submitted twice by mistake."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import cli
from launcher.exit_codes import ExitCode
from launcher.run import lease, submissions
from launcher.run.directory import RunDirectory

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs", "small")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A Kubernetes cluster's profile."""
    file = tmp_path / "site.yaml"
    file.write_text("kind: kubernetes\nimage: registry.site/launcher:1\nnamespace: training\n")
    return file


def test_slurm_checks_the_script_first_and_the_job_is_recorded(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    assert cli.main(["submit", "slurm", str(write_config())]) == 0
    assert places.calls() == [
        "sbatch --test-only",
        "squeue --me --noheader --states=all --name=small --format=%F",
        f"sbatch --parsable --output={run.path}/logs/slurm-%j.out",
    ]
    [submission] = submissions.read(run)
    assert (submission.place, submission.id, submission.details) == ("slurm", "4711", {})
    out = capsys.readouterr().out
    assert out.startswith("slurm job 4711\n")
    for verb in ("status", "logs  ", "cancel"):
        assert f"launcher {verb} {run.path}" in out
    assert (run.path / "logs").is_dir()  # SLURM makes no folders for what a job prints


def test_a_job_is_recorded_although_its_id_cannot_be_printed(
    places: Any, write_config: Write, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["submit", "slurm", str(write_config())]
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == ExitCode.UNAVAILABLE
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert [submission.id for submission in submissions.read(run)] == ["4711"]


@pytest.mark.parametrize(
    ("option", "outcome"),
    [("--test-only", "nothing was submitted"), ("--parsable", "the job may have been submitted, see: squeue --me")],
)
def test_ctrl_c_says_what_it_means_for_the_job(
    places: Any,
    write_config: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    option: str,
    outcome: str,
) -> None:
    programs = tmp_path / "interrupted"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(f'#!/bin/bash\ncase "$*" in *{option}*) kill -INT "$PPID"; sleep 0.1 ;; esac\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert cli.main(["submit", "slurm", str(write_config())]) == 130
    assert f"interrupted: {outcome}" in capsys.readouterr().err


def test_a_dry_run_checks_and_writes_nothing(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    assert cli.main(["submit", "slurm", str(write_config()), "--dry-run"]) == 0
    assert places.calls() == ["sbatch --test-only"]
    assert "4068" not in capsys.readouterr().out  # SLURM's start time can be nonsense, and is no promise
    assert not run.path.exists()


def test_what_sbatch_refuses_is_reported_with_the_users_line_and_nothing_is_submitted(
    places: Any, write_config: Write, tmp_path: Path, run: RunDirectory, capsys: Capture
) -> None:
    site = tmp_path / "slurm.yaml"
    site.write_text("kind: slurm\npartition: nowhere\n")
    assert cli.main(["submit", "slurm", str(write_config()), "--profile", str(site)]) == 78
    assert f"error: {site}:2: partition: sbatch --test-only refuses it" in capsys.readouterr().err
    assert not run.path.exists()


def test_too_many_nodes_are_reported_with_the_line_of_the_config(
    places: Any, write_config: Write, capsys: Capture
) -> None:
    file = write_config("workers: 99", "batch_norm: {span: 1}", "cluster: {nodes: 99}")
    assert cli.main(["submit", "slurm", str(file), "batch.size=99"]) == 78
    assert f"{file}:11: cluster.nodes: sbatch --test-only refuses it" in capsys.readouterr().err


def test_a_waiting_run_is_submitted_again_only_with_again(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    command = ["submit", "slurm", str(write_config())]
    assert cli.main(command) == 0
    assert cli.main(command) == 64
    message = capsys.readouterr().err
    assert "submitted already and pending (the nodes that it needs are in use (Resources)): slurm job 4711" in message
    assert cli.main([*command, "--again"]) == 0
    assert len(submissions.read(run)) == 2


def test_a_job_that_is_gone_does_not_prevent_a_submission(places: Any, write_config: Write, run: RunDirectory) -> None:
    command = ["submit", "slurm", str(write_config())]
    assert cli.main(command) == 0
    (places.folder / "jobs" / "4711").unlink()
    assert cli.main(command) == 0


def test_a_recorded_job_in_an_unknown_state_prevents_a_submission(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    submissions.record(run, submissions.now("kubernetes", "small", {"namespace": "training"}))
    places.says("bin/kubectl", "#!/bin/bash\necho 'connection refused' >&2\nexit 1\n")
    assert cli.main(["submit", "slurm", str(write_config())]) == 69
    first, below = capsys.readouterr().err.splitlines()
    assert first.startswith("error: it is unknown whether kubernetes job small, submitted ")
    assert first.endswith(", waits or runs; nothing was submitted. Allowed: another try later, or --again")
    assert below == "    kubectl: the cluster cannot be reached: connection refused"
    assert places.calls() == []


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--again"]])
def test_a_first_submission_to_a_cluster_that_does_not_answer_says_that_nothing_was_submitted(
    places: Any, write_config: Write, run: RunDirectory, site: Path, capsys: Capture, more: list[str]
) -> None:
    places.says("down", "")
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site), *more]) == 69
    [first, below] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert first == "error: kubectl: the cluster of context lab cannot be reached; nothing was submitted"
    assert below.startswith("    The connection to the server")
    assert not run.path.exists()


def test_slurm_that_does_not_answer_says_that_nothing_was_submitted(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    places.says("down", "")
    assert cli.main(["submit", "slurm", str(write_config())]) == 69
    assert capsys.readouterr().err.splitlines() == [
        "error: sbatch: SLURM cannot be reached; nothing was submitted",
        "    Batch job submission failed: Unable to contact slurm controller (connect failure)",
    ]
    assert not run.path.exists()


@pytest.mark.parametrize("context", ["", "-A", "a\nb"])
def test_a_context_that_is_no_name_is_refused(
    places: Any, write_config: Write, site: Path, capsys: Capture, context: str
) -> None:
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site), f"--context={context}"]) == 64
    assert f"--context {context!r}: not a context's name" in capsys.readouterr().err
    assert places.calls() == []


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_variables_of_the_shell_that_would_change_the_job_are_named(
    place: str, places: Any, write_config: Write, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    monkeypatch.setenv("KUBECTL_APPLYSET", "all")
    file = write_config('cluster: {walltime: "01:00:00"}')
    profile = [] if place == "slurm" else ["--profile", str(site)]
    assert cli.main(["submit", place, str(file), *profile]) == 0
    program, name = ("sbatch", "SBATCH_TIMELIMIT") if place == "slurm" else ("kubectl", "KUBECTL_APPLYSET")
    line = f"  variables of this shell that {program} does not get: {name}. Allowed: options in the profile\n"
    assert line in capsys.readouterr().out
    assert f"{name}=" not in places.read("environment")


def test_a_running_run_is_not_submitted(places: Any, write_config: Write, run: RunDirectory, capsys: Capture) -> None:
    with lease.acquire(run.lease):
        assert cli.main(["submit", "slurm", str(write_config())]) == 64
    assert "this run is running" in capsys.readouterr().err
    assert places.calls() == []


def test_a_finished_run_is_not_submitted(places: Any, write_config: Write, run: RunDirectory, capsys: Capture) -> None:
    run.create()
    run.mark_finished({"step": 100, "duration": "100 steps"})
    assert cli.main(["submit", "slurm", str(write_config())]) == 0
    assert "finished already" in capsys.readouterr().out
    assert places.calls() == []
    assert cli.main(["submit", "slurm", str(write_config()), "duration=200 steps"]) == 0  # a longer one goes on
    assert len(submissions.read(run)) == 1


def test_a_sweep_is_one_job_and_every_run_knows_its_task(places: Any, write_config: Write, tmp_path: Path) -> None:
    assert cli.main(["submit", "slurm", str(write_config()), "--sweep", "seed=0,1"]) == 0
    runs = [RunDirectory(tmp_path / "runs", f"small-seed-{seed}") for seed in (0, 1)]
    assert [submissions.read(run)[0].id for run in runs] == ["4711_0", "4711_1"]
    assert cli.main(["submit", "slurm", str(write_config()), "--sweep", "seed=1,2"]) == 64  # seed 1 is waiting


def test_kubernetes_checks_the_manifests_first_and_the_record_has_namespace_and_context(
    places: Any, write_config: Write, run: RunDirectory, site: Path, capsys: Capture
) -> None:
    run.storage.mkdir()
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site), "--context", "lab"]) == 0
    verbs = [call.split(" --namespace=training ")[1] for call in places.calls()]
    assert [verb.split()[0] for verb in verbs] == ["get", "apply", "get", "apply"]
    assert "--dry-run=server" in verbs[1]
    kinds = [manifest["kind"] for manifest in yaml.safe_load_all(places.read("applied"))]
    assert kinds[-1] == "RayJob"
    [submission] = submissions.read(run)
    assert (submission.id, submission.details) == ("small", {"namespace": "training", "context": "lab"})
    assert "RayJob small in namespace training" in capsys.readouterr().out


def test_each_submission_to_kubernetes_has_its_own_id(
    places: Any, write_config: Write, run: RunDirectory, site: Path
) -> None:
    run.storage.mkdir()
    file = write_config('cluster: {walltime: "01:00:00"}')
    command = ["submit", "kubernetes", str(file), "--profile", str(site)]
    assert cli.main(command) == 0
    first = places.read("applied")
    places.says("rayjob", {"status": {"jobDeploymentStatus": "Failed"}})
    assert cli.main(command) == 0
    assert first != places.read("applied")


def test_without_the_volume_nothing_is_written_here_and_the_config_names_the_job(
    places: Any, write_config: Write, run: RunDirectory, site: Path, capsys: Capture
) -> None:
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site)]) == 0
    assert not run.storage.exists()
    out = capsys.readouterr().out
    assert f"launcher status {file} --profile {site}" in out
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site)]) == 64  # the RayJob itself is noticed
    message = capsys.readouterr().err
    assert "already and pending (KubeRay has not processed it yet: check that its operator is running)" in message
    assert message.endswith(
        ": kubernetes job small in namespace training. Allowed: `launcher cancel`, or another name=...\n"
    )


def test_kubernetes_requires_kubectl(
    write_config: Write, site: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", str(site), "--dry-run"]) == 69
    assert "kubectl is not on this machine's PATH" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_variables_that_differ_from_the_profile_are_named(
    place: str, places: Any, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    profile = tmp_path / "own.yaml"
    image = "image: registry.site/launcher:1\n" if place == "kubernetes" else ""
    network = "network: {interface: ib0, environment: {NCCL_IB_HCA: mlx5}}\n"
    profile.write_text(f"kind: {place}\n{image}{network}")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5")
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", place, str(file), "--profile", str(profile)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "in your environment" in line]
    assert printed == [
        "  NCCL_SOCKET_IFNAME is 'eth0' in your environment and 'ib0' in the profile; a job gets the profile's: "
        "unset NCCL_SOCKET_IFNAME, or change the profile if yours is right"
    ]


def test_a_placeholder_in_a_profile_is_refused_with_its_line_before_the_cluster_is_asked(
    places: Any, write_config: Write, run: RunDirectory, capsys: Capture
) -> None:
    file = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["submit", "kubernetes", str(file), "--profile", "kubernetes-cpu"]) == 78
    assert 'kubernetes-cpu.yaml:6: image: found "registry.example.com/' in capsys.readouterr().err
    assert places.calls() == []
    assert not run.path.exists()
