"""Functions of the job script, run under bash with the values that they read."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[4] / "cluster" / "templates"


def functions(*names: str) -> str:
    """The text of functions of the templates."""
    text = "".join(file.read_text() for file in sorted(TEMPLATES.glob("slurm_*.sh")))
    found = {match[1]: match[0] for match in re.finditer(r"^(\w+)\(\) \{\n.*?^\}$", text, re.DOTALL | re.MULTILINE)}
    found |= {match[1]: match[0] for match in re.finditer(r"^(\w+)\(\) \{.*\}$", text, re.MULTILINE)}
    return "\n".join(found[name] for name in names)


def run(script: str, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        ["bash", "-uc", script], env=environment, capture_output=True, text=True, check=True, timeout=30
    ).stdout


@pytest.mark.parametrize(
    ("child", "code"),
    [
        ('trap "exit 75" USR2; echo ready; while :; do :; done', 75),  # at the same moment
        ('trap "sleep 0.3; exit 75" USR2; echo ready; while :; do sleep 0.05; done', 75),
        ('trap "" USR2; echo ready; sleep 0.6; exit 3', 3),
        ("echo ready; sleep 5", 140),  # dies of the signal
        ('trap "" USR2; echo ready; exit 0', 0),
    ],
)
def test_the_exit_code_of_the_child_survives_signals(child: str, code: int, tmp_path: Path) -> None:
    script = f"""
        exec 8<> <(:); num_signals=0; trap 'num_signals=$((num_signals + 1))' USR2
        {functions("pause", "run_child", "child_pid", "wait_for_child")}
        JOB_DIR={tmp_path}
        run_child bash -c '{child}' &
        child_shell=$!
        driver=$(child_pid)
        wait_for_child
        echo "$?"
    """
    command = ["bash", "-uc", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            os.killpg(process.pid, signal.SIGUSR2)  # to all of them, as SLURM and torchrun may do
            time.sleep(0.1)
        assert process.stdout.read() == f"{code}\n"


def test_a_background_shell_that_is_killed_does_not_hang_the_job(tmp_path: Path) -> None:
    script = f"""
        exec 8<> <(:)
        {functions("pause", "run_child", "child_pid", "wait_for_child")}
        JOB_DIR={tmp_path}
        run_child sleep 5 &
        child_shell=$!
        driver=$(child_pid)
        kill -KILL "$child_shell" "$driver"
        wait_for_child
        echo "$?"
    """
    assert run(script) == "76\n"


def test_ports_that_are_taken_are_passed_over() -> None:
    script = functions("listens", "free_ports") + "\nfree_ports 127.0.0.1"
    free = int(run(script, SLURM_JOB_ID="4117"))
    with socket.create_server(("127.0.0.1", free + 9)):
        other = int(run(script, SLURM_JOB_ID="4117"))
    assert free >= 10000 + 17 * 100
    assert other >= free + 100


def test_the_next_job_looks_elsewhere() -> None:
    script = functions("listens", "free_ports") + "\nfree_ports 127.0.0.1"
    assert run(script, SLURM_JOB_ID="1041") != run(script, SLURM_JOB_ID="1042")


def test_the_address_is_the_one_that_the_other_side_sees() -> None:
    script = functions("address_towards") + "\nINSIDE=(); address_towards 127.0.0.1"
    assert run(script) == "127.0.0.1\n"


@pytest.mark.parametrize(
    ("codes", "code", "notified"),
    [
        (["0", "0"], 0, "false"),
        (["75", "75"], 75, "true"),
        (["75", "76"], 76, "false"),
        (["75", "76"], 75, "true"),  # killed while it was saving
        (["76", "78"], 78, "false"),  # a code that must not be retried wins
        (["1", "65"], 65, "false"),
        (["79", "143"], 79, "false"),
        (["64"], 64, "true"),  # the other one was killed before it had a code
        (["137", "0"], 76, "false"),  # killed: out of memory, perhaps
        (["135", "0"], 76, "false"),  # a bus error: /dev/shm is full
        (["0"], 76, "false"),  # the other one wrote no code
        (["1", "76"], 1, "false"),
        ([], 69, "false"),  # none was started
        ([], 75, "true"),
        (["130", "75"], 130, "false"),
    ],
)
def test_the_exit_code_of_the_job_is_that_of_its_workers(
    codes: list[str], code: int, notified: str, tmp_path: Path
) -> None:
    for rank, text in enumerate(codes):
        (tmp_path / f"{rank}").write_text(f"{text}\n")
    script = functions("job_code") + "\njob_code; echo $?"
    found = run(script, CODES=str(tmp_path), NUM_NODES="2", WORKERS_PER_NODE="1", notified=notified)
    assert found == f"{code}\n"


def test_only_the_variables_that_describe_the_job_are_kept_of_what_sbatch_passes_on() -> None:
    kept = {
        *("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_ARRAY_TASK_ID", "SLURM_NODEID", "SLURMD_NODENAME"),
        *("PATH", "HOME", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RAYON_NUM_THREADS", "MASTER"),
    }
    named = {
        *(
            "SLURM_WAIT",
            "SLURM_GRES",
            "SLURM_KILL_BAD_EXIT",
            "SRUN_CONTAINER",
            "SBATCH_TIMELIMIT",
            "PYXIS_CONTAINER_ENV",
        ),
        *("RAY_ADDRESS", "NCCL_IB_DISABLE", "GLOO_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NNODES"),
        *("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"),
    }
    silent = {"SLURM_MEM_PER_NODE", "SLURM_GPUS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_EXPORT_ENV"}
    script = functions("log", "drop_variables") + "\ndrop_variables; compgen -e"
    before = dict.fromkeys(kept | named | silent, "1") | {"PATH": os.environ["PATH"]}
    first, *after = run(script, **before).splitlines()
    assert kept <= set(after)
    assert not (named | silent) & set(after)
    listed = set(first.partition(": ")[2].partition(". ")[0].split())
    assert listed == named


MODULE = {
    # Lmod fails with 1. Tcl modules of old fail with 0.
    "lmod": """module() { case $2 in
        missing) echo "Lmod has detected the following error: missing" >&2; return 1 ;;
        nccl | alias) export LOADEDMODULES="${LOADEDMODULES:+$LOADEDMODULES:}nccl/2.29" ;; esac; }""",
    "tcl": """module() { case $1-$2 in
        load-missing) echo "ModuleCmd_Load.c: Unable to locate a modulefile for missing" >&2 ;;
        load-nccl) export LOADEDMODULES=nccl/2.29 ;; load-*) ;; is-loaded-other) ;; *) return 1 ;; esac; }""",
}


@pytest.mark.parametrize(("kind", "variable"), [("lmod", "LMOD_PKG"), ("tcl", "MODULESHOME")])
def test_a_module_that_does_not_load_stops_the_job_with_its_name(kind: str, variable: str, tmp_path: Path) -> None:
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(MODULE[kind])
    script = f"set -uo pipefail\n{functions('log', 'load_modules', 'is_loaded')}\n"
    environment = {"PATH": os.environ["PATH"], "SLURMD_NODENAME": "n1", variable: str(tmp_path)}

    def loaded(*modules: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-c", script + 'load_modules "$@"; echo "has $LOADEDMODULES"', "job", *modules],
            env=environment | more, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout

    assert loaded("nccl") == (0, "has nccl/2.29\n")
    assert loaded("nccl", LOADEDMODULES="cuda/13.0:nccl/2.29")[0] == 0  # by the shell that submitted the job
    code, printed = loaded("nccl", "missing", "cuda")
    assert code == 78
    assert "n1: module missing does not load" in printed
    assert "has " not in printed


def test_a_node_without_modules_says_so() -> None:
    script = functions("log", "load_modules", "is_loaded") + "\nload_modules cuda"
    done = subprocess.run(
        ["bash", "-uc", script],
        env={"PATH": os.environ["PATH"], "SLURMD_NODENAME": "n1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "module cuda does not load" in done.stdout) == (78, True)


class Controller:
    """squeue, scontrol and the run's record, with the given answers, one for each call; the last one stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def program(self, name: str, *answers: str) -> None:
        """Each answer is a bash command: its output and exit code."""
        calls = self.folder / f"{name}-calls"
        lines = "\n".join(f"[ $n -gt {number} ] || {{ {answer}; exit; }}" for number, answer in enumerate(answers, 1))
        count = f"n=$(($(cat {calls} 2> /dev/null) + 1)); echo $n > {calls}"
        (self.folder / name).write_text(f"#!/bin/bash\n{count}\n{lines}\n{answers[-1]}\n")
        (self.folder / name).chmod(0o755)

    def finish(self, code: int, **variables: str) -> tuple[int, str]:
        """The exit code and the output of `finish CODE`."""
        parts = ("log", "finish", "requeue", "no_answer", "is_silence", "decide_requeue", "pause", "on_usr2", "on_term")
        script = f"""
            {functions(*parts)}
            pause() {{ ! $terminated; }}
            remove_folder() {{ :; }}
            notified=false terminated=${{terminated:-false}} driver='' step='' timer='' JOB=7 IN_IMAGE=() INSIDE=(env)
            trap on_term TERM
            export SHELL_PID=$$
            finish {code}
        """
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "RUN": "/runs/x",
            "MAX_REQUEUES": "3",
            "RESTARTS": "1",
        }
        done = subprocess.run(
            ["bash", "-uc", script], env=environment | variables, capture_output=True, text=True, timeout=30
        )
        assert done.stderr == ""
        return done.returncode, done.stdout


