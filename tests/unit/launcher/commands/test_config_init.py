"""`launcher config init`: a config that runs, from what is in a folder of images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from launcher import cli
from launcher.commands import config_init
from launcher.commands.config_init import Images, config_lines, look_at
from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.config.schema import RunConfig
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.save import write
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import DataRecipe, ModelRecipe, plain


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_init, "_has_gpu", lambda: False)


HAS_GPU = config_init._has_gpu


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 40, 20 and 10 training images and two val images each, of several sizes."""
    for name, num in (("ant", 40), ("bee", 20), ("cat", 10)):
        for split, count in (("train", num), ("val", 2)):
            (tmp_path / "my images" / split / name).mkdir(parents=True)
            for number in range(count):
                size = (60 + number % 3, 40 + number % 2)  # width, height
                Image.new("RGB", size).save(tmp_path / "my images" / split / name / f"{number}.png")
    return tmp_path / "my images"


def images(num: int, side: int, imbalance: float = 1.0) -> Images:
    """Two classes with `num` training images together."""
    few = round(num / (1 + imbalance))
    counts = {"few": few, "many": num - few}
    sizes = {"shorter_side": side, "smallest": (side, side), "largest": (side, side)}
    return Images(root=Path("/data/a b"), counts=counts, num_val=10, **sizes)  # type: ignore[arg-type]


def config_of(found: Images) -> RunConfig:
    text = "\n".join(config_lines(found, None))
    return configs.from_mapping(yaml_source.parse(text, "init").data, "/")


def test_a_folder_is_described_with_its_classes_sizes_and_counts(folder: Path) -> None:
    found = look_at(folder)
    assert found.counts == {"ant": 40, "bee": 20, "cat": 10}
    assert found.described == "3 classes, 70 training and 6 val images of 40 x 60 to 41 x 62 pixels"
    assert (found.num_train, found.num_val, found.shorter_side, found.imbalance) == (70, 6, 40, 4.0)


def test_a_config_is_written_that_is_valid_and_names_the_imbalance(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "val" / "notes.txt").touch()
    file = tmp_path / "mine.yaml"
    assert cli.main(["config", "init", str(folder), str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{file}: 3 classes, 70 training and 6 val images of 40 x 60 to 41 x 62 pixels"
    assert said[1].startswith("  WARNING: ")
    assert said[1].endswith("val: left out files outside of the class folders: 1, for example notes.txt")
    assert said[2] == f"next: launcher plan {file}; launcher train {file}"
    config = configs.load(file)
    assert (config.name, config.model.num_classes, config.data.num_samples) == ("my-images-from-scratch", 3, 70)
    assert (config.data.root, config.data.resolution, config.batch.size) == (str(folder), 40, 32)
    assert config.loss.class_weights == "balanced"
    assert "# ant has 4.0 times the images of cat" in file.read_text()
    assert cli.main(["config", "init", str(folder), str(file)]) == 64
    assert f"{file}: exists already" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "init", str(folder), str(tmp_path / "nowhere" / "c.yaml")]) == 64
    assert "c.yaml: cannot be written: No such file or directory" in capsys.readouterr().err


def test_names_with_odd_characters_give_a_valid_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = folder.with_name("fünf 😀: #1")
    folder.rename(odd)
    for split in ("train", "val"):
        (odd / split / "cat").rename(odd / split / "a\nb: [")
    assert cli.main(["config", "init", str(odd)]) == 0
    printed = yaml_source.parse(capsys.readouterr().out, "printed").data
    assert printed["data"]["root"] == str(odd)


def test_without_a_file_the_config_is_printed_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "init", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert yaml_source.parse(printed, "printed").data["model"] == {"name": "resnet20", "num_classes": 3}


@pytest.mark.parametrize(
    ("num", "side", "network", "resolution", "batch"),
    [
        (20, 8, "resnet20", 32, 8),
        (2_000, 28, "resnet20", 32, 128),
        (60_000, 64, "resnet20", 64, 256),
        (1_000, 65, "resnet20", 64, 64),
        (5_000, 130, "resnet18", 128, 256),
        (60_000, 500, "resnet50", 224, 256),
    ],
)
def test_network_resolution_and_batch_follow_from_sizes(
    num: int, side: int, network: str, resolution: int, batch: int
) -> None:
    config = config_of(images(num, side))
    assert (config.model.name, config.data.resolution, config.batch.size) == (network, resolution, batch)
    assert config.data.root == "/data/a b"


