from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from resnet_dist.data.crops import evaluation_windows, flips, training_windows

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
SIDES = st.integers(1, 5000)


def windows_of(
    height: int,
    width: int,
    num: int,
    *,
    seed: int = 0,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> NDArray[np.int32]:
    heights, widths = np.full(num, height, dtype=np.int32), np.full(num, width, dtype=np.int32)
    return training_windows(heights, widths, np.arange(num, dtype=np.int64), seed, area, aspect)


def assert_inside(windows: NDArray[np.int32], height: int, width: int) -> None:
    assert windows.dtype == np.int32
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] >= 1).all()
    assert (windows[:, 0] + windows[:, 2] <= height).all()
    assert (windows[:, 1] + windows[:, 3] <= width).all()


@settings(max_examples=100, deadline=None)
@given(
    SIDES,
    SIDES,
    st.integers(0, 2**32),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair))),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: (min(pair), max(pair))),
)
def test_windows_lie_inside_the_image(
    height: int, width: int, seed: int, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    assert_inside(windows_of(height, width, 20, seed=seed, area=area, aspect=aspect), height, width)


def test_windows_are_a_function_of_position_and_size_alone() -> None:
    random = np.random.default_rng(0)
    heights, widths = random.integers(1, 600, (2, 200)).astype(np.int32)
    positions = random.integers(0, 2**62, 200)
    whole = training_windows(heights, widths, positions, 5, AREA, ASPECT)
    one_by_one = [
        training_windows(heights[i : i + 1], widths[i : i + 1], positions[i : i + 1], 5, AREA, ASPECT)[0]
        for i in range(200)
    ]
    assert np.array_equal(whole, np.stack(one_by_one))


def measures_of(windows: NDArray[Any], height: int, width: int) -> dict[str, NDArray[np.float64]]:
    """Numbers about each window whose means tell one distribution from another."""
    area, aspect = windows[:, 2] * windows[:, 3] / (height * width), np.log(windows[:, 3] / windows[:, 2])
    return {
        "area": area,
        "area squared": area**2,
        "aspect": aspect,
        "aspect squared": aspect**2,
        "top": windows[:, 0].astype(float),
        "left": windows[:, 1].astype(float),
        "full height": (windows[:, 2] == height).astype(float),
        "full width": (windows[:, 3] == width).astype(float),
        "central fallback": ((windows[:, 3] / windows[:, 2]).round(1) == 1.3) * (windows[:, 2] == height).astype(float),
    }


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 200), (100, 640)])
def test_windows_are_distributed_as_torchvisions(height: int, width: int) -> None:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(image, list(AREA), list(ASPECT)) for _ in range(3000)]
    theirs = measures_of(np.array(drawn), height, width)
    ours = measures_of(windows_of(height, width, 12_000), height, width)
    for name, a in ours.items():
        b = theirs[name]
        standard_error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) <= 4 * standard_error, (name, a.mean(), b.mean())


def test_an_image_too_narrow_for_any_try_gives_its_centre_as_torchvision_does() -> None:
    for height, width in ((10, 1000), (1000, 10), (10, 1), (1, 10)):
        ours = windows_of(height, width, 50, area=(0.9, 1.0))
        theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], list(ASPECT))
        assert (ours == np.array(theirs)).all()


def test_a_whole_image_can_be_asked_for() -> None:
    assert (windows_of(50, 50, 10, area=(1.0, 1.0), aspect=(1.0, 1.0)) == [0, 0, 50, 50]).all()


def test_a_window_of_one_pixel_fits() -> None:
    windows = windows_of(3, 3, 1000, area=(1 / 9, 1 / 9), aspect=(1.0, 1.0))
    assert np.unique(windows, axis=0).tolist() == [[top, left, 1, 1] for top in range(3) for left in range(3)]


def test_windows_never_change() -> None:
    # A change here would change the crops of every run that was ever made.
    expected = [[89, 223, 206, 155], [65, 130, 293, 247], [148, 71, 157, 140]]
    assert windows_of(375, 500, 3, seed=17).tolist() == expected


def test_half_of_the_windows_are_flipped_and_each_alone() -> None:
    flipped = flips(np.arange(20_000), seed=0)
    assert flipped.dtype == np.bool_
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(np.corrcoef(flipped[:-1], flipped[1:])[0, 1]) < 4 / np.sqrt(20_000)
    assert np.array_equal(flips(np.arange(100, 200), seed=0), flipped[100:200])
    assert not np.array_equal(flips(np.arange(100), seed=1), flipped[:100])


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.floats(0.001, 1))
def test_evaluation_sees_a_central_square(height: int, width: int, fraction: float) -> None:
    windows = evaluation_windows(np.array([height], dtype=np.int32), np.array([width], dtype=np.int32), fraction)
    assert_inside(windows, height, width)
    top, left, window_height, window_width = windows[0].tolist()
    assert window_height == window_width == max(1, round(fraction * min(height, width)))
    assert abs(top - (height - top - window_height)) <= 1
    assert abs(left - (width - left - window_width)) <= 1


def test_evaluation_window_of_an_ordinary_photo() -> None:
    heights, widths = np.array([375, 256], dtype=np.int32), np.array([500, 256], dtype=np.int32)
    assert evaluation_windows(heights, widths, 0.875).tolist() == [[23, 86, 328, 328], [16, 16, 224, 224]]
