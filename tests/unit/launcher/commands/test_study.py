from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from launcher import cli
from launcher.commands import prepare_verbs, study
from launcher.planning.images import PREPARED
from launcher.signals import StopSignals
from launcher.study.rounds import Job
from launcher.study.training import Answer, Ended, Moment, Order

BASE = """\
schema: 1
name: base
storage: runs
duration: 8 steps
model: {name: resnet20, num_classes: 10}
data: {root: images, resolution: 16}
batch: {size: 32}
schedule: {peak_lr: 0.05}
"""
STUDY = "study: 1\nname: small\nbase: base.yaml\ngrid: {batch.size: [8, 16]}\nseeds: [0, 1]\n"


class FakePool:
    """Finishes each run at once; those in `codes` fail."""

    codes: dict[str, int] = {}  # noqa: RUF012 - set by tests
    trained: list[str] = []  # noqa: RUF012

    def __init__(self, size: int, stop: StopSignals) -> None:
        self.size, self.stop = size, stop

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job], make_order: Callable[[Job], Order]) -> Iterator[tuple[Job, Answer | None]]:
        for job in jobs:
            order = make_order(job)
            self.trained.append(order.config.name)
            yield job, Moment(4, 8, 1.0)
            yield job, None
            code = self.codes.get(order.config.name, 0)
            run = job.run.directory
            run.create()
            number = run.begin_attempt()
            run.end_attempt(number, code, "", 8)
            if code == 0:
                run.mark_finished({"step": 8, "time_s": 2.0, "top1": 0.5})
            yield job, Ended(code, "" if code == 0 else "ValueError: it broke")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(study, "Pool", FakePool)
    monkeypatch.setattr(FakePool, "codes", {})
    monkeypatch.setattr(FakePool, "trained", [])
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "images" / "train").mkdir(parents=True)
    return str(tmp_path / "study.yaml")


def test_all_runs_are_trained_once(file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["study", file]) == 0
    assert FakePool.trained == [f"size-{size}_seed-{seed}" for size in (8, 16) for seed in (0, 1)]
    printed = capsys.readouterr().out
    assert "small: 4 of 4 runs done, 0 running, 0 failed, 0:00 left\n" in printed
    assert "nothing to train" not in printed
    assert f"report   {tmp_path / 'runs' / 'small' / 'report.html'}\n" in printed
    assert cli.main(["study", file]) == 0
    assert len(FakePool.trained) == 4
    assert capsys.readouterr().out.startswith("4 of 4 runs finished already: nothing to train\n")


def test_the_others_finish_after_a_failure_and_the_code_is_that_of_the_first(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    FakePool.codes = {"size-8_seed-1": 65, "size-16_seed-0": 76}
    assert cli.main(["study", file]) == 65
    printed = capsys.readouterr().out
    assert "size-8_seed-1 failed: ValueError: it broke" in printed
    assert "2 of 4 runs done, 0 running, 2 failed" in printed
    assert "failed: size-16_seed-0: exit code 76: ValueError: it broke" in printed
    FakePool.codes = {}
    assert cli.main(["study", file]) == 0  # those that failed are tried again
    assert FakePool.trained[4:] == ["size-8_seed-1", "size-16_seed-0"]


def test_a_dry_run_names_the_runs_and_how_long_they_take(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", file, "--dry-run", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "0  size-8_seed-0   8 steps  waiting" in printed
    assert "\n4 runs, 2 at a time; time left: unknown until the first run is done" in printed
    assert FakePool.trained == []
    cli.main(["study", file, "--only", "0"])
    capsys.readouterr()
    cli.main(["study", file, "--dry-run", "--jobs", "2"])
    assert "time left: 0:03" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("only", "trained"),
    [("0", [0]), ("1-2", [1, 2]), ("3,size-8_seed-1", [1, 3]), (" 0 , 2-3", [0, 2, 3])],
)
def test_only_some_runs(file: str, only: str, trained: list[int]) -> None:
    assert cli.main(["study", file, "--only", only]) == 0
    names = [f"size-{size}_seed-{seed}" for size in (8, 16) for seed in (0, 1)]
    assert FakePool.trained == [names[number] for number in trained]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--only", "4"], 64, "--only 4: there is no such run. Allowed: 0 to 3, or names"),
        (["--only", "2-1"], 64, "--only 2-1: there is no such run"),
        (["--jobs", "0"], 64, "--jobs 0: Allowed: a whole number from 1"),
        (["--place", "ray", "--jobs", "2"], 64, "--jobs 2: Allowed: --place local"),
        (["--place", "slurm", "--only", "1"], 64, "--place slurm: SLURM decides"),
        (["--full"], 78, "study.yaml:1: the file has no `full` section"),
        (["batch.size=3"], 78, "batch.size=3: batch.size: the study varies this key"),
        (["model.nam=3"], 78, "command line: model.nam=3: model.nam: unknown key"),
    ],
)
def test_a_wrong_command_line_is_refused(
    file: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert cli.main(["study", file, *arguments]) == code
    assert message in capsys.readouterr().err
    assert FakePool.trained == []


def test_a_changed_study_is_refused(file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "small" / "runs" / "size-8_seed-0").mkdir(parents=True)
    config = cli.configs.to_yaml(cli.configs.load(tmp_path / "base.yaml", ["batch.size=8", "duration=9 steps"]))
    (tmp_path / "runs" / "small" / "runs" / "size-8_seed-0" / "config.yaml").write_text(config)
    assert cli.main(["study", file]) == 78
    assert "duration: the run size-8_seed-0 has '9 steps', the study '8 steps'" in capsys.readouterr().err


def test_a_dry_run_of_a_tuning_counts_the_runs_at_most(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(file).write_text(f"{STUDY}tune: {{keys: [batch.size]}}\n")
    assert cli.main(["study", file, "--dry-run", "--jobs", "2"]) == 0
    assert "\n3 runs at most, 2 at a time;" in capsys.readouterr().out


def test_missing_images_are_refused_before_a_run_starts(
    file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "images" / "train").rmdir()
    missing = f"{tmp_path}/images/train: no such folder, and 4 runs would train on its images"
    assert cli.main(["study", file]) == 65
    assert capsys.readouterr().err == f"error: {missing}\n"
    assert FakePool.trained == []
    assert cli.main(["study", file, "--dry-run"]) == 0
    assert capsys.readouterr().err == f"warning: {missing}\n"


def test_the_data_sets_of_prepare_are_known() -> None:
    assert set(prepare_verbs.DATASETS) == set(PREPARED)


def test_missing_images_do_not_matter_to_a_study_that_is_finished(
    file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["study", file]) == 0
    (tmp_path / "images" / "train").rmdir()
    capsys.readouterr()
    assert cli.main(["study", file]) == 0
    assert capsys.readouterr().err == ""


def test_a_stopped_study_repeats_its_command(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: FakePool, jobs: Sequence[Job], make_order: object) -> Iterator[tuple[Job, Answer | None]]:
        signal.raise_signal(signal.SIGTERM)
        yield jobs[0], None

    monkeypatch.setattr(FakePool, "run", stop)
    assert cli.main(["study", file, "schedule.peak_lr=0.1", "--jobs", "2", "--only", "0-1"]) == 75
    command = f"launcher study {file} schedule.peak_lr=0.1 --jobs=2 --only=0-1"
    assert f"stopped; the same command goes on: {command}\n" in capsys.readouterr().out
