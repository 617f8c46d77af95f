from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from launcher import cli
from launcher.inference.evaluate import evaluate_checkpoint
from launcher.inference.predict import Predicted, predict
from launcher.inference.trained import saved
from tests.unit.launcher.inference.conftest import CLASSES


def predicted(run: Path, *paths: Path, top: int = 1, exif: Literal["ignore", "apply"] = "ignore") -> list[Predicted]:
    found = saved(run)
    recipe = dataclasses.replace(found.recipe, data=dataclasses.replace(found.recipe.data, exif=exif))
    found = dataclasses.replace(found, recipe=recipe)
    return list(predict(found, found.load(), list(map(str, paths)), top))


def altered(content: bytes) -> bytes:
    """An image with other bytes in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


def test_predictions_are_bit_equal_to_those_of_an_evaluation(trained_run: Path, images: Path) -> None:
    found = predicted(trained_run, images / "val")
    own = evaluate_checkpoint(saved(trained_run)).predictions
    assert own is not None
    assert [one.guesses[0].probability for one in found] == own.probabilities.tolist()
    assert [one.guesses[0].name for one in found] == [CLASSES[label] for label in own.predicted]
    assert [one.path for one in found] == sorted(map(str, (images / "val").rglob("*.png")))


def test_the_likeliest_classes_come_first(trained_run: Path, images: Path) -> None:
    [found] = predicted(trained_run, images / "val" / "cat" / "0.png", top=100)
    numbers = [guess.probability for guess in found.guesses]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(guess.name for guess in found.guesses) == sorted(CLASSES)
    assert math.isclose(sum(numbers), 1, rel_tol=1e-6)


def test_an_image_is_turned_as_the_exif_key_of_the_run_says(trained_run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    stored, exif = Image.fromarray(pixels), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.save(tmp_path / "plain.png")
    stored.save(tmp_path / "turned.png", exif=exif)
    stored.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    plain, turned, upright = (tmp_path / f"{name}.png" for name in ("plain", "turned", "upright"))
    ignored, applied = (
        [predicted(trained_run, one, exif=exif)[0].guesses for one in (plain, turned, upright)]
        for exif in ("ignore", "apply")
    )
    assert ignored[0] == ignored[1] != ignored[2]
    assert applied[0] != applied[1] == applied[2]


def test_files_that_are_no_images_do_not_keep_others_from_being_predicted(
    trained_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images / "val" / "cat" / "0.png"
    for name, content in (
        ("text.jpg", b"this is a text"),
        ("empty.jpg", b""),
        ("truncated.png", good.read_bytes()[: good.stat().st_size // 2]),
        ("altered.png", altered(good.read_bytes())),  # only reading its pixels shows it
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    names = ("text.jpg", "missing.jpg", "empty.jpg", "truncated.png", "altered.png", "folder", "pipe")
    arguments = [str(good), *(str(tmp_path / name) for name in names), str(good)]
    assert cli.main(["predict", str(trained_run), "--json", *arguments]) == 65
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found["images"]] == arguments
    words = ("not an image", "No such file", "is empty", "truncated", "cannot be decoded", "without images", "regular")
    for one, problem in zip(found["images"][1:-1], words, strict=True):
        assert problem in one["error"]
        assert "delete" not in one["error"]  # advice for a data set
    assert found["images"][0] == found["images"][-1]
    assert "error" not in found["images"][0]

    assert cli.main(["predict", str(trained_run), *arguments]) == 65
    captured = capsys.readouterr()
    assert captured.out.count(str(good)) == 2
    assert captured.err.count("error: ") == len(words)


def test_the_output_has_the_label_of_the_model(
    trained_run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained_run), str(images / "val" / "cat" / "0.png"), "--top", "2"]
    assert cli.main(["predict", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    label = {key: found[key] for key in ("step", "weights", "resolution", "crop")}
    assert label == {"step": 6, "weights": "ema", "resolution": 16, "crop": 0.875}
    [image] = found["images"]
    assert [set(guess) for guess in image["predictions"]] == [{"class", "probability"}] * 2
    assert cli.main(["predict", *arguments]) == 0
    text = capsys.readouterr().out
    assert "moving average of the weights, 16 pixels, central crop 0.875" in text
    assert f"{image['predictions'][0]['probability']:.2%}  {image['predictions'][0]['class']}" in text


def test_an_empty_name_is_not_the_current_folder(
    trained_run: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images / "val" / "cat")
    assert cli.main(["predict", str(trained_run), ""]) == 64
    assert "a name is empty" in capsys.readouterr().err
    [first, *_] = predicted(trained_run, Path())
    assert (first.path, first.problem) == ("0.png", "")


def test_a_number_of_classes_below_one_is_a_usage_error(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(trained_run), "x.png", "--top", "0"]) == 64
    assert "--top 0" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_a_problem_of_the_image(trained_run: Path, images: Path) -> None:
    found = saved(trained_run)
    trained = found.load()
    with torch.no_grad():
        trained.model.get_parameter("fc.bias")[0] = math.nan
    [one] = predict(found, trained, [str(images / "val" / "cat" / "0.png")], 1)
    assert one.problem == "the outputs of the model are not finite"


def test_names_of_files_that_are_no_text_are_shown_without_them(
    trained_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / "a\x1b[31m\udcff.png"
    shutil.copy(images / "val" / "cat" / "0.png", strange)
    assert cli.main(["predict", str(trained_run), str(strange)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_commands_start_without_torch_and_numpy() -> None:
    code = (
        "import sys, launcher.commands.evaluate, launcher.commands.predict\n"
        "print({'torch', 'numpy', 'PIL', 'ray'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
