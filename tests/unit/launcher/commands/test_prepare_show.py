from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from launcher import cli
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.prepare import samples_of_step
from launcher.prepare.contact_sheet import SIDE, Sample, draw
from resnet_dist.data import index_of
from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.loader import decoder_for, training_batches
from resnet_dist.data.order import order_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.training.device import ToDevice

CPU = torch.device("cpu")
ALL_CHANGES = (
    "data.augmentation=randaugment",
    "data.color_jitter=0.4",
    "regularization.mixup=0.2",
    "regularization.cutmix=1.0",
    "regularization.random_erasing=0.5",
)
MICRO_BATCHES = ("batch.num_micro_batches=2", "batch_norm.span=worker")
PROGRESSIVE = "data.progressive={0 %: 8, 4 steps: 16}"


@pytest.fixture
def config_file(tmp_path: Path, write_images: Callable[[Path], Path]) -> Path:
    write_images(tmp_path / "images")
    file = tmp_path / "shown.yaml"
    file.write_text(f"""
schema: 1
name: shown
storage: {tmp_path / "runs"}
duration: 8 steps
workers: 2
model: {{name: resnet20, num_classes: 2}}
data: {{root: {tmp_path / "images"}, resolution: 16}}
batch: {{size: 8}}
schedule: {{peak_lr: 0.1}}
""")
    return file


def run(file: Path, *arguments: str) -> int:
    return cli.main(["prepare", "show", str(file), *arguments])


def trained(config: RunConfig, step: int, rank: int, num: int) -> samples_of_step.Shown:
    return samples_of_step.trained(config, samples_of_step.splits(config)[0], step, rank, num)


def evaluated(config: RunConfig, rank: int, num: int) -> samples_of_step.Shown:
    return samples_of_step.evaluated(config, samples_of_step.splits(config)[1], rank, num)


def seen_in_training(config: RunConfig, step: int, rank: int) -> np.ndarray:
    """The images that worker `rank` trains on, uint8 [n, h, w, 3], by the functions that a run calls."""
    recipe, index = config.recipe(), index_of(config.data, "train")
    batches = training_batches(
        index,
        files_of(index),
        order_of(index, config.data, config.seed),
        BatchLayout.of(recipe, config.workers.most),
        rank,
        config.data,
        config.seed,
        decoder_for(config.data, device=CPU, num_threads=1, max_batch_size=8),
        [step],
        augmentation_of(config.data, seed=config.seed, device=CPU, num_threads=1),
    )
    to_device = ToDevice(recipe, CPU, training=True)
    images = torch.cat([to_device(batch).images for batch in batches]).numpy().transpose(0, 2, 3, 1)
    exact = (images * np.array(config.data.std) + np.array(config.data.mean)) * 255
    pixels: np.ndarray = np.clip(np.rint(exact), 0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("changes", [(), ALL_CHANGES, MICRO_BATCHES], ids=["plain", "all", "micro"])
@pytest.mark.parametrize(("step", "rank"), [(0, 0), (5, 1)])
def test_what_is_shown_is_what_is_trained_on(config_file: Path, changes: tuple[str, ...], step: int, rank: int) -> None:
    config = configs.load(config_file, [*changes, PROGRESSIVE])
    found = trained(config, step, rank, num=3)
    expected = seen_in_training(config, step, rank)
    assert [np.asarray(sample.seen).tolist() for sample in found.samples] == expected[:3].tolist()
    assert np.asarray(found.samples[0].seen).shape == ((8, 8, 3) if step == 0 else (16, 16, 3))


def test_each_image_has_its_position_its_file_and_its_window(config_file: Path, tmp_path: Path) -> None:
    config = configs.load(config_file)
    index = index_of(config.data, "train")
    stream = order_of(index, config.data, config.seed)
    found = trained(config, 3, rank=1, num=9).samples
    assert [sample.position for sample in found] == [28, 29, 30, 31]  # a worker has four images in a step
    for sample in found:
        assert sample.sample_id == stream.sample_ids(np.array([sample.position]))[0]
        assert sample.path == index.paths[sample.sample_id]
        assert sample.classes == [(sample.path.split("/")[1], 1.0)]
        with Image.open(tmp_path / "images" / sample.path) as original:
            assert sample.original is not None
            assert np.array_equal(np.asarray(sample.original), np.asarray(original))
        top, left, height, width = sample.window
        assert 0 <= top < top + height <= 12
        assert 0 <= left < left + width <= 16


def test_the_network_sees_the_window_that_is_drawn(config_file: Path) -> None:
    config = configs.load(config_file, ["data.resolution=12"])
    for sample in evaluated(config, rank=0, num=4).samples:
        assert sample.original is not None
        top, left, height, width = sample.window
        cut = sample.original.crop((left, top, left + width, top + height))
        assert (height, width) == (10, 10)  # 0.875 of 12
        difference = np.asarray(cut.resize((12, 12), Image.Resampling.BILINEAR), int) - np.asarray(sample.seen, int)
        assert np.abs(difference).max() <= 1


def test_mixed_images_have_both_classes_with_their_parts(config_file: Path) -> None:
    config = configs.load(config_file, ["regularization.mixup=5", "workers=1", "seed=2"])
    found = trained(config, 0, rank=0, num=8).samples
    assert any(len(sample.classes) == 2 for sample in found)
    for sample in found:
        parts = [part for _, part in sample.classes]
        assert sum(parts) == pytest.approx(1)
        assert parts == sorted(parts, reverse=True)


def test_the_evaluations_images_have_its_resolution_and_no_changes(config_file: Path) -> None:
    config = configs.load(config_file, [*ALL_CHANGES, "evaluate.resolution=24"])
    found = evaluated(config, rank=1, num=3)
    assert [sample.path for sample in found.samples] == list(index_of(config.data, "val").paths[4:7])
    assert {np.asarray(sample.seen).shape for sample in found.samples} == {(24, 24, 3)}
    assert found.described == "24 pixels, central crop 0.875"


def test_steps_that_the_run_has_skipped_are_left_out(config_file: Path, tmp_path: Path) -> None:
    config = configs.load(config_file)
    before = trained(config, 2, rank=0, num=1).samples
    (tmp_path / "runs" / "shown").mkdir(parents=True)
    (tmp_path / "runs" / "shown" / "skips.json").write_text('[{"step": 1, "samples": 24}]')
    after = trained(config, 2, rank=0, num=1).samples
    assert after[0].position == before[0].position + 24


# --- the picture


def test_it_writes_a_picture_with_the_images(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(config_file, "--step", "2", "--num", "2", f"data.resolution={SIDE}") == 0
    assert capsys.readouterr().out.startswith("shown-step-2.png: 2 images")
    config = configs.load(config_file, [f"data.resolution={SIDE}"])
    with Image.open(tmp_path / "shown-step-2.png") as picture:
        sheet = np.asarray(picture)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (1, SIDE))
    for image in seen_in_training(config, 2, rank=0)[:2]:
        assert (windows[:, :, 0] == image[SIDE // 2, :, 0]).all(axis=2).any()
    assert run(config_file, "--split", "val", "--output", "val.PNG") == 0
    with Image.open("val.PNG") as val:
        assert val.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "8"], "--step 8: Allowed: a whole number from 0 to 7"),
        (["--step", "-1"], "--step -1: Allowed: a whole number from 0 to 7"),
        (["--rank", "2"], "--rank 2: Allowed: a whole number from 0 to 1"),
        (["--num", "0"], "--num 0: Allowed: a whole number from 1 to 200"),
        (["--output", "a.jpg"], "--output a.jpg: Allowed: a file NAME.png"),
        (["--split", "val", "--step", "0"], "--step: an evaluation has the same images after every step"),
    ],
)
def test_wrong_options_are_usage_errors(
    config_file: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file, *arguments) == 64
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config_file, "--output", "/nowhere/at/all.png") == 65
    assert "/nowhere/at/all.png" in capsys.readouterr().err


