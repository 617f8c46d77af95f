"""What only shows once the images are counted still names the user's file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli, train

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


def test_another_number_of_workers_is_told_once_the_run_has_begun(write: Callable[..., Path], capsys: Capture) -> None:
    assert train.main([str(write("1 step"))]) == 0
    assert "1 worker here (the config has 2): same losses" in capsys.readouterr().out
