"""What the script does with signals, exit codes, requeues and lost nodes, on a real SLURM.

Ray, torchrun's start and the training are stood in for by scripts: the "config" of these runs is the bash script that
plays the driver, so each test says what its driver does.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from cluster.profile import Container, Network, SlurmProfile
from cluster.slurm.script import Launcher, render
from cluster.spec import RunSpec, Variant

pytestmark = pytest.mark.lab

# `python -m launcher.train CONFIG ...` becomes `bash CONFIG ...`; the rest is Python's own.
PYTHON = """#!/bin/bash
if [ "$1 $2" = "-m launcher.train" ]; then shift 2; exec bash "$@"; fi
exec {python} "$@"
"""
# A head listens, as Ray's does; the others only stay. All must be able to read the token.
RAY = """#!/bin/bash
[ "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 ] && [ "$(wc -c < "$RAY_AUTH_TOKEN_PATH")" = 64 ] || exit 1
for word; do case $word in --port=*) port=${word#*=} ;; esac; done
[ -n "$port" ] || exec sleep infinity
exec {python} -c 'import socket, sys, time; s = socket.create_server(("", int(sys.argv[1]))); time.sleep(1e6)' "$port"
"""
NOTICE_S = 9  # of which 6 are for the driver
# The variables of an image win over those of its caller.
IMAGE_ENV = "env SITE=image LAUNCHER_SUBMISSION=image OMP_NUM_THREADS=image RAY_ADDRESS=image"
# Apptainer's way of being called: options, an image, a command.
APPTAINER = f"""#!/bin/bash
shift; while [ "$1" = --bind ]; do echo "bound $2" >> "$IMAGE_LOG"; shift 2; done
shift; exec {IMAGE_ENV} "$@"
"""
# srun with pyxis: options for the container, then a command. A container with a name is imported once on a node.
PYXIS = f"""#!/bin/bash
options=()
while [[ $1 == --* ]]; do
    case $1 in
        --container-name=*) name=${{1#*=}} ;;
        --container-mounts=*) mounts=${{1#*=}} ;;
        --container-image=*) ;;
        *) options+=("$1") ;;
    esac
    shift
done
start='! mkdir "$IMAGE_LOG-$0-$SLURMD_NODENAME" 2> /dev/null || echo imported >> "$IMAGE_LOG"
    echo "bound ${{1%%,*}}" >> "$IMAGE_LOG"; shift; exec {IMAGE_ENV} "$@"'
exec /usr/bin/srun "${{options[@]}}" bash -c "$start" "$name" "$mounts" "$@"
"""
SAVES_WHEN_TOLD = "trap 'echo saved; exit 75' USR2; echo training; while :; do sleep 0.1; done"
THEN_FINISHES = '[ "$SLURM_RESTART_COUNT" != 1 ] || { echo finishing; exit 0; }\n' + SAVES_WHEN_TOLD


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv whose programs are the scripts above."""
    folder = tmp_path_factory.mktemp("stand-ins")
    (folder / "bin").mkdir()
    (folder / "pyxis").mkdir()
    for name, text in (("bin/python", PYTHON), ("bin/ray", RAY), ("bin/apptainer", APPTAINER), ("pyxis/srun", PYXIS)):
        (folder / name).write_text(text.replace("{python}", sys.executable))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def script(stand_ins: Path, scratch: Path, storage: Path) -> Callable[..., str]:
    """The rendered script of a run whose driver does what `driver` says."""
    numbers = itertools.count()

    def make(driver: str, launcher: Launcher = "ray", profile: dict[str, Any] | None = None, **spec: Any) -> str:
        workers = spec.get("nodes", 1)
        needs = {"name": f"run{next(numbers)}", "storage": str(storage)}
        needs |= {"least_workers": workers, "most_workers": workers}
        needs |= {"max_requeues": 1, "notice_s": NOTICE_S, "config": driver}
        site = {"venv": str(stand_ins), "scratch": str(scratch), "notice_s": NOTICE_S} | (profile or {})
        return render(RunSpec(**(needs | spec)), SlurmProfile(**site), launcher)

    return make


@pytest.fixture(scope="session")
def slow_jobs(slurm: Any, script: Callable[..., str], storage: Path) -> dict[str, str]:
    """Jobs whose lives take a while, started at once; the tests that look at them come last."""
    variants = tuple(Variant(name=f"s{seed}", overrides=(f"seed={seed}", f"name=s{seed}")) for seed in (7, 8))
    deaf = '[ "$SLURM_RESTART_COUNT" != 1 ] || exit 0\ntrap "" USR2\n'
    deaf += 'scancel --signal=USR2 --batch "$SLURM_JOB_ID"; while :; do sleep 0.1; done'
    seeds = 'echo "overrides: $*"; [ "$1-$SLURM_RESTART_COUNT" != seed=7- ] || exit 75'
    saves = f'n=${{SLURM_RESTART_COUNT:-0}}; mkdir -p "{storage}/long/checkpoints/step-0000000$((n + 1))"; '
    saves += '[ "$n" -lt 2 ] && exit 75; exit 0'
    return {
        "long": slurm.submit(script(saves, name="long")),
        "limited": slurm.submit(script(THEN_FINISHES, walltime_s=60)),
        "capped": slurm.submit(script("exit 76", max_requeues=2)),
        "deaf": slurm.submit(script(deaf)),
        "array": slurm.submit(script(seeds, variants=variants)),
    }


@pytest.fixture(autouse=True)
def _started(slow_jobs: dict[str, str]) -> None:
    """Whatever runs first, the slow jobs run beside it."""


def test_the_exit_code_of_the_job_is_the_drivers(slurm: Any, script: Callable[..., str]) -> None:
    jobs = {code: slurm.submit(script(f"exit {code}")) for code in (0, 1, 65, 69, 78, 79)}
    for code, job in jobs.items():
        ended = slurm.wait(job)
        assert (ended["ExitCode"], ended["Restarts"]) == (f"{code}:0", "0"), slurm.output(job)
        assert slurm.leftovers(job) == []


def test_torchrun_keeps_the_exit_code_of_the_worker_at_fault(
    slurm: Any, script: Callable[..., str], storage: Path
) -> None:
    # rank 1 knows what is wrong; the others only see that it is gone, or wait for it until srun kills them
    fails = '[ "$RANK" = 1 ] && exit 65; sleep 1; exit 76'
    failing = slurm.submit(script(fails, "torchrun", nodes=2, most_workers=4, least_workers=4))
    hangs = '[ "$RANK" != 1 ] || exit 78; trap "" TERM USR2; while :; do sleep 0.1; done'
    hanging = script(hangs, "torchrun", nodes=2, most_workers=4, least_workers=4).replace("--wait=60", "--wait=3")
    hanging = slurm.submit(hanging)
    says = 'printf "given %s\\n" "$1"'
    good = slurm.submit(script(says, "torchrun", most_workers=2, least_workers=2, overrides=("a=$$ ${rank}",)))
    assert slurm.wait(failing)["ExitCode"] == "65:0", slurm.output(failing)
    ended = slurm.wait(hanging)
    assert (ended["ExitCode"], ended["Restarts"]) == ("78:0", "0"), slurm.output(hanging)
    assert slurm.wait(good)["ExitCode"] == "0:0", slurm.output(good)
    assert slurm.output(good).count("given a=$$ ${rank}\n") == 2
    assert slurm.leftovers(failing) + slurm.leftovers(good) + slurm.leftovers(hanging) == []
    assert not list(storage.glob(".rl-*"))


@pytest.mark.parametrize("launcher", ["ray", "torchrun"])
def test_a_notice_saves_requeues_and_the_next_life_finishes(
    slurm: Any, script: Callable[..., str], launcher: Launcher
) -> None:
    job = slurm.submit(script(THEN_FINISHES, launcher, nodes=2))
    slurm.wait_for_output("training", job)
    slurm("scancel", "--signal=USR2", "--batch", job)
    ended = slurm.wait(job)
    output = slurm.output(job)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "1"), output
    assert "saved" in output, output
    assert output.index("saved") < output.index("exit code 75: requeued; restart 1") < output.index("finishing")
    assert slurm.leftovers(job) == []


