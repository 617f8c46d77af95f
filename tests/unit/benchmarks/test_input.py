"""The parts of benchmarks/input.py that the other projects' pipelines are not needed for."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_peers
from benchmarks.input_images import photo, photo_folder
from benchmarks.input_peers import cpu_seconds


def test_photos_are_the_same_in_every_call_and_about_as_large_as_imagenets() -> None:
    assert photo(3) == photo(3) != photo(4)
    sizes = [Image.open(io.BytesIO(photo(number))).size for number in range(8)]
    assert 400 < np.mean([width for width, _ in sizes]) < 600
    assert 300 < np.mean([height for _, height in sizes]) < 450


def test_random_windows_of_peers_have_the_distribution_of_ours() -> None:
    """Larger windows would be more work: the comparison would not be fair."""
    from resnet_dist.data.crops import training_windows

    num, (height, width) = 4_000, (375, 500)
    random = np.random.RandomState(0)
    theirs = np.array([input_peers._window(height, width, random) for _ in range(num)])
    ours = training_windows(
        np.full(num, height, np.int32), np.full(num, width, np.int32), np.arange(num), 0, (0.08, 1.0), (3 / 4, 4 / 3)
    )
    for windows in (theirs, ours):
        assert (windows >= 0).all()
        assert (windows[:, 0] + windows[:, 2] <= height).all()
        assert (windows[:, 1] + windows[:, 3] <= width).all()
    areas = [(windows[:, 2] * windows[:, 3]).mean() / (height * width) for windows in (theirs, ours)]
    assert areas[0] == pytest.approx(areas[1], abs=0.015)


def test_our_pipeline_yields_batches(tmp_path: Path) -> None:
    batches = input_peers.PEERS["ours"](photo_folder(tmp_path, 40, 10))
    assert list(itertools.islice(batches, 3)) == [input_peers.BATCH] * 3


def test_cpu_seconds_count_this_process() -> None:
    before = cpu_seconds()
    while cpu_seconds() < before + 0.03:
        np.sort(np.random.default_rng(0).random(100_000))
    assert cpu_seconds() - before < 5
