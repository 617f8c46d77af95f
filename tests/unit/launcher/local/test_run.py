"""What a run without Ray records of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.console import Progress
from launcher.local.run import Parent, run_local
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.run.directory import RunDirectory
from launcher.run.progress import recorded_num_micro_batches
from launcher.signals import StopSignals


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt finishes at once."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("launcher.local.run.train_worker", lambda *_: AttemptResult(100, finished=True))


def test_the_next_start_finds_the_number_of_micro_batches(
    write_config: Callable[..., Path], small_run: RunDirectory
) -> None:
    begun: list[AttemptSpec] = []
    parent = Parent(num_micro_batches=4, on_begin=begun.append)
    run_local(configs.load(write_config()), small_run, "auto", Progress(), StopSignals(), parent=parent)
    assert recorded_num_micro_batches(small_run) == 4
    assert [(spec.number, spec.num_micro_batches) for spec in begun] == [(1, 4)]


def test_the_run_directory_has_the_span_as_a_number(write_config: Callable[..., Path], small_run: RunDirectory) -> None:
    config = configs.load(write_config("batch_norm: {span: auto}"), ["batch.size=192"])
    code, _ = run_local(config, small_run, "auto", Progress(), StopSignals())
    assert code == 0
    assert configs.load(small_run.config).batch_norm.span == 64
    assert [attempt.cause for attempt in small_run.attempts()] == ["finished"]