@pytest.mark.parametrize("launcher", ["ray", "torchrun"])
def test_a_cancelled_job_saves_and_never_comes_back(slurm: Any, script: Callable[..., str], launcher: Launcher) -> None:
    job = slurm.submit(script(SAVES_WHEN_TOLD, launcher, nodes=2))
    slurm.wait_for_output("training", job)
    slurm("scancel", job)
    ended = slurm.wait(job)
    output = slurm.output(job)
    assert ended["JobState"] == "CANCELLED", output
    assert "saved" in output
    assert "not requeued" in output
    assert slurm.leftovers(job) == []
    time.sleep(1)
    assert slurm.job(job)["JobState"] == "CANCELLED"


@pytest.mark.parametrize(("launcher", "runtime"), [("ray", "apptainer"), ("torchrun", "apptainer"), ("ray", "pyxis")])
def test_everything_that_needs_the_launcher_runs_in_the_image_with_the_variables_of_the_profile(
    slurm: Any,
    script: Callable[..., str],
    stand_ins: Path,
    tmp_path: Path,
    launcher: Launcher,
    runtime: Literal["apptainer", "pyxis"],
) -> None:
    log, storage = tmp_path / "image.log", tmp_path / "my runs"
    site = {
        "venv": None,
        "container": Container(runtime=runtime, image="/an/image"),
        "environment": {"PATH": f"{stand_ins / runtime}:{stand_ins / 'bin'}:/usr/bin:/bin", "IMAGE_LOG": str(log)},
        "network": Network(environment={"SITE": "profile"}),
        "sbatch": ("--export=NONE",),
    }
    num_calls = {"ray": 3, "torchrun": 2}[launcher]  # two nodes, and the driver
    driver = f'until [ "$(grep -c "bound.*my runs" "$IMAGE_LOG")" = {num_calls} ]; do sleep 0.1; done\n'
    driver += 'echo "sees $SITE $LAUNCHER_SUBMISSION $OMP_NUM_THREADS $RAY_ADDRESS"; exit 76'
    job = slurm.submit(script(driver, launcher, site, nodes=2, storage=str(storage), max_requeues=0))
    assert slurm.wait(job)["ExitCode"] == "76:0", slurm.output(job)
    assert "cluster.max_requeues allows 0 restarts after faults" in slurm.output(job)  # says the record
    assert log.read_text().count(f"bound {storage}:{storage}\n") == num_calls + 1  # the record is asked in the image
    assert log.read_text().count("imported\n") == (2 if runtime == "pyxis" else 0)  # once on a node
    seen = [line.split()[1:] for line in slurm.output(job).splitlines() if line.startswith("sees")]
    assert len(seen) == {"ray": 1, "torchrun": 2}[launcher]
    for site_value, submission, threads, address in seen:
        assert (site_value, submission) == ("profile", f"slurm-{job}")
        assert threads == ("1" if launcher == "torchrun" else "image")  # Ray sets the threads of its workers itself
        assert (address != "image") is (launcher == "ray")


