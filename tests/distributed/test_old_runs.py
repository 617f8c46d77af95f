"""Runs of an earlier version: they go on as they began, and every verb reads them.

tests/fixtures/run-0.1 holds two runs that version 0.1 has left behind; its README says how they were made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher
from launcher import cli
from launcher.train import main
from resnet_dist.checkpoint import restore

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1"

Losses = Callable[[Path], dict[int, float]]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture: run.yaml, images, and the runs `whole` and `stopped` in storage."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return Path(shutil.copytree(OLD_RUN, tmp_path / "old"))


def arguments(old: Path, *overrides: str) -> list[str]:
    return [str(old / "run.yaml"), f"storage={old / 'storage'}", f"data.root={old / 'images'}", *overrides]


def test_a_run_that_was_killed_goes_on_with_its_own_span_and_the_same_losses(old: Path, losses_of: Losses) -> None:
    whole, stopped = old / "storage" / "whole", old / "storage" / "stopped"
    assert sorted(losses_of(stopped)) == [1, 2, 3, 4]
    done = subprocess.run(
        [sys.executable, "-m", "launcher.train", *arguments(old)],
        env={**os.environ, "PYTHONPATH": str(old)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumes at step 5, from step-00000004" in done.stdout
    assert "kept from the run, since the config leaves them open: batch_norm.span global" in done.stdout
    assert "finished  8 steps" in done.stdout
    found, expected = losses_of(stopped), losses_of(whole)
    assert sorted(found) == sorted(expected) == list(range(1, 9))
    for step in range(5, 9):
        assert found[step] == pytest.approx(expected[step], rel=1e-9)
    norm = launcher.load_run(stopped).config.batch_norm
    assert (norm.span, norm.momentum, norm.epsilon) == ("global", 0.1, 1e-5)
    saved = restore.newest(stopped / "checkpoints")
    assert saved is not None
    assert saved.step == 8
    assert saved.state["recipe"]["batch_norm"] == {"span": "global", "momentum": 0.1, "epsilon": 1e-5}


@pytest.mark.parametrize("index", ["saved", "lost"])
def test_a_run_that_left_out_images_in_sub_folders_is_refused_by_name(
    old: Path, index: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(old))
    more = old / "images" / "train" / "cat" / "more"
    more.mkdir()
    shutil.copy(more.parent / "0.jpg", more / "0.jpg")
    if index == "lost":
        shutil.rmtree(old / "storage" / "stopped" / "index")
    assert main(arguments(old)) == 65
    problem = capsys.readouterr().err
    assert "has images in sub-folders of class folders: 1, for example train/cat/more/0.jpg" in problem
    assert "Allowed: a run under another name" in problem


def test_a_finished_run_is_found_finished(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(old, "name=whole")) == 0
    assert "finished already" in capsys.readouterr().out


def test_a_finished_run_is_no_other_experiment(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(old, "name=whole", "seed=1")) == 78
    assert "seed: the run has 0, the config 1" in capsys.readouterr().err


def test_the_verbs_read_old_runs(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, stopped = old / "storage" / "whole", old / "storage" / "stopped"

    def told(*words: object) -> str:
        assert cli.main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    assert "ended after step 8, exit code 0: finished" in told("report", whole)
    assert "attempt 1 started after step 0" in told("report", stopped)
    assert "4 steps in common (1 to 4): the same within" in told("compare", whole, stopped)
    assert "finished, step 8 of 8 (100%), loss 0.7056" in told("status", whole)
    assert "step 4 of 8 (50%)" in told("status", stopped)
    listed = told("list", old / "storage")
    assert [line.split()[0] for line in listed.splitlines()] == ["RUN", "stopped", "whole"]


def test_old_runs_are_read_from_python(old: Path) -> None:
    whole, stopped = (launcher.load_run(old / "storage" / name) for name in ("whole", "stopped"))
    assert (whole.finished, stopped.finished) == (True, False)
    assert whole.summary is not None
    assert whole.summary["top1"] == 0.5
    assert whole.config.batch_norm.span == stopped.config.batch_norm.span == "global"
    table = stopped.metrics
    assert list(table[table.kind == "train"].step) == [1, 2, 3, 4]