REQUEUES = 'kill -TERM "$SHELL_PID"'  # SLURM ends the shell
SILENT = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    made = Controller(tmp_path)
    made.program("python", "echo 76 requeue restart 2")
    made.program("squeue", "echo RUNNING")
    made.program("scontrol", REQUEUES)
    return made


def test_requeued_is_said_when_it_is(controller: Controller) -> None:
    code, printed = controller.finish(76)
    assert code == 76
    assert printed.endswith("exit code 76: requeued; restart 2\n")


def test_a_controller_that_does_not_answer_is_asked_again(controller: Controller) -> None:
    controller.program("squeue", SILENT, "exit 1", "echo RUNNING", SILENT, "echo RUNNING")
    controller.program("scontrol", SILENT, REQUEUES)
    _, printed = controller.finish(76)
    assert printed.count("squeue: no answer from SLURM") == 3
    assert printed.count("scontrol requeue: no answer from SLURM") == 1
    assert printed.endswith("exit code 76: requeued; restart 2\n")


@pytest.mark.parametrize(
    "answer", ["echo COMPLETING", "true", "echo slurm_load_jobs error: Invalid job id specified; exit 1"]
)
def test_a_job_that_slurm_is_ending_is_not_requeued(controller: Controller, answer: str) -> None:
    controller.program("squeue", answer)
    controller.program("scontrol", "touch called")
    code, printed = controller.finish(76)
    assert code == 76
    assert "SLURM is ending the job" in printed
    assert not (controller.folder / "scontrol-calls").exists()
    assert not controller.finish(75, terminated="true")[1].count("requeued;")


