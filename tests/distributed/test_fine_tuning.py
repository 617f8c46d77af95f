"""The way of docs/fine-tuning.md, offline: a folder of images, a config, weights, frozen layers, a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from launcher import cli
from launcher.config import load as configs
from launcher.prepare.digits import write_drawn_digits
from resnet_dist.checkpoint import restore
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe
from tests.distributed.conftest import GONE

IN_THIS_PROCESS = ["faults.max_failures=0", "log.tensorboard=false", "data.flip=false"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GONE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`others`: seven digits; `mine`: three with 48, 24 and 12 training images."""
    root = tmp_path_factory.mktemp("images")
    digits = write_drawn_digits(root / "digits")
    for folder, names, nums in (("others", "0124679", [20] * 7), ("mine", "358", [48, 24, 12])):
        for name, num in zip(names, nums, strict=True):
            for split, most in (("train", num), ("val", 10)):
                (root / folder / split / name).mkdir(parents=True)
                for file in sorted((digits / split / name).iterdir())[:most]:
                    shutil.copy(file, root / folder / split / name)
    return root


@pytest.fixture(scope="module")
def trained(folders: Path) -> Path:
    """The run directory of a short run on `others`."""
    file = str(folders / "others.yaml")
    assert cli.main(["config", "init", str(folders / "others"), file]) == 0
    short = ["model.name=resnet8", "duration=2 epochs", f"storage={folders / 'runs'}"]
    assert cli.main(["train", file, *short, *IN_THIS_PROCESS]) == 0
    return folders / "runs" / "others-from-scratch"


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = restore.newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.model()


def test_from_a_folder_and_a_run_of_ours_to_a_result(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    assert cli.main(["config", "init", str(folders / "mine"), str(file), "--weights", str(trained)]) == 0
    config = configs.load(file)
    assert config.model == ModelRecipe(name="resnet8", num_classes=3, weights=str(trained), freeze=("conv1", "bn1"))
    assert config.optimizer.lr_factors == {"fc": 10}
    assert config.loss.class_weights == "balanced"
    capsys.readouterr()
    command = ["train", str(file), f"storage={tmp_path}", *IN_THIS_PROCESS, "model.freeze=[conv1, bn1, layer1]"]
    assert cli.main([*command, "duration=2 epochs"]) == 0
    said = capsys.readouterr().out
    assert f"WARNING: model.weights: starts with the weights in {trained}/checkpoints/step-" in said
    assert "has a head of another number of classes, which starts untrained: 2 of the model's" in said
    assert "fc.weight, [7, 64] in the file and [3, 64] in the model" in said
    assert "evaluated: top-1" in said
    assert "of 30 val images" in said

    def check() -> None:
        before, after = weights_of(trained), weights_of(tmp_path / "mine-fine-tuned")
        same = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
        # batch norm's running statistics and counters are among them
        assert same == {name for name in after if name.split(".")[0] in ("conv1", "bn1", "layer1")}

    check()
    # A resumed run needs no weights, and its layers stay frozen.
    assert cli.main([*command, "duration=3 epochs", "model.weights=null"]) == 0
    assert "starts with" not in capsys.readouterr().out
    check()
    for key, value in (("model.freeze", "[conv1]"), ("data.subset", "83")):
        assert cli.main([*command, "duration=4 epochs", f"{key}={value}"]) == 78
        assert f"{key}: the run has" in capsys.readouterr().err


def test_from_a_folder_and_a_file_of_torchvision_to_a_result(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model(ModelRecipe(name="resnet18", num_classes=1000), seed=1).state_dict()
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 89}, tmp_path / "w.pth")
    file = tmp_path / "mine.yaml"
    assert cli.main(["config", "init", str(folders / "mine"), str(file), "--weights", str(tmp_path / "w.pth")]) == 0
    short = ["duration=2 steps", "schedule.warmup=0 steps", "data.resolution=32"]
    assert cli.main(["train", str(file), f"storage={tmp_path}", *IN_THIS_PROCESS, *short]) == 0
    said = capsys.readouterr().out
    assert "fc.weight, [1000, 512] in the file and [3, 512] in the model" in said
    assert "evaluated: top-1" in said
    after = weights_of(tmp_path / "mine-fine-tuned")
    frozen = [name for name in after if name.startswith(("conv1", "bn1"))]
    assert len(frozen) == 6
    assert all(torch.equal(after[name], state[name]) for name in frozen)


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        (
            "model.freeze=[conv1, leyer1]",
            78,
            'command line: model.freeze=[conv1, leyer1]: model.freeze: found "leyer1"',
        ),
        ("model.freeze=[conv1, bn1, layer1, layer2, layer3, fc]", 78, "and nothing is left to train"),
        (
            "model.name=resnet14",
            78,
            "They are weights of resnet8 (see command line: model.name=resnet14). Allowed: model.name resnet8",
        ),
        ("model.weights=torn.pt", 65, "torn.pt: is damaged, or not a file of torch.save"),
        ("model.weights=nowhere.pt", 78, "nowhere.pt: no such file or folder"),
        ("model.weights=.", 78, "a folder that is neither a checkpoint nor a run directory with checkpoints"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(
    override: str,
    code: int,
    said: str,
    folders: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mine.yaml"
    assert cli.main(["config", "init", str(folders / "mine"), str(file), "--weights", str(trained)]) == 0
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 and so on")
    capsys.readouterr()
    assert cli.main(["train", str(file), f"storage={tmp_path}", *IN_THIS_PROCESS, override]) == code
    assert said in capsys.readouterr().err


def test_a_frozen_layer_that_does_not_exist_is_named_with_its_line(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    assert cli.main(["config", "init", str(folders / "mine"), str(file), "--weights", str(trained)]) == 0
    text = file.read_text().replace("freeze: [conv1, bn1]", "freeze: [conv1, layer4]")
    file.write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "freeze:" in line)
    for verb, options in (("train", [f"storage={tmp_path}", *IN_THIS_PROCESS]), ("plan", [])):
        assert cli.main([verb, str(file), *options]) == 78
        expected = (
            f'{file}:{line}: model.freeze: found "layer4", which the model does not have. Allowed: bn1, conv1, fc'
        )
        assert expected in capsys.readouterr().err
