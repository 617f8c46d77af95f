"""What a process imports before the first step. Each of these modules takes a tenth of a second or more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.exit_codes import ExitCode
from launcher.ray_backend.spares import EARLY

ROOT = Path(__file__).parents[2]
# Needed by some runs only, or after the first step.
OPTIONAL = (
    *("tensorboard", "torch.utils.tensorboard", "wandb", "deepspeed", "timm", "matplotlib", "plotext", "textual"),
    *("nvidia.dali", "onnx", "huggingface_hub", "torchvision"),
    "torch._dynamo",  # torch's optimizers import it in their first step; idle processes import it before that
)


def imported(*modules: str, before: str = "", after: str = "") -> set[str]:
    """What a process has imported after `modules`."""
    code = f"import sys, json\n{before}\nimport {', '.join(modules)}\n{after}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_imports_neither_torch_nor_ray_before_it_has_read_the_config() -> None:
    assert not imported("launcher.train") & {"torch", "numpy", "ray", "pandas", "pyarrow"}


def test_the_command_starts_its_first_process_before_it_imports_what_reads_the_config(tmp_path: Path) -> None:
    """And ends it if the config is wrong. The process imports PyTorch meanwhile."""
    (tmp_path / "config.yaml").write_text("place: local\nno_such_key: 1\n")
    code = f"""
import json, os, runpy, subprocess, sys
known = {{}}
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        known.update(modules=sorted(sys.modules), process=self)
subprocess.Popen = Popen
sys.argv[1:] = [{str(tmp_path / "config.yaml")!r}]
try:
    runpy.run_module("launcher.train", run_name="__main__")
except SystemExit as error:
    print(json.dumps([known["modules"], known["process"].returncode, error.code]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    modules, ended, exit_code = json.loads(done.stdout.splitlines()[-1])
    assert not set(modules) & {"yaml", "pydantic", "launcher.config.load", "launcher.config.schema"}
    assert (ended, exit_code) == (-signal.SIGKILL, ExitCode.CONFIG)


@pytest.mark.parametrize(
    "module", ["launcher.local.supervisor", "launcher.ray_backend.run", "launcher.ray_backend.driver"]
)
def test_the_parent_of_workers_does_not_import_torch(module: str) -> None:
    assert not imported(module) & {"torch", "torchvision"}


def test_the_driver_connects_to_ray_before_it_imports_ray_train() -> None:
    assert not imported("launcher.ray_backend.run") & {"ray.train", "pandas", "pyarrow"}


def test_rays_controller_does_not_import_torch() -> None:
    """It loads the settings of the process group, and the callback that asks the driver."""
    modules = ("launcher.ray_backend.process_group", "launcher.ray_backend.handover", "launcher.ray_backend.trainer")
    assert not imported(*modules, "launcher.ray_backend.worker") & {"torch", "torchvision"}


def test_a_worker_imports_nothing_that_its_first_step_does_not_need() -> None:
    assert not imported("launcher.worker.train", "launcher.ray_backend.worker") & set(OPTIONAL)


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`launcher` with these arguments in a Python that does not have the package `missing`."""
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {list(arguments)!r}; import runpy; " + (
        "runpy.run_module('launcher', run_name='__main__')"
    )
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "RAY_ADDRESS")}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)


def test_doctor_reports_that_torch_cannot_be_imported() -> None:
    done = without("torch", "doctor", "configs/digits_cpu.yaml", "--quick", "--json")
    assert done.returncode == ExitCode.UNAVAILABLE, done.stderr
    findings = json.loads(done.stdout)["findings"]
    found = [one["found"] for one in findings if one["name"] == "packages" and one["status"] == "fail"]
    assert found[-1].startswith("storage, data and GPUs cannot be checked: ModuleNotFoundError: ")
    assert {"CPUs", "open files", "ports"} <= {one["name"] for one in findings}


def test_a_verb_that_needs_torch_says_so() -> None:
    done = without("torch", "prepare", "show", "configs/digits_cpu.yaml")
    needs = "resnet-launcher: needs torch, which is not installed here. Allowed: install it with: pip install torch"
    assert (done.returncode, done.stderr) == (ExitCode.CONFIG, f"error: {needs}\n")


def test_an_idle_process_initialises_no_gpu() -> None:
    """Ray sets CUDA_VISIBLE_DEVICES later. A build for CUDA is pretended, as modules look for one when imported."""
    before = """
import torch
def initialises(*arguments, **named):
    raise SystemExit("a GPU is initialised")
torch.cuda._lazy_init = torch._C._cuda_init = torch._C._cuda_getDeviceCount = initialises
torch.cuda._is_compiled = lambda: True
"""
    assert "launcher.worker.train" in imported(*EARLY, before=before)
