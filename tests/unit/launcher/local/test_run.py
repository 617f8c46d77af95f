"""What a run without Ray records of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import Ranks
from launcher.console import Progress
from launcher.errors import CollectiveFault, UsageError
from launcher.local.run import Parent, run_local
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.run.directory import RunDirectory
from launcher.run.progress import recorded_num_micro_batches
from launcher.signals import StopSignals
from resnet_dist.training.survivor import MemoryState


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt finishes at once."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("launcher.local.run.train_worker", lambda *_, **__: AttemptResult(100, finished=True))


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


def test_more_workers_than_gpus_are_refused_before_anything_is_recorded(
    write_config: Callable[..., Path], small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    config = configs.load(write_config("place: local", "resources: {gpus_per_worker: 1, local_workers: 2}"))
    parent = Parent(None, lambda spec: None, Ranks(0, 2, 0, 2), str(tmp_path / "rendezvous"))
    with pytest.raises(UsageError, match=r"2 workers need a GPU each, and 1 GPU is visible here\. Allowed: at most 1"):
        run_local(config, small_run, "auto", Progress(), StopSignals(), parent=parent)
    assert small_run.attempts() == []


def test_a_worker_that_waits_for_others_ends_when_one_of_them_is_lost(
    write_config: Callable[..., Path], small_run: RunDirectory, tmp_path: Path
) -> None:
    answers = iter([False, False, True])
    ranks, rendezvous = Ranks(0, 2, 0, 2), str(tmp_path / "rendezvous")
    parent = Parent(None, lambda spec: None, ranks, rendezvous, abandoned=lambda: next(answers))
    with pytest.raises(CollectiveFault, match="before all had joined"):
        run_local(configs.load(write_config()), small_run, "auto", Progress(), StopSignals(), parent=parent)
    assert list(answers) == []


def test_an_attempt_from_memory_is_recorded_with_its_step_and_no_checkpoint(
    write_config: Callable[..., Path], small_run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[AttemptSpec] = []
    parent = Parent(None, begun.append, memory=MemoryState(step=42, rank=3, content=None))
    run_local(configs.load(write_config()), small_run, "auto", Progress(), StopSignals(), parent=parent)
    [spec], [attempt] = begun, small_run.attempts()
    assert (spec.first_step, spec.checkpoint, spec.memory) == (42, None, (42, 3))
    assert (attempt.facts["from_step"], attempt.facts["from_memory_of_rank"]) == (42, 3)
    assert "goes on at step 43, from the memory of worker 3" in capsys.readouterr().out
