from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import ConfigError, UsageError
from tests.unit.launcher.study.conftest import MakePlan

BAD = {
    "an unknown key of a config": ("grid: {model.nam: [resnet20]}", "4: model.nam: unknown key.*Did you mean name"),
    "an unknown value": ("grid: {model.name: [resnet20, resnet21]}", '4: model.name: found "resnet21"'),
    "a value of another type": ("overrides:\n  batch.size: many", "5: batch.size: found .many. .a string"),
    "a key in grid and sets": (
        "grid: {batch.size: [8]}\nsets:\n  - {batch.size: 16}",
        r"6: sets\[0\].batch.size: given twice: here and as grid.batch.size \(.*study.yaml:4\). Allowed: each key once",
    ),
    "a section in the grid and its key in a set": (
        "grid: {optimizer: [{name: sgd}]}\nsets:\n  - {optimizer.momentum: 0.5}",
        r"6: sets\[0\].optimizer.momentum: given twice: here and as grid.optimizer",
    ),
    "a key in grid and overrides": ("overrides: {batch.size: 8}\ngrid: {batch.size: [8]}", "5: grid.batch.size: given"),
    "a key in draw and grid": (
        "grid: {schedule.peak_lr: [1.0]}\ndraw: {trials: 1, keys: {schedule.peak_lr: {uniform: [0.1, 1.0]}}}",
        "5: draw.keys.schedule.peak_lr: given twice",
    ),
    "the seed in the grid": ("grid: {seed: [0, 1]}", "4: grid.seed: .* do not take this key. Allowed: the key seeds"),
    "the name in a set": ("sets:\n  - {name: a}", r"5: sets\[0\].name: .* each run gets its own name"),
    "the place": ("overrides: {place: ray}", "4: overrides.place: .* --place on the command line"),
    "two runs of one name": (
        "sets:\n  - {label: a b, batch.size: 8}\n  - {label: a_b, batch.size: 16}",
        r"6: sets\[1\].label: two runs would have the name a_b_seed-0, this one and that of .*study.yaml:5. "
        "Allowed: values or labels that differ",
    ),
    "two runs of one name by a grid": (
        "grid:\n  optimizer.nesterov: [false]\n  model.name: [resnet20, resnet20]",
        "4: grid: two runs would have the name nesterov-false_model-resnet20_seed-0, this one and that of .*yaml:5",
    ),
    "a long name": (f"sets:\n  - {{label: {'a' * 100}, batch.size: 8}}", "5: the name of a run has 107 characters"),
    "a seed out of range": ("seeds: [-1]", "4: seed: found -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_refused_before_anything_starts(make_plan: MakePlan, tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ConfigError, match=f"study.yaml:{message}"):
        make_plan(text)
    assert not (tmp_path / "runs").exists()


def test_all_mistakes_are_reported_once(make_plan: MakePlan) -> None:
    with pytest.raises(ConfigError) as raised:
        make_plan("grid:\n  model.name: [resnet1, resnet2]\n  batch.size: [0, 8]\nseeds: [0, 1]")
    assert len(raised.value.problems) == 3


def test_every_combination_is_a_run_for_every_seed(make_plan: MakePlan, tmp_path: Path) -> None:
    found = make_plan("grid: {schedule.peak_lr: [0.1, 0.2], optimizer.nesterov: [false, true]}\nseeds: [3, 4]")
    assert [run.name for run in found.runs] == [
        f"peak_lr-{rate}_nesterov-{nesterov}_seed-{seed}"
        for rate in ("0.1", "0.2") for nesterov in ("false", "true") for seed in (3, 4)
    ]  # fmt: skip
    run = found.runs[-1]
    assert (run.number, run.seed, run.config.seed) == (7, 4, 4)
    assert run.config.schedule.peak_lr == 0.2
    assert run.config.optimizer.nesterov
    assert run.directory.path == tmp_path / "runs" / "small" / "runs" / run.name
    assert run.config.place == "local"
    assert len(found.points) == 4
    assert found.axes == ["schedule.peak_lr", "optimizer.nesterov"]


def test_sets_are_pairs_of_values_and_may_change_what_all_runs_have(make_plan: MakePlan) -> None:
    found = make_plan(
        "overrides: {optimizer.momentum: 0.5}\nsets:\n  - {label: small, batch.size: 8, schedule.peak_lr: 0.1}\n"
        "  - {batch: {size: 16}, schedule.peak_lr: 0.2, optimizer.momentum: 0.8}\n"
    )
    assert [run.name for run in found.runs] == ["small_seed-0", "size-16_peak_lr-0.2_momentum-0.8_seed-0"]
    chosen = [(run.config.batch.size, run.config.schedule.peak_lr, run.config.optimizer.momentum) for run in found.runs]
    assert chosen == [(8, 0.1, 0.5), (16, 0.2, 0.8)]
    assert found.points[0].text() == "small"


def test_overrides_of_the_command_line_apply_to_every_run(make_plan: MakePlan) -> None:
    found = make_plan("overrides: {batch.size: 8}\ngrid: {schedule.peak_lr: [0.1, 0.2]}", "batch.size=64")
    assert [run.config.batch.size for run in found.runs] == [64, 64]
    with pytest.raises(ConfigError, match=r"command line: schedule.peak_lr=1: .*the study varies this key.*yaml:4"):
        make_plan("grid: {schedule.peak_lr: [0.1, 0.2]}", "schedule.peak_lr=1")
    with pytest.raises(ConfigError, match=r"command line: seed=1: .*Allowed: the key seeds"):
        make_plan("", "seed=1")
    with pytest.raises(UsageError, match="this is not an override"):
        make_plan("", "seed")


def test_a_study_without_a_grid_is_one_combination(make_plan: MakePlan) -> None:
    found = make_plan("seeds: [0, 1]")
    assert [run.name for run in found.runs] == ["seed-0", "seed-1"]
    assert [point.text() for point in found.points] == [""]


def test_keys_that_end_alike_keep_their_sections(make_plan: MakePlan) -> None:
    found = make_plan("grid: {optimizer.momentum: [0.5], batch_norm.momentum: [0.2]}")
    assert found.runs[0].name == "optimizer.momentum-0.5_batch_norm.momentum-0.2_seed-0"


def test_a_name_is_called_by_its_section(make_plan: MakePlan) -> None:
    found = make_plan("grid: {model.name: [resnet20], optimizer.name: [sgd]}")
    assert found.runs[0].name == "model-resnet20_optimizer-sgd_seed-0"
    assert found.points[0].text() == "model resnet20, optimizer sgd"


def test_drawn_values_depend_on_the_seed_the_key_and_the_trial_only(make_plan: MakePlan) -> None:
    draw = "draw: {trials: %d, seed: %d, keys: {%sschedule.peak_lr: {log_uniform: [0.01, 1.0]}}}"
    two, five = make_plan(draw % (2, 0, "")), make_plan(draw % (5, 0, ""))
    more = make_plan(draw % (5, 0, "optimizer.momentum: {uniform: [0.0, 0.9]}, "))
    rates = [run.config.schedule.peak_lr for run in five.runs]
    assert [run.config.schedule.peak_lr for run in two.runs] == rates[:2]
    assert [run.config.schedule.peak_lr for run in more.runs] == rates
    assert len(set(rates)) == 5
    assert all(0.01 <= rate <= 1.0 for rate in rates if rate is not None)
    assert [run.config.schedule.peak_lr for run in make_plan(draw % (5, 1, "")).runs] != rates
    assert [run.name for run in two.runs] == ["trial-0_seed-0", "trial-1_seed-0"]
    assert two.points[0].axes == {"trial": 0, "schedule.peak_lr": rates[0]}


def test_a_tuning_counts_the_runs_that_are_trained(make_plan: MakePlan) -> None:
    found = make_plan(
        "grid: {batch.size: [8, 16], schedule.peak_lr: [0.1, 0.2, 0.4]}\nseeds: [0, 1, 2]\n"
        "tune: {keys: [schedule.peak_lr], seeds: [0]}"
    )
    assert len(found.runs) == 18
    assert found.num_runs == 6 + 2 * 2
