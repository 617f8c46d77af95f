"""Where a run resumes, and with which config: compared with a run of version 0.1."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError
from launcher.recovery.resume import choose
from launcher.run import recorded
from launcher.run.directory import RunDirectory
from resnet_dist.errors import StorageError

OLD_RUN = Path(__file__).parents[3] / "fixtures" / "run-0.1"


@pytest.fixture
def old_run(tmp_path: Path) -> RunDirectory:
    """The run that was killed after step 4: span global, momentum 0.1, epsilon 1e-5."""
    shutil.copytree(OLD_RUN / "storage" / "stopped", tmp_path / "storage" / "stopped")
    return RunDirectory(tmp_path / "storage", "stopped")


def load(run: RunDirectory, *overrides: str) -> RunConfig:
    """The config that the run was started with, as it is read today: none of its keys is of batch norm."""
    return configs.load(OLD_RUN / "run.yaml", [f"storage={run.storage}", "data.root=/tmp/fix/images", *overrides])


def write_anew(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let a checkpoint say something else of its recipe."""
    state = json.loads((checkpoint / "state.json").read_text())
    change(state["recipe"])
    content = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def say(old_run: RunDirectory) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change what the old run's checkpoint says of its recipe."""
    return lambda change: write_anew(old_run.checkpoints / "step-00000004", change)


Say = Callable[[Callable[[dict[str, Any]], object]], None]


def test_a_run_that_begins_has_the_span_as_a_number_and_leaves_the_rest_to_the_layers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "stopped")
    start = choose(load(run), run, "auto")
    norm = start.config.batch_norm
    assert (start.checkpoint, norm.span, norm.momentum, norm.epsilon) == (None, 64, None, None)


def test_an_old_run_keeps_what_it_began_with(old_run: RunDirectory) -> None:
    start = choose(load(old_run), old_run, "auto")
    norm = start.config.batch_norm
    assert (start.step, norm.span, norm.momentum, norm.epsilon) == (4, "global", 0.1, 1e-5)
    kept = "batch_norm.span global, batch_norm.momentum 0.1, batch_norm.epsilon 1e-05"
    assert start.notes[1:] == (f"  kept from the run, since the config leaves them open: {kept}",)


def test_an_old_run_keeps_it_when_its_checkpoint_comes_from_the_mirror(old_run: RunDirectory, tmp_path: Path) -> None:
    shutil.move(old_run.checkpoints, tmp_path / "mirror" / "stopped" / "checkpoints")
    start = choose(load(old_run, f"checkpoint.mirror=file://{tmp_path}/mirror"), old_run, "auto")
    assert (start.step, start.config.batch_norm.span) == (4, "global")


