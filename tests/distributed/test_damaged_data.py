"""Data that does harm ends a run with the file's name, or is passed over where the config says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_dist.data.index.table import Index
from resnet_dist.data.order import Stream
from tests.distributed.fault_runs import STEPS, FaultRun

Make = Callable[..., FaultRun]


def _linked(source: Path, target: Path) -> Path:
    for split in ("train", "val"):
        for file in sorted((source / split).rglob("*.*")):
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    return target


def test_a_file_that_vanishes_under_rank_1_is_the_cause_though_rank_0_ends_with_it(
    fault_run: Make, tmp_path: Path, digits: Path
) -> None:
    root = _linked(digits, tmp_path / "images")
    run = fault_run(root)
    run.pace(all=0.05)
    run.start(processes=2)
    run.wait_for_step(1)
    train = Index.load(next(run.directory.index.glob("train*")))
    last_of_step_30 = np.array([30 * 37 - 1])  # in the share of rank 1
    [sample_id] = Stream(num_samples=len(train), seed=0).sample_ids(last_of_step_30)
    victim = Path(train.path(int(sample_id)))
    victim.unlink()
    run.end(code=1)  # torchrun's own
    fatal = run.directory.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.kind) == (65, "DataError")
    assert victim.name in fatal.message
    [attempt] = run.directory.attempts()  # rank 0 keeps the record
    assert (attempt.exit_code, attempt.cause) == (65, fatal.message)
    assert "Connection closed" in run.directory.logs(1).log(0).read_text()  # all that it has seen of it


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _shrink(file: Path) -> None:
    Image.new("L", (2, 2)).save(file)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "cannot be read: No such file or directory"),
        (_cut, "has changed since it was indexed (it has "),
        (_shrink, "has changed since it was indexed (it has "),
    ],
    ids=["vanished", "cut in half", "replaced by a smaller one"],
)
def test_an_image_that_is_harmed_on_the_way_ends_the_run_named_and_for_good(
    fault_run: Make, tmp_path: Path, digits: Path, harm: Callable[[Path], None], reason: str
) -> None:
    root = tmp_path / "images"
    shutil.copytree(digits, root)
    run = fault_run(root)
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(1)
    train = Index.load(next(run.directory.index.glob("train*")))
    [sample_id] = Stream(num_samples=len(train), seed=0).sample_ids(np.array([30 * 37 - 1]))
    victim = Path(train.path(int(sample_id)))
    harm(victim)
    output = run.end(code=65)
    fatal = run.directory.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.kind) == (65, "DataError")
    for text in (output, fatal.message):
        assert f"{victim} (sample {sample_id}): {reason}" in text
    assert "Traceback" not in output
    assert [attempt.exit_code for attempt in run.directory.attempts()] == [65]
    if harm is not Path.unlink:
        return
    listed = tmp_path / "bad.txt"  # what the message advises
    listed.write_text(f"{victim}\n")
    run.pace(all=0.0)
    run.start(f"data.known_bad={listed}")
    assert "resumes at step" in run.end()
    assert sorted(run.losses()) == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The digits with one training image all white, on which paced:build has a loss that is no number."""
    root = _linked(digits, tmp_path_factory.mktemp("poisoned") / "digits")
    victim = sorted((root / "train" / "4").iterdir())[0]
    with Image.open(victim) as image:
        size, mode = image.size, image.mode
    victim.unlink()
    Image.fromarray(np.full((size[1], size[0]), 255, dtype=np.uint8)).convert(mode).save(victim)
    return root


def test_a_loss_that_is_not_finite_ends_the_run_with_79(fault_run: Make, poisoned: Path) -> None:
    run = fault_run(poisoned)
    run.start()
    output = run.end(code=79)
    assert "training diverged" in output
    assert [error for error, _ in run.failures()] == ["DivergedError"]


def test_a_loss_that_is_not_finite_is_skipped_with_its_samples(fault_run: Make, poisoned: Path) -> None:
    faults = {"hang_timeout_s": 15, "on_nonfinite": "skip", "max_failures": 1}
    run = fault_run(poisoned, faults=faults)
    run.start()
    output = run.end()
    errors = {error for error, _ in run.failures()}
    assert errors == {"DivergedError"}
    assert "skipping the samples of steps" in output
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    assert all(np.isfinite(loss) for loss in run.losses().values())
    assert run.directory.is_finished()