@pytest.mark.parametrize(("imbalance", "weights"), [(1.0, "none"), (1.9, "none"), (2.1, "balanced")])
def test_classes_are_weighted_from_a_factor_of_two(imbalance: float, weights: str) -> None:
    assert config_of(images(10_000, 32, imbalance)).loss.class_weights == weights


def test_a_run_gives_its_network_its_resolution_and_its_normalisation(folder: Path, tmp_path: Path) -> None:
    recipe = {
        "model": plain(ModelRecipe(name="resnet8", num_classes=7, width=0.5, zero_gamma=True, freeze=("conv1",))),
        "data": plain(DataRecipe(root="/elsewhere", resolution=24, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))),
    }
    weights = build_model(ModelRecipe(name="resnet8", num_classes=7, width=0.5), 0).state_dict()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write(tmp_path / "run" / "checkpoints", CheckpointContent(3, weights, {}, {"step": 3, "recipe": recipe}, None))
    assert cli.main(["config", "init", str(folder), str(tmp_path / "c.yaml"), "--weights", str(tmp_path / "run")]) == 0
    config = configs.load(tmp_path / "c.yaml")
    assert config.model == ModelRecipe(
        name="resnet8", num_classes=3, width=0.5, weights=str(tmp_path / "run"), freeze=("conv1", "bn1")
    )
    assert (config.data.resolution, config.data.mean, config.data.std) == (24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert config.optimizer.lr_factors == {"fc": 10}
    build_model(config.model, 0, lambda _: weights)  # they fit


def test_a_file_of_torchvision_gives_the_network(folder: Path, tmp_path: Path) -> None:
    weights = build_model(ModelRecipe(name="resnet18", num_classes=10), 0).state_dict()
    torch.save({"model": weights, "epoch": 3}, tmp_path / "w.pth")
    assert (
        cli.main(["config", "init", str(folder), str(tmp_path / "c.yaml"), "--weights", str(tmp_path / "w.pth")]) == 0
    )
    config = configs.load(tmp_path / "c.yaml")
    assert (config.model.name, config.data.resolution) == ("resnet18", 96)
    assert config.data.mean == DataRecipe(root="").mean  # ImageNet's


def test_weights_of_no_network_of_ours_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "w.pth")
    assert cli.main(["config", "init", str(folder), "--weights", str(tmp_path / "w.pth")]) == 78
    assert "has weights of none of the built-in networks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("no val", "val: no such folder; expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"),
        ("no folder", "train: no such folder; expected ROOT/train/CLASS/*.jpg"),
        ("no classes", "train: has no class folder"),
        ("one class", "train: has one class, ant; expected at least two class folders"),
        ("an empty class", "bee: is a class without images"),
        ("no image", "0.png: is not an image"),
    ],
)
def test_a_folder_without_its_form_is_refused_with_what_is_expected(
    damage: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def remove(*names: str) -> None:
        for name in names:
            for file in sorted((folder / name).rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            (folder / name).rmdir()

    if damage == "no val":
        remove("val")
    elif damage == "no folder":
        remove("train", "val")
    elif damage == "no classes":
        remove("train/ant", "train/bee", "train/cat", "val/ant", "val/bee", "val/cat")
    elif damage == "one class":
        remove("train/bee", "train/cat", "val/bee", "val/cat")
    elif damage == "an empty class":
        remove("train/bee")
        (folder / "train" / "bee").mkdir()
    else:
        (folder / "train" / "ant" / "0.png").write_text("not an image")
    assert cli.main(["config", "init", str(folder)]) == 65
    assert said in capsys.readouterr().err


def test_without_torch_a_config_is_written_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_init, "_has_gpu", HAS_GPU)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert config_of(images(1_000, side=224)).resources.gpus_per_worker == 0
