"""What is installed against what the config asks for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import pytest

from launcher.checks import packages
from launcher.checks.host_requirements import HostRequirements
from launcher.config import load as configs
from launcher.config.schema import RunConfig


def config(tmp_path: Path, **values: object) -> RunConfig:
    base = {"schema": 1, "name": "x", "storage": ".", "duration": "1 steps", "place": "local", "batch": {"size": 2}}
    more = {"model": {"name": "resnet20", "num_classes": 2}, "data": {"root": "."}, "schedule": {"peak_lr": 0.1}}
    return configs.from_mapping({**base, **more, **values}, tmp_path)


def test_this_environment_is_good(tmp_path: Path) -> None:
    (finding,) = packages.packages(config(tmp_path), HostRequirements())
    assert finding.status == "pass"
    assert importlib.metadata.version("torch") in finding.found


@pytest.mark.parametrize(("version", "status"), [("2.10.0", "fail"), ("2.11.0+cu130", "pass"), ("3.0.0", "pass")])
def test_an_old_torch_fails(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else "1.0")
    assert next(iter(packages.packages(None, HostRequirements()))).status == status


@pytest.mark.parametrize(("version", "status"), [("3.10.2", "fail"), ("3.11.0", "pass"), ("3.14.0", "fail")])
def test_a_python_that_was_never_tried_fails(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    assert next(iter(packages.packages(None, HostRequirements()))).status == status


def test_a_package_that_the_config_asks_for_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wants_dali = config(tmp_path, data={"root": ".", "decoder": "dali"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    (finding,) = packages.packages(wants_dali, HostRequirements())
    assert finding.status == "fail"
    assert "pip install 'resnet-launcher[dali]'" in finding.advice
    (finding,) = packages.packages(config(tmp_path), HostRequirements(ray=True))
    assert "resnet-launcher[ray]" in finding.advice
