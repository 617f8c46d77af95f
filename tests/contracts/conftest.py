"""Small folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_images() -> Callable[[Path], Path]:
    """Write two classes of four noisy images to train/ and val/ of a folder."""

    def write(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for label in ("cat", "dog"):
                folder = root / split / label
                folder.mkdir(parents=True)
                for number in range(4):
                    pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.jpg")
        return root

    return write