def test_variables_of_the_shell_that_submits_do_not_change_the_job(slurm: Any, script: Callable[..., str]) -> None:
    shell = (  # that of an outer job
        "SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=3 SLURM_RESTART_COUNT=20 SLURM_GRES=gpu:1 SLURM_GPUS_PER_NODE=1 "
        "SLURM_MEM_PER_CPU=99999 RANK=0 WORLD_SIZE=9 MASTER_ADDR=nowhere MASTER_PORT=1 NCCL_SOCKET_IFNAME=none "
        "SETTINGS=false INSIDE=false HOSTS=nowhere"
    )
    file = slurm.jobs_folder / "from-a-job.sh"
    seen = 'echo "sees ${NCCL_SOCKET_IFNAME-} $WORLD_SIZE $LAUNCHER_SUBMISSION"; [ "$RANK" != 0 ] || exit 75'
    file.write_text(script(seen, "torchrun", nodes=2, max_requeues=1))
    job = slurm("env", *shell.split(), "sbatch", "--parsable", str(file)).strip()
    ended = slurm.wait(job)
    output = slurm.output(job)
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "1"), output
    assert output.count(f"sees  2 slurm-{job}\n") == 4, output
    assert "ignored variables of the environment: " in output


def test_spare_nodes_are_part_of_the_cluster(slurm: Any, script: Callable[..., str]) -> None:
    job = slurm.submit(script(SAVES_WHEN_TOLD, profile={"spare_nodes": 2}, max_requeues=0))
    slurm.wait_for_output("training", job)
    path = f"/rl-{job}-0/token"
    for name in slurm.nodes:
        assert len(slurm.hosts[name].run("bash", "-c", f"until cat {slurm.scratch}{path}; do sleep 0.1; done")) >= 64
    slurm("scancel", "--signal=USR2", "--batch", job)
    assert slurm.wait(job)["ExitCode"] == "75:0", slurm.output(job)
    assert slurm.leftovers(job) == []


