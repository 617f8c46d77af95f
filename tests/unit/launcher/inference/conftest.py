"""A small trained run, which tests read; those that change it take a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import launcher

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")  # enough for a top-5


def write_classes(folder: Path, classes: tuple[str, ...] = CLASSES, num: int = 3, seed: int = 0) -> Path:
    """Noisy images, whose mean colour says the class, in FOLDER/CLASS/NUMBER.png."""
    rng = np.random.default_rng(seed)
    for name in classes:
        colour = np.random.default_rng(ord(name[0])).integers(40, 200, 3)
        (folder / name).mkdir(parents=True)
        for number in range(num):
            pixels = np.clip(colour + rng.integers(-40, 40, (20 + number, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 6 steps with a moving average, evaluated and saved every 2 steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_classes(folder / "images" / "train", num=4)
    write_classes(folder / "images" / "val", seed=1)
    config: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "storage": str(folder / "runs"),
        "place": "local",
        "duration": "6 steps",
        "model": {"name": "resnet8", "num_classes": len(CLASSES)},
        "data": {"root": str(folder / "images"), "resolution": 16},
        "batch": {"size": 14},
        "schedule": {"peak_lr": 0.05},
        "ema": {"decay": 0.6},
        "evaluate": {"every": "2 steps", "batch_size": 4},
        "checkpoint": {"every": "2 steps", "keep": 3},
        "resources": {"cpus_per_worker": 1},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    threads, before = torch.get_num_threads(), os.environ.copy()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        return launcher.fit(config).path
    finally:
        torch.set_num_threads(threads)
        os.environ.update(before)


@pytest.fixture
def copied_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may change; its images are those of the original."""
    return Path(shutil.copytree(trained_run, tmp_path / "copied"))


@pytest.fixture
def images(trained_run: Path) -> Path:
    """The images of the run."""
    return trained_run.parents[1] / "images"
