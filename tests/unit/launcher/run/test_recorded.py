"""A finished run is compared with the config, with its checkpoints and without."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import train as module
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from launcher.train import train
from resnet_dist.recipe.schema import plain

OLD_RUN = Path(__file__).parents[3] / "fixtures" / "run-0.1"


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A finished run of version 0.1: span global, momentum 0.1, epsilon 1e-5. Nothing is trained in these tests."""

    def trains(*_: object, **__: object) -> None:
        pytest.fail("the run was started")

    for door in ("launcher.local.run.run_local", "launcher.local.supervisor.run_supervised"):
        monkeypatch.setattr(door, trains)
    shutil.copytree(OLD_RUN / "storage" / "whole", tmp_path / "storage" / "whole")
    return RunDirectory(tmp_path / "storage", "whole")


@pytest.fixture(params=["checkpoints", "config.yaml"])
def recorded_in(request: pytest.FixtureRequest, finished: RunDirectory) -> str:
    """Where the run's recipe is found."""
    where: str = request.param
    if where == "checkpoints":
        finished.config.unlink()
    else:
        shutil.rmtree(finished.checkpoints)
    return where


def load(run: RunDirectory, *overrides: str) -> RunConfig:
    return configs.load(OLD_RUN / "run.yaml", ["name=whole", f"storage={run.storage}", "data.root=/mine", *overrides])


def test_the_same_config_finds_it_finished(
    finished: RunDirectory, recorded_in: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(load(finished))[0] == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=1", "seed: the run has 0, the config 1"),
        ("batch.size=64", "batch.size: the run has 128, the config 64"),
        ("data.subset=0.5", "data.subset: the run has null, the config 0.5"),
        ("batch_norm.span=64", "batch_norm.span: the run has 'global', the config 64"),
        ("data.crop_area=[0.5, 1]", r"data.crop_area: the run has \[0.08, 1.0\], the config \[0.5, 1.0\]"),
    ],
)
def test_another_experiment_is_refused(finished: RunDirectory, recorded_in: str, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"{told} \(recorded in .*{recorded_in}"):
        train(load(finished, override))
    assert finished.is_finished()


def test_a_refused_change_names_the_override_that_makes_it(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["name=whole", f"storage={finished.storage}", "data.root=/mine"]
    assert module.main([str(OLD_RUN / "run.yaml"), *own, "seed=1"]) == 78
    assert capsys.readouterr().err.startswith("error: command line: seed=1: seed: the run has 0, the config 1 (")


def test_what_may_change_is_no_other_experiment(finished: RunDirectory, recorded_in: str) -> None:
    assert train(load(finished, "schedule.peak_lr=0.1", "evaluate.every=2 steps", "data.prefetch=4"))[0] == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_of_torchrun_ends_in_the_same_way(
    finished: RunDirectory, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    arguments = [f"storage={finished.storage}", "data.root=/mine", "name=whole"]
    assert module.main([str(OLD_RUN / "run.yaml"), *arguments]) == 0
    assert module.main([str(OLD_RUN / "run.yaml"), *arguments, "seed=1"]) == 78


@pytest.mark.parametrize("file", ["state.json", "manifest.json", "model.safetensors"])
def test_a_checkpoint_that_is_torn_is_passed_over(finished: RunDirectory, file: str) -> None:
    (finished.checkpoints / "step-00000008" / file).write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"seed: .*step-00000004\)"):
        train(load(finished, "seed=1"))


@pytest.mark.parametrize(
    "tear",
    [
        Path.unlink,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x00"),
        lambda file: file.write_bytes(b"data: ["),
        lambda file: file.write_bytes(b"- data"),
        lambda file: file.write_text(file.read_text().partition("8\n  num_micro_batches")[0]),  # of `size: 128`
    ],
    ids=["missing", "empty", "no text", "no YAML", "a list", "half of it"],
)
def test_nothing_is_compared_with_what_is_lost(
    finished: RunDirectory, tear: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished.checkpoints)
    tear(finished.config)
    assert train(load(finished, "seed=1"))[0] == 0
    assert "finished already" in capsys.readouterr().out


def test_a_config_of_another_version_is_read(finished: RunDirectory) -> None:
    shutil.rmtree(finished.checkpoints)
    text = finished.config.read_text().replace("  zero_gamma: false\n", "")
    finished.config.write_text(text.replace("speed:\n", "speed:\n  telepathy: true\n") + "tracking: {server: a}\n")
    assert train(load(finished))[0] == 0
    with pytest.raises(ConfigError, match=r"model\.zero_gamma: the run has False, the config True"):
        train(load(finished, "model.zero_gamma=true"))
    finished.config.write_text(text.replace("model:\n", "model:\n  depth_scale: 2\n"))
    with pytest.raises(ConfigError, match=r"model\.depth_scale: the run has 2; this version has no such key"):
        train(load(finished))


def test_keys_that_were_renamed_since_are_no_changes(finished: RunDirectory) -> None:
    config = load(finished, "optimizer={name: lars, lr_in_momentum: false}", "speed.sgd_kernel=auto")
    recipe = plain(config.recipe())
    recipe["optimizer"]["convention"] = {False: "lr_outside"}[recipe["optimizer"].pop("lr_in_momentum")]
    recipe["speed"]["optimizer"] = recipe["speed"].pop("sgd_kernel")
    assert recorded.changes("step-00000004", recipe, config) == []
    recipe["optimizer"]["convention"] = "lr_inside"
    with pytest.raises(ConfigError, match=r"optimizer\.lr_in_momentum: the run has True, the config False"):
        recorded.changes("step-00000004", recipe, config)


def test_the_comparison_needs_no_torch(finished: RunDirectory) -> None:
    script = "from launcher.train import main; import sys; code = main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = [str(OLD_RUN / "run.yaml"), f"storage={finished.storage}", "data.root=/mine", "name=whole", "seed=1"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert "seed: the run has 0, the config 1" in done.stderr
    assert done.returncode == 0