def test_two_jobs_share_a_node(slurm: Any, script: Callable[..., str]) -> None:
    driver = 'echo "at $RAY_ADDRESS"; trap "exit 0" USR2; while :; do sleep 0.1; done'
    on_one = f"--nodelist={slurm.nodes[0]}"
    jobs = [slurm.submit(script(driver), on_one) for _ in range(2)]
    addresses = {slurm.wait_for_output("at 127", job).partition("at 127")[2].split()[0] for job in jobs}
    assert len(addresses) == 2
    slurm("scancel", "--signal=USR2", "--batch", jobs[0])
    assert slurm.wait(jobs[0])["ExitCode"] == "0:0"
    assert slurm.job(jobs[1])["JobState"] == "RUNNING"  # the end of one is not the end of the other
    slurm("scancel", "--signal=USR2", "--batch", jobs[1])
    assert slurm.wait(jobs[1])["ExitCode"] == "0:0"
    assert slurm.leftovers(jobs[0]) + slurm.leftovers(jobs[1]) == []


def test_the_token_is_in_a_closed_folder_and_nowhere_else(slurm: Any, script: Callable[..., str]) -> None:
    driver = (
        'stat -c "mode %a" "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")"; echo "is $RAY_AUTH_TOKEN_PATH"\n'
        "trap 'exit 0' USR2; echo training; while :; do sleep 0.1; done"
    )
    job = slurm.submit(script(driver, nodes=2))
    output = slurm.wait_for_output("training", job)
    assert [line for line in output.splitlines() if line.startswith("mode")] == ["mode 600", "mode 700"]
    path = next(line.removeprefix("is ") for line in output.splitlines() if line.startswith("is "))
    first, second = (slurm.hosts[name] for name in slurm.nodes[:2])
    token = first.run("cat", path)
    assert len(token) == 64
    assert second.run("cat", path) == token
    for host in slurm.hosts.values():
        assert token not in "\n".join(host.processes())
    for host in (first, second):  # nor in the environment of anything that the job started
        assert token.encode() not in host.run("bash", "-c", "cat /proc/[0-9]*/environ", check=False).encode()
    slurm("scancel", "--signal=USR2", "--batch", job)
    slurm.wait(job)
    assert token not in slurm.outputs()
    assert not [file for file in slurm.root.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]


def test_what_sbatch_would_refuse_is_known_before(slurm: Any, script: Callable[..., str]) -> None:
    file = slurm.jobs_folder / "dry.sh"
    file.write_text(script("exit 0", profile={"sbatch": ("--comment=a-comment",)}))
    assert "to start at" in slurm("sbatch", "--test-only", str(file))
    file.write_text(script("exit 0", profile={"partition": "nowhere"}))
    assert "invalid partition" in slurm("sbatch", "--test-only", str(file), check=False)


