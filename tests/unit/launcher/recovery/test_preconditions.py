"""What ends a run before its first step ends it before anything is started or written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import train
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.recovery import preconditions
from launcher.run.directory import RunDirectory
from resnet_dist.errors import DataError

OLD_RUN = Path(__file__).parents[3] / "fixtures" / "run-0.1"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    """A finished run of 8 steps, with checkpoints of steps 4 and 8."""
    shutil.copytree(OLD_RUN / "storage" / "whole", tmp_path / "storage" / "whole")
    return RunDirectory(tmp_path / "storage", "whole")


def arguments(run: RunDirectory, *overrides: str) -> list[str]:
    return [str(OLD_RUN / "run.yaml"), "name=whole", f"storage={run.storage}", *overrides]


def load(run: RunDirectory, *overrides: str) -> RunConfig:
    path, *others = arguments(run, *overrides)
    return configs.load(path, others)


@pytest.mark.parametrize(
    ("duration", "asked"),
    [
        ("4 steps", "found 4 steps, and 8 steps are done"),
        ("1e2 samples", "found 100 samples, 1 steps, and 8 steps are done"),
        ("0.5 epochs", "found 0.5 epochs, 1 steps, and 8 steps are done"),
    ],
)
def test_a_duration_shorter_than_what_is_done_is_refused(
    finished: RunDirectory, capsys: Capture, duration: str, asked: str
) -> None:
    given = [f"duration={duration}", "schedule.warmup=0 steps", "data.num_samples=200"]
    assert train.main(arguments(finished, *given)) == 78
    expected = f"error: command line: duration={duration}: duration: {asked} ({finished.finished_file}). Allowed: "
    assert capsys.readouterr().err == f"{expected}at least 8 steps, or another name\n"
    assert finished.is_finished()


def test_without_its_checkpoints_a_run_is_refused_at_once_and_no_attempt_is_recorded(
    finished: RunDirectory, capsys: Capture
) -> None:
    finished.finished_file.unlink()
    shutil.rmtree(finished.checkpoints)
    before = finished.attempts_file.read_bytes()
    assert train.main(arguments(finished)) == 76
    assert capsys.readouterr().err.count("the run has recorded a checkpoint of step 8, and there is none") == 1
    assert finished.attempts_file.read_bytes() == before


def test_without_the_mark_of_its_end_the_newest_intact_checkpoint_is_what_is_done(
    finished: RunDirectory, capsys: Capture
) -> None:
    finished.finished_file.unlink()
    assert train.main(arguments(finished, "duration=5 steps")) == 78
    assert f"8 steps are done ({finished.checkpoints}/step-00000008)" in capsys.readouterr().err
    (finished.checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"{")
    preconditions.check(load(finished, "duration=5 steps"), finished, "auto")


@pytest.mark.parametrize("duration", ["8 steps", "9 steps"])
def test_a_run_may_be_finished_and_extended(finished: RunDirectory, duration: str) -> None:
    finished.finished_file.unlink()
    preconditions.check(load(finished, f"duration={duration}"), finished, "auto")


WITHOUT_A_START = [
    (["data.root=/nowhere"], 65, "command line: data.root=/nowhere: /nowhere/train: no such folder"),
    (["schedule.warmup=99 epochs"], 78, "schedule.warmup: found 99 epochs, longer than the run"),
    (["schedule={peak_lr: 0.5, decay: step, milestones: [99 epochs]}"], 78, "found 99 epochs, not within the run"),
    (["model.weights=/nowhere.pt"], 78, "command line: model.weights=/nowhere.pt: model.weights: /nowhere.pt: no such"),
    (["--resume", "must"], 64, "--resume must: there is no checkpoint in"),
    (["storage=/dev/null/runs"], 76, "command line: storage=/dev/null/runs: /dev/null/runs/"),
]


@pytest.mark.parametrize("place", ["local", "ray"])
@pytest.mark.parametrize(("given", "code", "said"), WITHOUT_A_START)
def test_a_run_that_cannot_be_trained_here_is_refused_and_leaves_no_directory(
    tmp_path: Path,
    write_images: Callable[[Path], Path],
    capsys: Capture,
    given: list[str],
    code: int,
    said: str,
    place: str,
) -> None:
    pytest.importorskip("ray")
    own = [f"data.root={write_images(tmp_path / 'images')}", "duration=40 steps", "batch.size=4", f"place={place}"]
    run = RunDirectory(tmp_path / "runs", "whole")
    assert train.main(arguments(run, *own, *given)) == code
    assert said in capsys.readouterr().err
    assert not run.storage.exists()


def test_a_missing_folder_in_the_file_has_its_line(
    tmp_path: Path, write_config: Callable[..., Path], capsys: Capture
) -> None:
    file = write_config("place: local")
    shutil.rmtree(tmp_path / "images")
    assert train.main([str(file)]) == 65
    assert capsys.readouterr().err.startswith(f"error: {file}:6: data.root: {tmp_path}/images/train: no such folder; ")


def test_the_images_may_be_where_only_the_workers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    run = RunDirectory(tmp_path, "whole")
    away = load(run, "data.root=/nowhere", "place=ray", "model.weights=/nowhere.pt")
    with pytest.raises(DataError):
        preconditions.check(load(run, "data.root=/nowhere", "place=ray"), run, "auto")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preconditions.check(away, run, "auto")


def test_a_source_of_the_user_is_not_called(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "whole")
    preconditions.check(load(run, "data={source: 'not_there:index', root: /nowhere}", "duration=1 epoch"), run, "auto")


def test_the_images_are_counted_only_for_rules_that_depend_on_their_number(
    tmp_path: Path, write_images: Callable[[Path], Path]
) -> None:
    images = write_images(tmp_path / "images")
    (images / "train" / "empty").mkdir()
    run = RunDirectory(tmp_path, "whole")
    preconditions.check(load(run, f"data.root={images}", "schedule.warmup=2 steps"), run, "auto")
    with pytest.raises(DataError):  # a class without images
        preconditions.check(load(run, f"data.root={images}", "schedule.warmup=2 epochs"), run, "auto")


def test_the_checks_need_no_torch(tmp_path: Path, write_images: Callable[[Path], Path]) -> None:
    script = "from launcher.train import main; import sys; code = main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    run = RunDirectory(tmp_path, "whole")
    own = [f"data.root={write_images(tmp_path / 'images')}", "place=ray", "schedule.warmup=500 epochs"]
    command = [sys.executable, "-c", script, *arguments(run, *own)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "longer than the run" in done.stderr
    assert done.returncode == 0
