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
    ("codes", "worst"),
    [
        (["0", "0"], 0),
        (["75", "75"], 75),
        (["75", "76"], 76),
        (["76", "65"], 165),  # a code that must not be retried wins
        (["65", "143"], 165),
        (["137", "0"], 76),  # killed: out of memory, perhaps
        (["0"], 76),  # the other one wrote no code
        ([], 169),  # none was started
        (["1", "130"], 230),
    ],
)
def test_a_node_has_one_exit_code(codes: list[str], worst: int, tmp_path: Path) -> None:
    for rank, code in enumerate(codes):
        (tmp_path / f"code-{rank}").write_text(f"{code}\n")
    script = functions("node_exit_code") + "\nnode_exit_code; echo $?"
    assert run(script, JOB_DIR=str(tmp_path), WORKERS_PER_NODE="2") == f"{worst}\n"


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
