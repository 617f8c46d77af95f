"""`launcher plan CONFIG --batch B`: the recipe with its sources, and the command that trains it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.config.schema import RunConfig

FOLDER = Path(__file__).parents[4] / "configs"
CONFIG = str(FOLDER / "rn50_8node.yaml")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str, path: str = CONFIG) -> str:
    assert cli.main(["plan", path, *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, path: str = CONFIG, code: int = 78) -> str:
    assert cli.main(["plan", path, *arguments]) == code
    return capsys.readouterr().err


def applied(text: str) -> RunConfig:
    """The config that the command in the last line trains."""
    command = shlex.split(text.splitlines()[-1])
    assert command[:3] == ["python", "-m", "launcher.train"]
    return configs.load(command[3], command[4:])


def rows(text: str) -> dict[str, str]:
    """The cells of each row of the recipe after its label, which may go on in the lines below."""
    table = text.partition("\nRecipe\n")[2].partition("  source: ")[0].splitlines()
    place = next(line.index("interpolated:") for line in table if line.startswith("  peak LR"))
    found: dict[str, list[str]] = {}
    for line in table:
        label, value, source = line[:19].strip(), line[19:place].strip(), line[place:].strip()
        if label:
            found[label] = [value, source]
        elif found:
            last = list(found.values())[-1]
            last[:] = [f"{last[0]} {value}".strip(), f"{last[1]} {source}".strip()]
    return {label: "  ".join(cells) for label, cells in found.items()}


def test_a_published_batch_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--batch", "32768")
    assert "published by Google" in text
    assert "interpolated" not in text
    run = applied(text)
    assert (run.batch.size, str(run.duration), str(run.schedule.warmup)) == (32768, "2893 steps", "16 epochs")
    assert (run.optimizer.name, run.optimizer.momentum, run.optimizer.weight_decay) == ("lars", 0.94, 2.5e-5)
    assert (run.schedule.peak_lr, run.schedule.decay, run.schedule.end_lr) == (21.2, "polynomial", 1e-4)
    assert (run.batch_norm.span, run.regularization.label_smoothing) == (128, 0.1)


def test_a_batch_between_two_is_labelled_number_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--batch", "16384")
    lines = rows(text)
    assert "interpolated: 17 with 8,192, 21.2 with 32,768" in lines["peak LR"]
    assert "75.9 % top-1 after 46.6 epochs" in lines["expected"]
    assert "interpolated: 41.875 with 8,192, 56 with 32,768" in lines["expected"]
    assert "not interpolated" in lines["batch norm"]
    assert "the same for all of its batches" in lines["schedule"]
    assert "Nobody has published a run with these numbers." in " ".join(text.split())
    run = applied(text)
    assert (run.batch.size, run.schedule.peak_lr, run.name) == (16384, 18.4, "rn50-8node-16384")


def test_the_other_lars_has_the_other_origin(capsys: pytest.CaptureFixture[str]) -> None:
    run = applied(plan(capsys, "optimizer.lr_in_momentum=false", "--batch", "58880"))
    assert (run.schedule.peak_lr, run.optimizer.lr_in_momentum) == (23.246, False)


@pytest.mark.parametrize(("batch", "peak_lr"), [(256, 0.1), (2048, 0.8), (8192, 3.2)])
def test_sgd_replaces_the_whole_schedule_of_the_config(
    capsys: pytest.CaptureFixture[str], batch: int, peak_lr: float
) -> None:
    path = str(FOLDER / "recipes" / "nvidia_convnets_2048.yaml")
    run = applied(plan(capsys, "--batch", str(batch), path=path))
    assert run.schedule.peak_lr == pytest.approx(peak_lr)
    assert (run.schedule.base_lr, run.schedule.decay) == (None, "step")
    assert (run.optimizer.momentum, run.optimizer.nesterov) == (0.9, True)
    assert (run.schedule.warmup.count > 0) == (batch > 256)


def test_the_expected_accuracy_is_that_at_the_end_where_no_epochs_are_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(FOLDER / "recipes" / "nado2021_nesterov_32768.yaml")
    assert "75.9 % top-1 at the end" in plan(capsys, "--batch", "32768", path=path)
    assert rows(plan(capsys, "--batch", "4096", path=path))["expected"].startswith("76.3 to 76.4 % top-1 at the end")


def test_a_recipe_with_other_keys_than_the_published_one_has_no_expected_accuracy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = ["data.augmentation.name=trivialaugment", "regularization.mixup=0.2", "data.resolution=176"]
    expected = rows(plan(capsys, "--batch", "16384", *others))["expected"]
    assert expected.startswith("unknown  other than ")
    assert {"data.augmentation.name,", "data.resolution,", "regularization.mixup"} <= set(expected.split())


def test_a_batch_beyond_all_tables_has_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "--batch", "100000")
    assert text.startswith("error: command line: --batch 100000: found 100,000, for which nobody has published a run")
    assert "Runs to 75.9 % top-1 are published up to a batch of 67,840" in text
    assert "schedule.peak_lr=LR" in text


def test_a_batch_that_does_not_fit_the_config_is_refused_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "batch.num_micro_batches=3", "--batch", "8192")
    assert "batch.num_micro_batches: found 3, which does not divide batch.size 8192" in text


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("model.name=resnet18", "model.name resnet18"),
        ("model.num_classes=10", "model.num_classes 10"),
        ("data.num_samples=5000", "data.num_samples 5000"),
    ],
)
def test_other_networks_and_images_have_no_answer(
    capsys: pytest.CaptureFixture[str], override: str, found: str
) -> None:
    assert f"found {found}. Allowed: resnet50 on ImageNet-1k" in refused(capsys, override, "--batch", "8192")


@pytest.mark.parametrize(
    "arguments",
    [("--batch", "0"), ("--batch", "-5"), ("--batch", "8192", "--ablate"), ("--batch", "8192", "--nodes", "x")],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert "Allowed" in refused(capsys, *arguments, code=64)


def test_scaling_by_the_table_trains_with_the_same_lr(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["schedule={scaling: table, warmup: 5 epochs, decay: polynomial}", "batch.size=16384"]
    text = plan(capsys, *overrides)
    assert " 18.4  end of warm-up" in text
    assert "peak LR interpolated between runs of Google with 8,192 and 32,768" in " ".join(text.split())
    assert "  peak LR published by Google\n" in plan(capsys, *overrides, "batch.size=8192")


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("optimizer={name: sgd, momentum: 0}", "optimizer.nesterov false"),
        ("model.name=resnet18", "model.name resnet18"),
    ],
)
def test_scaling_by_the_table_is_refused_for_another_setting(
    capsys: pytest.CaptureFixture[str], override: str, found: str
) -> None:
    text = refused(capsys, "schedule={scaling: table, warmup: 5 epochs}", "batch.size=8192", override)
    assert f"schedule.scaling: found {found}" in text


def test_scaling_by_the_table_is_refused_where_nothing_is_published(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["schedule={scaling: table, warmup: 5 epochs, decay: polynomial}", "batch.size=1024"]
    text = refused(capsys, *overrides)
    assert "found 1,024, for which nobody has published a run" in text
    assert "256 to 8,192 (Goyal et al. 2017: sgd)" in text
    assert "schedule.peak_lr" in refused(capsys, *overrides, "batch.size=8192", "schedule.peak_lr=17")
