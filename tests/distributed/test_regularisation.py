"""Regularised runs in one process: micro-batches, decoders, threads and restarts change nothing.

`test_one_curve.py` has the same on several workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    AugmentationRecipe,
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EvaluateRecipe,
    LossRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import MetricsFile, read_metrics

STEPS, SIZE = 5, 16
NEVER = Duration.parse("1000 steps")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the network's resolution, so that decoders need not resize them: 30 of one class, 10 of another."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label, num in (("few", 10), ("many", 30)):
            (root / split / label).mkdir(parents=True)
            for number in range(num):
                pixels = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number:02}.png")
    return root


def recipe(root: Path, **changes: Any) -> Recipe:
    data = DataRecipe(
        root=str(root),
        decoder="torchvision",
        resolution=SIZE,
        crop_area=(1.0, 1.0),
        crop_aspect=(1.0, 1.0),
        color_jitter=0.4,
        augmentation=AugmentationRecipe(name="randaugment"),
    )
    regularized = Recipe(
        data=data,
        batch=BatchRecipe(size=12),
        duration=Duration.parse(f"{STEPS} steps"),
        schedule=ScheduleRecipe(peak_lr=0.02),
        model=ModelRecipe(name="resnet20", num_classes=2),
        batch_norm=BatchNormRecipe(span=6),
        regularization=RegularizationRecipe(label_smoothing=0.1, mixup=0.2, cutmix=1.0, random_erasing=0.5),
        loss=LossRecipe(name="bce", target_threshold=0.2, class_weights="balanced"),
        evaluate=EvaluateRecipe(every=NEVER),
        precision="float64",
    )
    return replace(regularized, **changes)


def trained(
    recipe: Recipe, folder: Path, *, num_threads: int = 1, every: str = "1000 steps", resume: Path | None = None
) -> list[dict[str, float]]:
    """The train records of a run."""
    checkpoints = CheckpointOptions(folder / "checkpoints")
    options = RunOptions(checkpoints, folder / "index", Duration.parse(every), log_every=1)
    sink = MetricsFile(folder / "metrics.jsonl")
    worker = Worker(0, 1, torch.device("cpu"), num_threads)
    build(recipe, worker, options, sink, Unattended(), resume).fit()
    sink.close()
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"]


def losses(records: list[dict[str, float]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the undisturbed run."""
    return losses(trained(recipe(root), tmp_path_factory.mktemp("whole")))


def test_two_micro_batches_have_the_losses_of_one(root: Path, tmp_path: Path, whole: list[float]) -> None:
    halves = losses(trained(recipe(root, batch=BatchRecipe(size=12, num_micro_batches=2)), tmp_path))
    assert halves[0] == pytest.approx(whole[0], rel=1e-12)
    assert halves == pytest.approx(whole, rel=1e-9)


def test_dali_has_the_losses_of_torchvision(root: Path, tmp_path: Path, whole: list[float]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    by_dali = recipe(root, data=replace(recipe(root).data, decoder="dali"))
    assert losses(trained(by_dali, tmp_path)) == whole


def test_the_number_of_decoder_threads_changes_no_bit(root: Path, tmp_path: Path, whole: list[float]) -> None:
    torch.set_num_threads(1)
    found = losses(trained(recipe(root), tmp_path, num_threads=3))
    assert found[0] == pytest.approx(whole[0], rel=1e-12)  # torch's own sums depend on the number
    assert found == pytest.approx(whole, rel=1e-9)


def test_a_resumed_run_goes_on_with_the_same_bits(root: Path, tmp_path: Path, whole: list[float]) -> None:
    trained(recipe(root), tmp_path / "first", every="2 steps")
    saved = tmp_path / "first" / "checkpoints" / "step-00000004"
    resumed = trained(recipe(root), tmp_path / "second", every="2 steps", resume=saved)
    assert losses(resumed) == whole[4:]
    newest = [restore.newest(tmp_path / name / "checkpoints") for name in ("first", "second")]
    weights = [checkpoint.model() for checkpoint in newest if checkpoint is not None]
    assert all(weights[1][name].equal(tensor) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("data", {"color_jitter": 0.0}),
        ("data", {"augmentation": AugmentationRecipe()}),
        ("regularization", {"mixup": 0.0}),
        ("regularization", {"cutmix": 0.0}),
        ("regularization", {"random_erasing": 0.0}),
        ("loss", {"class_weights": "none"}),
        ("loss", {"target_threshold": None}),
    ],
)
def test_every_key_changes_the_curve(
    root: Path, tmp_path: Path, whole: list[float], section: str, change: dict[str, Any]
) -> None:
    changed = recipe(root, duration=Duration.parse("1 step"))
    changed = replace(changed, **{section: replace(getattr(changed, section), **change)})
    assert abs(losses(trained(changed, tmp_path))[0] / whole[0] - 1) > 1e-6


# --- functions of a user


def negative(images: Tensor, uniform: Any, *, probability: float) -> Tensor:
    chosen = uniform(1)[:, 0] < probability
    return torch.where(chosen[:, None, None, None], 255 - images, images)


def squared_error(logits: Tensor, targets: Tensor, *, scale: float) -> Tensor:
    return scale * (logits.softmax(1) - targets).square().sum()


def test_a_loss_and_an_augmentation_of_a_user(root: Path, tmp_path: Path) -> None:
    own = recipe(
        root,
        data=replace(
            recipe(root).data,
            augmentation=AugmentationRecipe(name=f"{__name__}:negative", arguments={"probability": 0.5}),
        ),
        regularization=RegularizationRecipe(mixup=0.2),
        loss=LossRecipe(name=f"{__name__}:squared_error", arguments={"scale": 0.5}),
    )
    found = losses(trained(own, tmp_path / "one"))
    assert 0.1 < found[0] < 1.0
    halves = losses(trained(replace(own, batch=BatchRecipe(size=12, num_micro_batches=2)), tmp_path / "two"))
    assert halves[0] == pytest.approx(found[0], rel=1e-12)
    assert halves == pytest.approx(found, rel=1e-9)
