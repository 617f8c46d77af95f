"""What only shows once the images are counted still names the user's file and line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli, train
from launcher.config.load import load
from launcher.console import Progress
from launcher.local.run import _listener

Capture = pytest.CaptureFixture[str]
CONFIG = """schema: 1
name: late
storage: {folder}/runs
place: local
workers: 2
duration: 2 steps
model: {{name: resnet20, num_classes: 2}}
data: {{root: {images}, resolution: 8}}
batch: {{size: 4}}
schedule:
  peak_lr: 0.1
  warmup: {warmup}
faults: {{max_failures: 0, preflight: false}}
log: {{tensorboard: false}}
"""


@pytest.fixture
def write(tmp_path: Path, write_images: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    images = write_images(tmp_path / "images")

    def write(warmup: str) -> Path:
        file = tmp_path / "late.yaml"
        file.write_text(CONFIG.format(folder=tmp_path, images=images, warmup=warmup))
        return file

    return write


def test_a_warm_up_that_turns_out_longer_than_the_run_has_its_line(write: Callable[..., Path], capsys: Capture) -> None:
    file = write("5 epochs")
    assert train.main([str(file)]) == 78
    output = capsys.readouterr()
    assert f"{file}:12: schedule.warmup: found 5 epochs, longer than the run" in output.err
    assert "worker here" not in output.out  # nothing ran here
    assert cli.main(["plan", str(file)]) == 78
    assert f"{file}:12: schedule.warmup: found 5 epochs, longer than the run" in capsys.readouterr().err


def test_a_storage_that_cannot_be_created_is_named_with_what_is_allowed(
    write: Callable[..., Path], capsys: Capture
) -> None:
    assert train.main([str(write("1 step")), "storage=/proc/x"]) == 76
    problem = "cannot be created: No such file or directory. Allowed: a folder that this user can write to"
    assert f"error: command line: storage=/proc/x: {problem}\n" in capsys.readouterr().err


def test_another_number_of_workers_is_told_once_the_run_has_begun(write: Callable[..., Path], capsys: Capture) -> None:
    assert train.main([str(write("1 step"))]) == 0
    assert "1 worker here (the config has 2): same losses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("workers", "local_workers", "world_size", "told"),
    [
        ("1", 2, 2, None),
        ("8", 2, 2, None),
        ("2..4", 1, 3, None),
        ("1", 2, 3, "3 workers here (the config has 2): same losses up to rounding"),
        ("8", 1, 1, "1 worker here (the config has 8): same losses up to rounding"),
    ],
)
def test_the_workers_of_this_machine_are_those_of_the_config(
    write: Callable[..., Path], workers: str, local_workers: int, world_size: int, told: str | None
) -> None:
    overrides = [f"workers={workers}", f"resources.local_workers={local_workers}", "batch.size=8"]
    output = io.StringIO()
    progress = Progress(output)
    listen = _listener(load(write("1 step"), overrides), progress, world_size)
    listen({"kind": "event", "event": "started", "step": 0, "detail": {}})
    assert [line for line in output.getvalue().splitlines() if "here" in line] == ([] if told is None else [told])
