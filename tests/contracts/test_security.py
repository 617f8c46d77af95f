"""Security: secrets are not written anywhere, files cannot run code or leave their folder, and others cannot read a
token."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import launcher

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "resnet_dist", "cluster")

# Variables of a cloud, a tracker and a database, and some with prefixes whose variables are recorded.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "sw0rdfish-aws",
    "WANDB_API_KEY": "sw0rdfish-wandb",
    "GITHUB_TOKEN": "sw0rdfish-github",
    "DATABASE_PASSWORD": "sw0rdfish-database",
    "NCCL_SECRET": "sw0rdfish-nccl",
    "OMP_API_KEY": "sw0rdfish-omp",
    "MY_CREDENTIALS": "sw0rdfish-mine",
    "PAGER_URL": "http://127.0.0.1:9/hook/sw0rdfish-pager",  # no server listens there
}
SECRET = "sw0rdfish"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small(tmp_path: Path, write_images: Callable[[Path], Path]) -> dict[str, Any]:
    """A config of three steps."""
    return {
        "schema": 1,
        "name": "small",
        "storage": str(tmp_path / "runs"),
        "place": "local",
        "duration": "3 steps",
        "model": {"name": "resnet20", "num_classes": 2},
        "data": {"root": str(write_images(tmp_path / "images")), "resolution": 8, "num_samples": 8},
        "batch": {"size": 4},
        "schedule": {"peak_lr": 0.1},
        "cluster": {"walltime": "01:00:00"},
        "log": {"every_steps": 1},
        "notify": {"webhook_env": "PAGER_URL"},
    }


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_the_secret(files: dict[str, bytes]) -> list[str]:
    return [name for name, content in files.items() if SECRET.encode() in content]


def command_lines() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended


def test_a_run_directory_contains_no_secret(secrets: None, small: dict[str, Any], tmp_path: Path) -> None:
    launcher.fit(small)
    files = written(tmp_path / "runs")
    assert {"small/environment.json", "small/metrics.jsonl", "small/logs/attempt-1/rank-0.log"} <= files.keys()
    assert with_the_secret(files) == []


def test_incident_logs_output_and_processes_of_a_failed_run_contain_no_secret(
    secrets: None, small: dict[str, Any], tmp_path: Path
) -> None:
    from launcher.config import yaml_text

    (tmp_path / "broken_model_xyz.py").write_text("def build(**_):\n    raise RuntimeError('it is broken')\n")
    small["model"]["name"] = "broken_model_xyz:build"
    small["faults"] = {"max_failures": 1}
    file = tmp_path / "small.yaml"
    file.write_text(yaml_text.dump(small))
    command = [sys.executable, "-m", "launcher.train", str(file)]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    shown: set[str] = set()
    while process.poll() is None:
        shown |= set(command_lines())
        time.sleep(0.1)
    assert process.stdout is not None
    with process.stdout as output:
        printed = output.read()
    assert process.returncode == 1
    assert any("launcher.local.child" in line for line in shown)  # the processes of the run are among them
    assert [line for line in shown if SECRET in line] == []
    files = written(tmp_path / "runs") | {"output": printed}
    assert {"small/incidents/attempt-1/summary.txt", "small/FATAL", "small/logs/attempt-2/rank-0.log"} <= files.keys()
    assert with_the_secret(files) == []


@pytest.mark.parametrize(
    "command",
    [
        ["render", "slurm"],
        ["render", "slurm", "--launcher", "torchrun", "place=auto"],
        ["render", "kubernetes", "--profile", "kubernetes-cpu"],
        ["submit", "slurm"],
        ["submit", "kubernetes", "--profile", "site.yaml"],
        ["submit", "ray", "--dry-run"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_rendered_and_submitted_text_contains_no_secret(
    secrets: None, small: dict[str, Any], tmp_path: Path, command: list[str]
) -> None:
    from launcher.config import yaml_text

    file = tmp_path / "small.yaml"
    file.write_text(yaml_text.dump(small))
    shipped = (ROOT / "cluster" / "profiles" / "kubernetes-cpu.yaml").read_text()
    (tmp_path / "site.yaml").write_text(shipped.replace("registry.example.com", "registry.site"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, answer in (("sbatch", "echo 7"), ("squeue", ":"), ("kubectl", ":")):
        calls = f'echo "$0 $*" >> {tmp_path}/called; cat >> {tmp_path}/called; {answer}\n'
        (programs / name).write_text(f"#!/bin/bash\n{calls}")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    place = [] if any(word.startswith("place=") for word in command) else ["place=auto"]
    full = [sys.executable, "-m", "launcher", *command[:2], str(file), *command[2:], *place]
    done = subprocess.run(full, capture_output=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr.decode()
    called = tmp_path / "called"
    assert called.exists() == (command[0] == "submit" and command[1] != "ray")
    files = {"output": done.stdout + done.stderr, "called": called.read_bytes() if called.exists() else b""}
    if (tmp_path / "runs").exists():
        files |= written(tmp_path / "runs")
    assert with_the_secret(files) == []


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the packages, and its file."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    yield str(file.relative_to(ROOT)), node


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def argument(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_nothing_from_storage_is_unpickled() -> None:
    """Pickles are read only from the processes of the same run, never from storage."""
    last_parts = {"load", "loads", "Unpickler", "read_pickle", "recv"}
    modules = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pandas")
    found = set()
    for file, call in calls():
        first, _, last = name_of(call).rpartition(".")
        if (first in modules and last in last_parts | {"open"}) or last in ("Unpickler", "read_pickle", "recv"):
            found.add((file, name_of(call)))
    assert found == {
        (
            "launcher/planning/measurement_worker.py",
            "pickle.loads",
        ),  # from the temporary folder that its parent has created
        (
            "launcher/ray_backend/handover.py",
            "cloudpickle.loads",
        ),  # between this run's driver and workers, through Ray
        ("launcher/inference/workers.py", "pickle.loads"),  # from the temporary folder that this process has created
        ("launcher/local/beside.py", "self._answers.recv"),  # from the pipe of its child
        ("launcher/local/child.py", "self._link.recv"),  # from the socket of its parent
        ("launcher/local/spares.py", "self.link.recv"),  # from the socket of its child
        ("launcher/study/pool.py", "self.answers.recv"),  # from the pipe of its child
        ("launcher/study/worker.py", "orders.recv"),  # from the pipe of its parent
    }


def test_no_reader_of_files_runs_code() -> None:
    for file, call in calls():
        name = name_of(call)
        if name == "torch.load":
            assert argument(call, "weights_only") == "True", file
        if name in ("np.load", "numpy.load"):
            assert argument(call, "allow_pickle") == "False", file
        if name in ("yaml.load", "yaml.load_all", "yaml.compose", "yaml.unsafe_load", "yaml.full_load"):
            assert argument(call, "Loader") in ("yaml.SafeLoader", "_Loader"), file
        assert name not in ("eval", "exec", "os.system", "os.popen"), file
        assert argument(call, "shell") in (None, "False"), file


def test_the_loader_of_configs_is_a_safe_loader() -> None:
    import yaml

    from launcher.config import yaml_source

    assert issubclass(yaml_source._Loader, yaml.SafeLoader)


def test_no_archive_is_unpacked() -> None:
    """Only Ray and the schedulers unpack archives."""
    unpacking = ("extractall", "extract", "unpack_archive")
    assert [(file, name_of(call)) for file, call in calls() if name_of(call).rpartition(".")[2] in unpacking] == []


def test_no_server_listens_on_all_interfaces() -> None:
    sources = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*"))]
    texts = {file: file.read_text() for file in sources if file.suffix in (".py", ".sh", ".yaml")}
    everywhere = re.compile(r"(?<![0-9.])0\.0\.0\.0(?![0-9./])")
    assert [str(file) for file, text in texts.items() if everywhere.search(text)] == []


@pytest.mark.parametrize("was_there", [False, True], ids=["new", "was open to everyone"])
def test_only_the_owner_can_read_the_token_file(tmp_path: Path, was_there: bool) -> None:
    token = tmp_path / ".ray" / "auth_token"
    if was_there:
        token.parent.mkdir()
        token.write_text("0" * 64)
        token.parent.chmod(0o755)
        token.chmod(0o644)
    code = "import os; os.umask(0); from launcher.ray_backend import environment; environment.set_up()"
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**environment, "HOME": str(tmp_path)})
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64


def test_only_the_owner_can_read_the_token_of_a_slurm_job(tmp_path: Path) -> None:
    """The lines of the script, with a umask that lets everyone read."""
    common = (ROOT / "cluster" / "templates" / "slurm_common.sh").read_text()
    ray = (ROOT / "cluster" / "templates" / "slurm_ray.sh").read_text()
    make_folder = next(line for line in common.splitlines() if line.startswith("make_folder()"))
    writes = [line.strip() for line in ray.splitlines() if '> "$JOB_DIR/token"' in line]
    assert writes
    for number, line in enumerate(writes):
        script = f"umask 0; token=secret; JOB_DIR={tmp_path}/job{number}; log() {{ :; }}\n{make_folder}\nmake_folder\n"
        subprocess.run(["bash", "-c", script + line], check=True)
        folder = tmp_path / f"job{number}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