def test_a_requeue_that_is_refused_is_not_claimed(controller: Controller) -> None:
    controller.program("scontrol", 'echo "Requested operation is presently disabled for job 7" >&2; exit 1')
    code, printed = controller.finish(76)
    assert code == 76
    assert "exit code 76: not requeued; Requested operation is presently disabled for job 7. Submit" in printed
    assert (controller.folder / "scontrol-calls").read_text() == "1\n"


def test_the_record_of_the_run_decides(controller: Controller) -> None:
    controller.program("python", "echo 65 end the data is corrupt")
    code, printed = controller.finish(76)
    assert code == 65
    assert printed.endswith("exit code 65: not requeued; the data is corrupt\n")
    assert not (controller.folder / "scontrol-calls").exists()


def test_without_the_record_slurms_count_of_restarts_decides(controller: Controller) -> None:
    controller.program("python", "exit 1")
    assert "requeued; restart 2 of at most 3; the run's record cannot be read" in controller.finish(76)[1]
    assert (
        "not requeued; cluster.max_requeues allows 3 restarts; the run's record cannot be read"
        in controller.finish(76, RESTARTS="3")[1]
    )


def test_other_codes_ask_nobody(controller: Controller) -> None:
    code, printed = controller.finish(79)
    assert code == 79
    assert printed.endswith("exit code 79\n")
    assert not list(controller.folder.glob("*-calls"))


def test_a_folder_that_is_there_already_is_not_used(tmp_path: Path) -> None:
    script = functions("log", "make_folder") + '\nmake_folder; echo "never"'
    done = subprocess.run(
        ["bash", "-uc", script], env={"PATH": os.environ["PATH"], "JOB_DIR": str(tmp_path), "SLURMD_NODENAME": "n1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 69
    assert "never" not in done.stdout
    make = functions("log", "make_folder") + "\nmake_folder"
    run(make, JOB_DIR=str(tmp_path / "new"), SLURMD_NODENAME="n1")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
