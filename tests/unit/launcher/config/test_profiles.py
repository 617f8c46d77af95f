"""Site profiles: the shipped ones are valid, and every mistake in a profile is reported with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.profile import Container, Network, Profile, SlurmProfile
from launcher.config.profiles import load_profile, shipped
from launcher.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, kind: str = "slurm") -> Profile:
    """The profile `text`, from site.yaml."""
    Path("site.yaml").write_text(text)
    return load_profile("site.yaml", kind)  # type: ignore[call-overload, no-any-return]


def refused(text: str, kind: str = "slurm") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, kind)
    return [str(problem) for problem in caught.value.problems]


def test_four_profiles_are_shipped_and_each_can_be_read() -> None:
    assert sorted(shipped()) == ["kubernetes-cpu", "kubernetes-gpu-rdma", "slurm", "slurm-containers"]
    assert load_profile("slurm", "slurm").kind == "slurm"
    assert load_profile("slurm-containers", "slurm").container is not None
    assert load_profile("kubernetes-cpu", "kubernetes").kind == "kubernetes"
    assert load_profile("kubernetes-gpu-rdma", "kubernetes").rdma_resource is not None


@pytest.mark.parametrize("name", ["slurm", "slurm-containers", "kubernetes-cpu", "kubernetes-gpu-rdma"])
def test_each_line_of_a_shipped_profile_says_whether_it_was_tried(name: str) -> None:
    body = shipped()[name].read_text().partition("\nkind: ")[2].splitlines()[1:]
    settings = [line for line in body if re.match(r"(# )?\s*[a-z_]+:(?! *$)", line)]
    assert len(settings) > 5
    assert [line for line in settings if not re.search(r"# (tried|read)\b", line)] == []


def test_what_a_shipped_profile_suggests_in_comments_is_allowed() -> None:
    lines = shipped()["slurm"].read_text().partition("\nkind: ")[2].splitlines()
    suggested = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    text = "kind: slurm\n" + "\n".join(line for line in suggested if not line.startswith("conda"))
    assert read(text) != SlurmProfile()


def test_a_profile_is_read_as_it_is_written() -> None:
    text = """
kind: slurm
account: 0123                # a number in YAML 1.1, and another one than is written
qos: no
spare_nodes: 2
exclusive: true
sbatch: [--reservation=x]
environment: {NCCL_IB_DISABLE: 1}
container: {runtime: pyxis, image: "registry#a:b", mounts: ["/a:/b:ro"]}
network: {interface: ib0}
gpus: null
scratch: /scratch/$SLURM_JOB_ID
"""
    assert read(text) == SlurmProfile(
        account="0123",
        qos="no",
        spare_nodes=2,
        exclusive=True,
        sbatch=("--reservation=x",),
        environment={"NCCL_IB_DISABLE": "1"},
        container=Container(runtime="pyxis", image="registry#a:b", mounts=("/a:/b:ro",)),
        network=Network(interface="ib0"),
        gpus=None,
        scratch="/scratch/$SLURM_JOB_ID",
    )


def test_every_mistake_is_named_with_its_line_and_the_nearest_key() -> None:
    found = refused("kind: slurm\npartitoin: gpu\nspare_nodes: two\nnetwork:\n  interfase: ib0\nexclusive: yes\n")
    found = sorted(found)
    assert [line.split(": ")[0] for line in found] == ["site.yaml:2", "site.yaml:3", "site.yaml:5", "site.yaml:6"]
    assert found[0].startswith("site.yaml:2: partitoin: unknown key. Allowed: kind, partition, ")
    assert found[0].endswith("Did you mean partition?")
    assert found[1] == 'site.yaml:3: spare_nodes: found "two" (a string). Allowed: a whole number'
    assert found[2].endswith("Did you mean interface?")
    assert found[3] == 'site.yaml:6: exclusive: found "yes" (a string). Allowed: true or false. Did you mean true?'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: kubernetes\nimage: a:b\n", 'site.yaml:1: kind: found "kubernetes" (a string). Allowed: slurm'),
        ("partition: gpu\n", "kind: missing"),
        ("kind: slurm\nqos: a\nqos: b\n", "site.yaml:3: qos: given twice"),
        ("kind: slurm\nqos: &a [*a]\n", "aliases expand without end"),
        ("kind: slurm\nenvironment: &a {B: *a}\n", "aliases expand without end"),
        ("- slurm\n", 'site.yaml:1: found ["slurm"] (a list of 1)'),
        ("kind: slurm\nqos: [\n", "this is not YAML"),
        ("kind: slurm\nqos: !!python/object:os.system x\n", "site.yaml:2: qos: found the tag"),
        ("kind: slurm\nqos: [a]\n", "qos: found"),
        ("kind: slurm\nspare_nodes: -1\n", "site.yaml:2: spare_nodes: found -1. Allowed: a whole number from 0 to"),
        ("kind: slurm\nqos: ' '\n", "site.yaml:2: qos: found"),
        ('kind: slurm\nenvironment: {A: "a\\nb"}\n', "site.yaml:2: environment.A: found"),
        ("kind: slurm\ngpus: --gres=gpu\n", "gpus: found"),
        ("kind: slurm\nsbatch: ['--a=b --wrap=c']\n", "sbatch: found"),
        ('kind: slurm\nqos: "a\\nb"\n', "qos: found"),
        ("kind: slurm\nscratch: /scratch/$HOME\n", "scratch: found"),
        ("kind: slurm\nscratch: /scratch/$SLURM_JOB_IDS\n", "and of $SLURM_JOB_ID and $SLURM_JOB_USER"),
        ("kind: slurm\ngpus: --gpus={count}\n", "gpus: found"),  # of the whole job
        ("kind: slurm\nvenv: env\n", 'venv: found "env". Allowed: an absolute path'),
        ("kind: slurm\nvenv: /a\nconda: /b\n", "conda: more than one of venv, conda and container"),
        ("kind: slurm\nnotice_s: 0\n", "notice_s: found 0"),
        ("kind: slurm\nenvironment: {a-b: 1}\n", "not the name of a variable"),
        ("kind: slurm\nenvironment: {WANDB_API_KEY: x}\n", "this looks like a secret"),
        (
            "kind: slurm\nnetwork: {environment: {HF_TOKEN: x}}\n",
            "site.yaml:2: network.environment.HF_TOKEN: this looks",
        ),
        ("kind: slurm\nenvironment: {https_proxy: 'http://me:word@proxy:3128'}\n", "this looks like a secret"),
        ("kind: slurm\nsbatch: ['--export=DB_PASSWORD=word']\n", "sbatch: an option looks like a secret"),
        ("kind: slurm\nnotice_s: 10000000000\n", "found 10000000000. Allowed: a whole number from 1 to 604800"),
        ("kind: slurm\ncontainer: {runtime: docker, image: a}\n", "Allowed: apptainer, pyxis"),
        ("kind: slurm\ncontainer: {runtime: pyxis}\n", "container.image: missing"),
        ("kind: slurm\ncontainer: {runtime: pyxis, image: a, mounts: [data]}\n", "container.mounts: found"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    assert message in "\n".join(refused(text))


def test_a_profile_that_is_not_there_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--profile slurm-container: cannot be read: ") as caught:
        load_profile("slurm-container", "slurm")
    assert str(caught.value).endswith("Did you mean slurm-containers?")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path, "slurm")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_profile(tmp_path / "binary.yaml", "slurm")
