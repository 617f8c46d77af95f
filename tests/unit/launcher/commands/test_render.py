"""`launcher render`: a config becomes a script or manifests; problems are reported with the user's own line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher import cli
from launcher.commands.render import SWEEP_ENDS, kubernetes, slurm
from launcher.config import load as configs
from launcher.errors import ConfigError, UsageError
from launcher.places.spec import spec_of

ROOT = Path(__file__).parents[4]
EIGHT_NODES = str(ROOT / "configs" / "rn50_8node.yaml")

Write = Callable[..., Path]


def test_what_a_run_needs_is_what_its_config_says() -> None:
    config = configs.load(
        EIGHT_NODES,
        ["workers=32..64", "preemption.notice_s=29.5", "faults.start_timeout_s=90", "cluster.max_requeues=3"],
    )
    spec = spec_of(config)
    assert (spec.name, spec.storage, spec.data_root) == ("rn50-8node", "/shared/runs", "/data/imagenet")
    assert (spec.least_workers, spec.most_workers, spec.nodes) == (32, 64, 8)
    assert (spec.gpus_per_node, spec.cpus_per_node) == (8, 64)
    assert (spec.walltime_s, spec.notice_s, spec.start_timeout_s, spec.max_requeues) == (14_400, 30, 90, 3)
    assert spec.overrides == ()
    assert "workers: 32..64" in spec.config  # overrides are folded in
    synthetic = ["data.source=synthetic", 'data.root=""']
    assert spec_of(configs.load(EIGHT_NODES, synthetic)).data_root is None  # and no folder to mount
    remote = spec_of(configs.load(EIGHT_NODES, ["data.root=s3://bucket/images", "data.classes=/shared/classes.txt"]))
    assert (remote.data_root, remote.other_inputs) == (None, {"data.classes": "/shared/classes.txt"})


@pytest.mark.parametrize(
    ("command", "example"),
    [
        (["slurm", EIGHT_NODES], "rn50_8node.sbatch"),
        (["kubernetes", "configs/rn50_8node.yaml", "--profile", "kubernetes-gpu-rdma"], "rn50_8node.kubernetes.yaml"),
    ],
)
def test_the_examples_are_what_the_verb_prints(
    command: list[str], example: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["render", *command]) == 0
    assert capsys.readouterr().out == (ROOT / "cluster" / "examples" / example).read_text()


def test_overrides_may_stand_before_and_after_options(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["render", "slurm", str(write_config()), "workers=2", "--launcher", "torchrun", "name=other"]
    assert cli.main(command) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --job-name=other" in script
    assert "#SBATCH --cpus-per-task=2" in script
    assert "torch.distributed.run" in script


def test_a_misspelt_option_is_refused_and_no_override(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "slurm", str(write_config()), "--lancher", "ray"]) == 64
    assert "--lancher" in capsys.readouterr().err


def test_a_problem_is_reported_with_the_line_of_the_config(write_config: Write) -> None:
    file = write_config("cluster:", '  walltime: "00:01:00"')
    with pytest.raises(ConfigError) as raised:
        slurm(str(file), [])
    [problem] = raised.value.problems
    assert (problem.place, problem.key) == (f"{file}:10", "cluster.walltime")


def test_a_problem_is_reported_with_the_override_that_caused_it(write_config: Write) -> None:
    with pytest.raises(ConfigError) as raised:
        slurm(str(write_config()), ['cluster.walltime="00:01:00"'])
    assert raised.value.problems[0].place == 'command line: cluster.walltime="00:01:00"'


def test_a_problem_is_reported_with_the_line_of_the_profile(write_config: Write, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: slurm\nscratch: /tmp\nspare_nodes: 1\n")
    with pytest.raises(ConfigError) as raised:
        slurm(str(write_config()), [], str(site), launcher="torchrun")
    [problem] = raised.value.problems
    assert (problem.place, problem.key) == (f"{site}:3", "spare_nodes")


def test_kubernetes_requires_a_walltime_and_names_the_section(write_config: Write) -> None:
    file = write_config("cluster: {nodes: 1}")
    with pytest.raises(ConfigError) as raised:
        kubernetes(str(file), [], "kubernetes-cpu")
    assert {(one.place, one.key) for one in raised.value.problems} == {(f"{file}:9", "cluster.walltime")}


def test_a_rule_of_kubernetes_names_the_line_of_the_profile(write_config: Write, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: kubernetes\nimage: launcher\nhead:\n  cpus: all\n")
    with pytest.raises(ConfigError) as raised:
        kubernetes(str(write_config('cluster: {walltime: "01:00:00"}')), [], str(site))
    found = [(problem.place, problem.key) for problem in raised.value.problems]
    assert found == [(f"{site}:2", "image"), (f"{site}:4", "head.cpus")]


def test_kubernetes_refuses_a_run_without_ray(write_config: Write) -> None:
    file = write_config("place: local")
    with pytest.raises(ConfigError, match=f"{file}:9: place: found local. Allowed: ray or auto"):
        kubernetes(str(file), [], "kubernetes-cpu")


def test_a_wrong_profile_is_reported_with_its_own_line(write_config: Write, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: slurm\npartitoin: gpu\n")
    with pytest.raises(ConfigError, match=re.escape(f"{site}:2: partitoin: unknown key")):
        slurm(str(write_config()), [], str(site))


@pytest.mark.parametrize(("launcher", "place"), [("ray", "local"), ("torchrun", "ray")])
def test_a_place_that_the_launcher_would_override_is_refused(write_config: Write, launcher: str, place: str) -> None:
    file = write_config(f"place: {place}")
    with pytest.raises(ConfigError, match=f"{file}:9: place: found {place}"):
        slurm(str(file), [], launcher=launcher)  # type: ignore[arg-type]


def test_a_sweep_is_a_job_array_of_runs_with_their_own_names(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = slurm(str(write_config()), [], sweep=["seed=0,1", "schedule.peak_lr=0.1,0.2"])
    assert capsys.readouterr().err == f"{SWEEP_ENDS}\n"
    assert [variant.name for variant in job.spec.variants] == [
        "small-seed-0-peak_lr-0.1", "small-seed-0-peak_lr-0.2", "small-seed-1-peak_lr-0.1", "small-seed-1-peak_lr-0.2",
    ]  # fmt: skip
    assert job.spec.variants[3].overrides == ("seed=1", "schedule.peak_lr=0.2", "name=small-seed-1-peak_lr-0.2")
    assert "#SBATCH --array=0-3" in job.script
    script = tmp_path / "job.sh"
    script.write_text(job.script)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_every_value_of_a_sweep_is_checked_before_anything_is_submitted(write_config: Write) -> None:
    with pytest.raises(ConfigError, match="seed"):
        slurm(str(write_config()), [], sweep=["seed=0,first"])
    for text in ("seed", "seed=", "seed=1,,2", "=1"):
        with pytest.raises(UsageError, match="not a sweep"):
            slurm(str(write_config()), [], sweep=[text])
    with pytest.raises(UsageError, match="two runs would have the name"):
        slurm(str(write_config()), [], sweep=["seed=1,1"])
    with pytest.raises(UsageError, match="its own name"):
        slurm(str(write_config()), [], sweep=["name=a,b"])


def test_kubernetes_has_no_profile_by_default(write_config: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "kubernetes", str(write_config())]) == 64
    assert "kubernetes-cpu, kubernetes-gpu-rdma" in capsys.readouterr().err


def test_rights_are_printed_without_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "kubernetes", "--rbac"]) == 0
    roles = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {role["kind"] for role in roles} == {"Role"}
    assert cli.main(["render", "kubernetes"]) == 64


def test_kubernetes_warns_of_placeholders_and_of_paths_on_no_volume_with_their_lines(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: kubernetes\nimage: registry.example.com/launcher:1\n")
    file = write_config('cluster: {walltime: "01:00:00"}')
    weights = "model.weights=/scratch/weights.pt"  # a long override is cut in messages
    assert cli.main(["render", "kubernetes", str(file), weights, "--profile", str(site)]) == 0
    captured = capsys.readouterr()
    assert yaml.safe_load_all(captured.out)
    assert captured.err.splitlines()[0] == (
        f'warning: {site}:2: image: found "registry.example.com/launcher:1", a placeholder. '
        "Allowed: an image that the cluster can pull"
    )
    assert f"warning: command line: {weights}: model.weights: found " in captured.err


@pytest.mark.parametrize(
    ("place", "profile", "needs"),
    [
        (("slurm",), "kind: slurm", "a GPU"),
        (("slurm",), "kind: slurm\nspare_nodes: 1", ""),
        (("slurm", "resources.gpus_per_worker=0", "resources.cpus_per_worker=4"), "kind: slurm", "4 CPUs"),
        (("slurm", "--launcher", "torchrun"), "kind: slurm", "a GPU"),
        (("slurm", "--launcher", "torchrun"), "kind: slurm\ngpus: null", ""),
        (("slurm", "--launcher", "torchrun", "resources.gpus_per_worker=0"), "kind: slurm", ""),
        (("kubernetes",), "kind: kubernetes\nimage: training/launcher:1", "a GPU"),
        (("kubernetes",), "kind: kubernetes\nimage: training/launcher:1\nspare_nodes: 1", ""),
    ],
)
def test_resources_for_evaluations_beside_training_are_those_of_spare_nodes(
    place: tuple[str, ...],
    profile: str,
    needs: str,
    write_config: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "site.yaml").write_text(profile)
    config = write_config('cluster: {walltime: "01:00:00"}', "evaluate: {every: 1 epoch, beside: true}")
    kind, *more = place
    more = ["resources.gpus_per_worker=1", *more, "--profile", str(tmp_path / "site.yaml")]
    assert cli.main(["render", kind, str(config), *more]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if ": evaluate.beside: " in line]
    expected = f"found true, which needs {needs} besides those of the workers; the job requests none, so that the "
    assert [expected in warning for warning in warnings] == [True] * bool(needs)
    assert cli.main(["render", kind, str(config), *more, "evaluate.beside=false"]) == 0
    assert "evaluate.beside" not in capsys.readouterr().err


def test_the_command_in_the_heading_can_be_copied_and_stays_a_comment(
    write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "my\x1b[31m\u2028 site.yaml"
    site.write_text("kind: kubernetes\nimage: training/launcher:1\n")
    config = write_config('cluster: {walltime: "01:00:00"}')
    assert cli.main(["render", "kubernetes", str(config), "--profile", str(site)]) == 0
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("apiVersion: ")
    assert heading.isprintable()
    assert heading.endswith(f"--profile '{tmp_path}/my\\x1b[31m\\u2028 site.yaml'")
