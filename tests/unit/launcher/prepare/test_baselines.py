from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher import cli
from launcher.prepare import baselines
from launcher.prepare import digits as prepare
from launcher.prepare.baselines import classical_baselines
from resnet_dist.errors import DataError, MissingPackage

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of ten classes, all images of a class alike."""
    for label in range(10):
        image = Image.fromarray(np.random.default_rng(label).integers(0, 256, size=(8, 8), dtype=np.uint8))
        for split, num in (("train", 8), ("val", 2)):
            (tmp_path / split / f"class-{label}").mkdir(parents=True)
            for number in range(num):
                image.save(tmp_path / split / f"class-{label}" / f"{number}.png")
    return tmp_path


@needs_sklearn
def test_baselines_are_fitted_on_train_and_scored_on_val(folder: Path) -> None:
    assert classical_baselines(folder) == {"k": 1, "k_nearest_neighbours": 1.0, "logistic_regression": 1.0}
    # In val, fives now pretend to be sixes: exactly a tenth is wrong.
    for file in (folder / "val" / "class-6").iterdir():
        file.write_bytes((folder / "train" / "class-5" / "0.png").read_bytes())
    assert classical_baselines(folder) == {"k": 1, "k_nearest_neighbours": 0.9, "logistic_regression": 0.9}


@needs_sklearn
def test_k_is_chosen_on_some_images_of_each_class_if_there_are_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn import model_selection

    seen = []

    def score(_: object, pixels: np.ndarray, labels: np.ndarray, cv: int) -> np.ndarray:
        seen.append((len(pixels), np.bincount(labels).tolist()))
        return np.zeros(cv)

    monkeypatch.setattr(model_selection, "cross_val_score", score)
    monkeypatch.setattr(baselines, "_MOST_FOR_K", 50)
    assert classical_baselines(folder)["k_nearest_neighbours"] == 1.0
    assert seen == [(50, [5] * 10)] * 5


@needs_sklearn
def test_images_of_different_sizes_have_no_baselines(folder: Path) -> None:
    Image.new("L", (9, 8)).save(folder / "val" / "class-0" / "0.png")
    with pytest.raises(DataError, match="has images of different sizes"):
        classical_baselines(folder)


def test_without_scikit_learn_the_error_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="scikit-learn"):
        classical_baselines(folder)


def test_the_command_shows_them_as_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "write_digits", prepare.write_drawn_digits)
    monkeypatch.setattr(prepare, "_DRAWN_PER_CLASS", 5)
    monkeypatch.setattr(prepare, "classical_baselines", lambda _: {"k": 1.0, "k_nearest_neighbours": 0.98873})
    assert cli.main(["prepare", "digits", str(tmp_path / "digits"), "--baselines"]) == 0
    assert capsys.readouterr().out == (
        f"images in {tmp_path}/digits: 40 for training, 10 for evaluation\n  k: 1\n  k_nearest_neighbours: 98.87%\n"
    )


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["digits", "--from", "x"], "Allowed: with fashion-mnist or cifar10"),
        (["cifar10", "--baselines"], "Allowed: with digits or fashion-mnist"),
    ],
)
def test_an_option_without_effect_is_refused(
    arguments: list[str], allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", arguments[0], str(tmp_path / "images"), *arguments[1:]]) == 64
    assert allowed in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