def test_a_broken_image_is_named(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path / "images" / "train").glob("*/*.jpg"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    assert run(config_file, "--step", "0") == 65
    assert "images/train/" in capsys.readouterr().err


def test_broken_images_of_weight_0_are_shown_as_such(config_file: Path, tmp_path: Path) -> None:
    replace = ("data.on_error=replace", "data.max_bad_images=4", "workers=1", "regularization.mixup=1.0")
    config = configs.load(config_file, replace)
    before = trained(config, 0, rank=0, num=8).samples
    broken = before[3]
    (tmp_path / "images" / broken.path).write_bytes(b"no image")
    after = trained(config, 0, rank=0, num=8).samples
    assert [(sample.position, sample.path) for sample in after] == [(one.position, one.path) for one in before]
    assert [sample.seen is None for sample in after] == [sample is broken for sample in before]
    assert after[3].original is None
    for number in (0, 1, 4, 5, 6, 7):  # its partner in mixup stays as it is, the others are mixed as before
        assert np.array_equal(np.asarray(after[number].seen), np.asarray(before[number].seen))
    assert [part for _, part in after[2].classes] == [1.0]


@pytest.mark.parametrize(("exif", "size"), [("ignore", (16, 12)), ("apply", (12, 16))])
def test_an_image_is_turned_as_its_orientation_says(
    config_file: Path, tmp_path: Path, exif: str, size: tuple[int, int]
) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for file in (tmp_path / "images").glob("*/*/*.jpg"):
        with Image.open(file) as image:
            image.load()
        image.save(file, exif=turned)
    for sample in trained(configs.load(config_file, [f"data.exif={exif}"]), 0, rank=0, num=4).samples:
        assert sample.original is not None
        assert sample.original.size == size


def test_random_pixels_are_not_shown(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config_file.read_text()
    config_file.write_text(re.sub(r"root: [^,]*", "source: synthetic, num_samples: 64", text))
    assert run(config_file) == 78
    assert "data.source: found synthetic" in capsys.readouterr().err


def sample(original: tuple[int, int], seen: int, name: str = "cat") -> Sample:
    white = Image.new("RGB", original, (255, 255, 255))
    return Sample(
        1, 2, f"train/{name}/1.jpg", [(name, 1.0)], (0, 0, 5, 5), False, white, Image.new("RGB", (seen, seen))
    )


def test_captions_stay_inside_of_the_picture() -> None:
    long = "n0".ljust(2000, "x")
    sheet = np.asarray(draw([sample((300, 20), 64, long), sample((20, 300), 300, long)], [long, "a " * 800]))
    assert (sheet[:, -8:] == 255).all()
    assert (sheet[-8:] == 255).all()


def test_a_broken_image_has_a_place_in_the_picture() -> None:
    broken = Sample(1, 2, "train/a/1.jpg", [("a", 1.0)], (0, 0, 1, 1), True, None, None)
    assert draw([broken], ["title"]).size == draw([sample((9, 9), 8)], ["title"]).size