def test_a_new_run_keeps_its_number_silently(old_run: RunDirectory, say: Say) -> None:
    say(lambda recipe: recipe.update(batch_norm={"span": 64, "momentum": None, "epsilon": None}))
    start = choose(load(old_run), old_run, "auto")
    norm = start.config.batch_norm
    assert (norm.span, norm.momentum, norm.epsilon) == (64, None, None)
    assert len(start.notes) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("batch_norm.span=64", "batch_norm.span: the run has 'global', the config 64"),
        ("batch_norm.momentum=0.2", "batch_norm.momentum: the run has 0.1, the config 0.2"),
        ("batch_norm.epsilon=0.001", "batch_norm.epsilon: the run has 1e-05, the config 0.001"),
    ],
)
def test_a_value_that_the_config_gives_is_compared(old_run: RunDirectory, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose(load(old_run, override), old_run, "auto")
    assert choose(load(old_run, "batch_norm={span: global, momentum: 0.1}"), old_run, "auto").step == 4


def test_what_the_run_keeps_must_go_with_the_config(old_run: RunDirectory) -> None:
    with pytest.raises(
        ConfigError,
        match=r"batch_norm\.span: found global with .*; the run started with it .*step-00000004\)\. Allowed",
    ):
        choose(load(old_run, "batch.num_micro_batches=2"), old_run, "auto")


# --- the learning rate


def test_a_longer_duration_says_where_the_learning_rate_goes(old_run: RunDirectory) -> None:
    notes = choose(load(old_run, "duration=16 steps"), old_run, "auto").notes
    # polynomial, power 2, from 0.5 after 2 steps: (5 / 6)^2 of 0.5 at step 4 of 8, (12 / 14)^2 at step 5 of 16
    so_far = "  the LR rises from 0.3472 (step 4, the run's schedule so far)"
    assert f"{so_far} to 0.3673 (step 5, the schedule of this config)" in notes


def test_a_longer_duration_makes_a_warm_up_of_25_percent_longer_and_says_so(old_run: RunDirectory) -> None:
    """The run has recorded the length in steps: what 25 % were of its duration."""
    assert len(choose(load(old_run, "schedule.warmup=25 %"), old_run, "auto").notes) == 2
    longer = choose(load(old_run, "schedule.warmup=25 %", "duration=16 steps"), old_run, "auto")
    assert "  changed: schedule.warmup was '2 steps', is '4 steps'" in longer.notes
    assert longer.notes[-1].endswith("to 0.5 (step 5, the schedule of this config)")


def test_the_recorded_config_of_a_run_keeps_its_warm_up_when_it_is_trained_longer(old_run: RunDirectory) -> None:
    config = load(old_run, "schedule.warmup=25 %")
    old_run.write_config(configs.to_yaml(config))
    longer = choose(configs.load(old_run.config, ["duration=16 steps"]), old_run, "auto")
    assert str(longer.config.schedule.warmup) == "2 steps"
    assert not any("warmup" in note for note in longer.notes)


@pytest.mark.parametrize("duration", ["8 steps", "1024 samples"])
def test_the_same_learning_rate_is_not_mentioned(old_run: RunDirectory, duration: str) -> None:
    start = choose(load(old_run, f"duration={duration}"), old_run, "auto")
    assert not any("the LR" in note for note in start.notes)


def test_a_constant_learning_rate_is_not_mentioned(old_run: RunDirectory, say: Say) -> None:
    constant = {"peak_lr": 0.5, "warmup": "2 steps", "decay": "constant"}
    say(lambda recipe: recipe.update(schedule=constant))
    longer = load(old_run, "duration=16 steps", "schedule={peak_lr: 0.5, warmup: 2 steps, decay: constant}")
    assert choose(longer, old_run, "auto").notes[-1] == "  changed: duration was '8 steps', is '16 steps'"


def test_epochs_are_compared_by_the_size_of_the_data_set(old_run: RunDirectory) -> None:
    longer = choose(load(old_run, "duration=8 epochs", "data.num_samples=256"), old_run, "auto")
    assert "to 0.3673 (step 5, the schedule of this config)" in longer.notes[-1]


def test_a_duration_shorter_than_the_checkpoint_is_refused(old_run: RunDirectory) -> None:
    with pytest.raises(
        ConfigError, match=r"duration: found 3 steps, and 4 steps are done \(.*step-00000004\)\. Allowed"
    ):
        choose(load(old_run, "duration=3 steps"), old_run, "auto")


# --- recipes of other versions


@pytest.mark.parametrize(
    "forget",
    [
        lambda recipe: recipe["model"].pop("zero_gamma"),
        lambda recipe: recipe["model"].pop("arguments"),
        lambda recipe: recipe["data"].pop("crop_area"),
        lambda recipe: recipe.pop("ema"),
        lambda recipe: recipe.pop("seed"),
        lambda recipe: recipe.pop("evaluate"),
    ],
    ids=["key", "section of arguments", "list", "section", "seed", "durations"],
)
def test_a_key_that_the_run_lacks_had_its_default(
    old_run: RunDirectory, say: Say, forget: Callable[[dict[str, Any]], object]
) -> None:
    say(forget)
    start = choose(load(old_run, "evaluate.every=1 epoch"), old_run, "auto")
    assert start.config.batch_norm.span == "global"
    assert [line for line in start.notes if "changed: " in line and "evaluate.every" not in line] == []


def test_a_key_that_the_run_lacks_is_compared_with_its_default(old_run: RunDirectory, say: Say) -> None:
    say(lambda recipe: recipe["model"].pop("zero_gamma"))
    with pytest.raises(ConfigError, match=r"model\.zero_gamma: the run has False, the config True"):
        choose(load(old_run, "model.zero_gamma=true"), old_run, "auto")


def test_a_key_whose_absence_meant_something_else_is_compared_with_that(
    old_run: RunDirectory, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(lambda recipe: recipe["data"].pop("flip"))
    monkeypatch.setattr(recorded, "MEANT_BY_ABSENCE", {"data.flip": False})
    with pytest.raises(ConfigError, match=r"data\.flip: the run has False, the config True"):
        choose(load(old_run), old_run, "auto")
    assert choose(load(old_run, "data.flip=false"), old_run, "auto").step == 4


@pytest.mark.parametrize(
    ("key", "value"), [("model.depth_scale", 2), ("data.root_of_labels", None), ("batch_norm.groups", {"of": 4})]
)
def test_a_key_that_is_not_known_here_is_refused_where_it_may_change_the_run(
    old_run: RunDirectory, say: Say, key: str, value: object
) -> None:
    section, _, name = key.partition(".")
    say(lambda recipe: recipe[section].update({name: value}))
    with pytest.raises(ConfigError, match=rf"{key}.*this version has no such key: it was added or removed by another"):
        choose(load(old_run), old_run, "auto")


@pytest.mark.parametrize("key", ["speed.telepathy", "evaluate.twice", "tracking.server"])
def test_elsewhere_it_is_noted(old_run: RunDirectory, say: Say, key: str) -> None:
    section, _, name = key.partition(".")
    say(lambda recipe: recipe.setdefault(section, {}).update({name: True}))
    start = choose(load(old_run), old_run, "auto")
    assert f"  ignored: {key} = True in the recorded run, which this version does not have" in start.notes


def test_the_arguments_of_a_users_function_are_no_keys_of_ours(old_run: RunDirectory, say: Say) -> None:
    say(lambda recipe: recipe["model"].update(arguments={"width": 4}))
    with pytest.raises(ConfigError, match=r"model\.arguments\.width: the run has 4, the config null"):
        choose(load(old_run), old_run, "auto")
    assert choose(load(old_run, "model.arguments={width: 4}"), old_run, "auto").step == 4


def saved(step: int) -> str:
    return json.dumps({"kind": "event", "step": step, "event": "checkpoint", "detail": {"path": "p"}}) + "\n"


def killed(run: RunDirectory) -> None:
    """An attempt that saved step 20 and was killed with its driver."""
    run.begin_attempt({"from_step": 0})
    run.metrics.write_text(saved(10) + saved(20))


def stopped(run: RunDirectory) -> None:
    """An attempt that stopped on request, and whose metrics are lost."""
    run.end_attempt(run.begin_attempt({"from_step": 0}), 75, "stopped on request", 20)


def failed(run: RunDirectory) -> None:
    run.end_attempt(run.begin_attempt({"from_step": 10}), 76, "WorkerLost", 23, {"checkpoint_step": 20})


def failed_because_of_the_folder(run: RunDirectory) -> None:
    """Attempts that found no checkpoint record none, and change nothing."""
    killed(run)
    for _ in range(2):
        run.end_attempt(run.begin_attempt({"workers": 1}), 76, "StorageError", 0, {"checkpoint_step": 0})


@pytest.mark.parametrize("before", [killed, stopped, failed, failed_because_of_the_folder])
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_run_whose_checkpoints_are_gone_does_not_start_over_by_itself(
    tmp_path: Path, before: Callable[[RunDirectory], None], folder: str
) -> None:
    run = RunDirectory(tmp_path, "stopped")
    run.create()
    before(run)
    if folder == "missing":
        run.checkpoints.rmdir()
    with pytest.raises(
        StorageError, match=r"the run has recorded a checkpoint of step 20, and there is none"
    ) as caught:
        choose(load(run), run, "auto")
    assert caught.value.path == str(run.checkpoints)
    assert "--resume never" in caught.value.problem
    assert choose(load(run), run, "never").step == 0
    # The attempt that started over is what counts from now on.
    run.begin_attempt({"from_step": 0})
    with run.metrics.open("a") as file:
        file.write(json.dumps({"kind": "event", "step": 0, "event": "started", "detail": {}}) + "\n")
    assert choose(load(run), run, "auto").step == 0


def test_a_run_that_has_saved_nothing_starts_at_step_0_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "stopped")
    run.create()
    run.metrics.write_text(json.dumps({"kind": "train", "step": 7, "loss": 1.0}) + "\n")
    run.end_attempt(run.begin_attempt({"from_step": 0}), 76, "WorkerLost", 7, {"checkpoint_step": 0})
    assert choose(load(run), run, "auto").step == 0
