"""Checks of GPUs and hosts before training; the all-reduce is in checks/test_attempt_check.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.checks import dataset
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import DeviceFault
from launcher.recovery.attempt import AttemptSpec
from launcher.recovery.faults import rule_for
from launcher.worker import preflight
from launcher.worker.assignment import Assignment

SOUND = {"name": "H100", "wrong_products": 0, "num_bytes": 2**30, "changed_words": 0}


def assignment(local_world_size: int = 2, node_id: str | None = None) -> Assignment:
    return Assignment(AttemptSpec(1), 5, 8, 1, local_world_size, node_id)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, **found: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(preflight, "examine_gpu", lambda index, most_bytes: {**SOUND, **found})


def test_a_sound_gpu_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    preflight.check_device(torch.device("cuda", 1), assignment(), "n3")


@pytest.mark.parametrize(
    ("found", "said"), [({"wrong_products": 2}, "2 wrong elements"), ({"changed_words": 1}, "1 changed word")]
)
def test_a_gpu_that_computes_or_remembers_wrong_counts_against_its_node(
    found: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2, **found)
    with pytest.raises(DeviceFault, match=said) as caught:
        preflight.check_device(torch.device("cuda", 1), assignment(node_id="abc"), "n3")
    error = caught.value
    assert (error.host, error.rank, error.node_id) == ("n3", 5, "abc")
    assert rule_for(error).blames_node


def test_a_gpu_that_does_not_answer_fails_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    with_gpus(monkeypatch, 2)
    monkeypatch.setattr(preflight, "examine_gpu", lambda index, most_bytes: over.wait(60))
    try:
        with pytest.raises(DeviceFault, match="no answer within"):
            preflight.check_device(torch.device("cuda", 1), assignment(), "n3", seconds=0.2)
    finally:
        over.set()


@pytest.mark.parametrize(
    ("seen", "asked", "status"), [(8, 8, "pass"), (1, 8, "pass"), (7, 8, "fail"), (0, 1, "fail"), (1, 1, "pass")]
)
def test_a_gpu_that_has_gone_is_missed(seen: int, asked: int, status: str) -> None:
    assert preflight.enough(seen, asked).status == status  # one: bound to the worker by the scheduler


def test_an_attempt_reads_no_images_for_its_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It names a broken one itself."""

    def read(config: RunConfig) -> None:
        raise AssertionError(config.data.root)

    monkeypatch.setattr(dataset, "data", read)
    config = {"schema": 1, "name": "run", "storage": "runs", "place": "local", "duration": "1 steps"}
    sections = {"model": {"name": "resnet20", "num_classes": 10}, "data": {"root": "images", "resolution": 16}}
    more = {"batch": {"size": 8}, "schedule": {"peak_lr": 0.1, "decay": "constant"}}
    preflight.check_host(configs.from_mapping({**config, **sections, **more}, tmp_path))