def test_a_preempted_job_saves_gives_way_and_comes_back(slurm: Any, script: Callable[..., str]) -> None:
    node = f"--nodelist={slurm.nodes[2]}"
    low = slurm.submit(script(THEN_FINISHES, cpus_per_worker=8), node)
    slurm.wait_for_output("training", low)
    high = slurm.submit(script("exit 0", cpus_per_worker=8), node, "--partition=urgent")
    assert slurm.wait(high)["ExitCode"] == "0:0"
    ended = slurm.wait(low)
    output = slurm.output(low)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "1"), output
    assert "saved" in output, output
    assert output.index("saved") < output.index("finishing")
    assert slurm.leftovers(low) == []


def test_restarts_are_capped_but_for_those_after_progress(slurm: Any, slow_jobs: dict[str, str]) -> None:
    ended = slurm.wait(slow_jobs["long"])  # has max_requeues 1, too
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "2"), slurm.output(slow_jobs["long"])
    job = slow_jobs["capped"]
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "76:0", "2"), slurm.output(job)
    assert "cluster.max_requeues allows 2 restarts after faults" in slurm.output(job)


def test_one_task_of_an_array_is_requeued_alone(slurm: Any, slow_jobs: dict[str, str]) -> None:
    job = slow_jobs["array"]
    for task in (0, 1):
        slurm.wait_for_output("exit code 0", f"{job}_{task}")
    first, second = slurm.output(f"{job}_0"), slurm.output(f"{job}_1")
    assert first.count("overrides: seed=7 name=s7 place=ray") == 2
    assert second.count("overrides: seed=8 name=s8 place=ray") == 1


def test_a_driver_that_ignores_the_notice_is_killed_in_time_and_requeued(slurm: Any, slow_jobs: dict[str, str]) -> None:
    job = slow_jobs["deaf"]
    ended = slurm.wait(job)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "1"), slurm.output(job)
    assert "killed: still running 6 s after the notice" in slurm.output(job)
    assert slurm.leftovers(job) == []


def test_the_time_limit_saves_requeues_and_the_next_life_finishes(slurm: Any, slow_jobs: dict[str, str]) -> None:
    job = slow_jobs["limited"]
    ended = slurm.wait(job)
    output = slurm.output(job)
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "1"), output
    assert "saved" in output, output
    assert output.index("saved") < output.index("exit code 75: requeued; restart 1") < output.index("finishing")
    assert slurm.leftovers(job) == []


def test_a_lost_node_ends_neither_the_job_nor_its_step(slurm: Any, script: Callable[..., str]) -> None:
    driver = 'echo training; trap "exit 0" USR2; while :; do sleep 0.1; done'
    job = slurm.submit(script(driver, nodes=2), f"--nodelist={slurm.nodes[0]},{slurm.nodes[1]}")
    slurm.wait_for_output("training", job)
    slurm.kill_node(slurm.nodes[1])
    deadline = time.monotonic() + 90
    while slurm.job(job)["NumNodes"] != "1":
        assert time.monotonic() < deadline, slurm.job(job)
        time.sleep(0.3)
    assert slurm.job(job)["JobState"] == "RUNNING"
    slurm("scancel", "--signal=USR2", "--batch", job)
    ended = slurm.wait(job)
    slurm.boot_node(slurm.nodes[1])
    assert (ended["ExitCode"], ended["Restarts"]) == ("0:0", "0"), slurm.output(job)
    assert slurm.leftovers(job) == []


def test_nothing_is_left_on_any_node(slurm: Any, slow_jobs: dict[str, str], scratch: Path) -> None:
    for job in slow_jobs.values():
        slurm.wait(job)
    slurm.wait_for_nodes()
    for name in slurm.nodes:
        assert slurm.hosts[name].run("ls", "-A", str(scratch)) == ""
        own = ("sleep 3600", "slurmd ", "bash -c cd ")
        strangers = [line for line in slurm.hosts[name].processes() if not line.startswith(own)]
        assert [line for line in strangers if "the host itself" not in line] == []
