"""Processes for Ray's workers that are started before they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from launcher.ray_backend import spares
from launcher.ray_backend.cluster import Node

GB = 10**9


def node(name: str, slots: int, memory_bytes: float = 64 * GB) -> Node:
    return Node(name, name, name, slots, slots, memory_bytes)


def test_a_first_attempt_fills_one_node_after_the_other() -> None:
    nodes = [node("a", 2), node("b", 8), node("c", 8)]
    assert spares.for_first_attempt(nodes, 10) == {"b": 8, "c": 2, "a": 0}
    assert spares.for_first_attempt(nodes, 18) == {"b": 8, "c": 8, "a": 2}


def test_every_worker_has_an_idle_process_on_its_node() -> None:
    nodes = [node("a", 8), node("b", 8), node("c", 8)]
    assert spares.for_next_attempt(nodes, {"a": 8, "b": 2, "gone": 8}, None) == {"a": 8, "b": 2}


def test_without_enough_memory_a_node_has_no_idle_process() -> None:
    nodes = [node("a", 2, 10 * GB), node("b", 2, 20 * GB)]
    assert spares.for_next_attempt(nodes, {"a": 2, "b": 2}, None) == {"a": 0, "b": 2}


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (1, 1), (16, 2)])
def test_the_config_decides_how_many_a_node_has_at_most(most: int, expected: int) -> None:
    assert spares.for_next_attempt([node("a", 2, 1 * GB)], {"a": 2}, most) == {"a": expected}


def run_hook(folder: Path, modules: tuple[str, ...], *, marked: bool, show: str = "", **variables: str) -> str:
    """Run the hook in a process that cannot import this project; returns `show`, or what was imported of `modules`."""
    hook = folder / "hook"
    hook.write_bytes(cloudpickle.dumps(spares.job_runtime_env(3, modules)["worker_process_setup_hook"]))
    code = f"""
import sys
sys.modules["launcher"] = sys.modules["resnet_dist"] = None
import ray._raylet
ray._raylet.maybe_initialize_job_config = lambda: None  # needs a connection
from ray import cloudpickle
cloudpickle.loads(open({str(hook)!r}, "rb").read())()
print({show or f"[name for name in {modules!r} if sys.modules.get(name)]"})
"""
    mark = spares.worker_runtime_env()["env_vars"] if marked else {}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {**mark, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_hook_imports_only_in_workers(tmp_path: Path) -> None:
    assert run_hook(tmp_path, ("sndhdr", "nntplib"), marked=True) == "['sndhdr', 'nntplib']"
    assert run_hook(tmp_path, ("sndhdr", "nntplib"), marked=False) == "[]"


def test_a_module_that_a_node_lacks_does_not_end_the_process(tmp_path: Path) -> None:
    assert run_hook(tmp_path, ("sndhdr", "launcher.worker.train", "nntplib"), marked=True) == "['sndhdr']"


def test_torch_has_as_many_threads_as_ray_would_give_it(tmp_path: Path) -> None:
    """Ray sets OMP_NUM_THREADS when an actor is placed; torch reads it when it is imported."""
    show = '__import__("os").environ.get("OMP_NUM_THREADS")'
    assert run_hook(tmp_path, ("sndhdr",), marked=True, show=show) == "3"
    assert run_hook(tmp_path, ("sndhdr",), marked=True, show=show, OMP_NUM_THREADS="5") == "5"
    assert run_hook(tmp_path, ("sndhdr",), marked=False, show=show) == "None"


def test_a_version_of_ray_without_what_is_used_here_starts_no_idle_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacks() -> dict[str, str]:
        raise ImportError("cannot import name 'get_env_vars_to_propagate'")

    monkeypatch.setattr(spares, "_from_ray_train", lacks)
    spares.start({"a": 1})
    assert "no idle processes are started: ImportError: cannot import name" in caplog.text
