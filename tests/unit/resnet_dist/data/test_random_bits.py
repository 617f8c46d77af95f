from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet_dist.data.random_bits import Purpose, element, states, uniform

NUM = 20_000
POSITIONS = np.arange(NUM, dtype=np.int64)


def numbers(seed: int = 0, purpose: Purpose = Purpose.CROP, num: int = 1) -> NDArray[np.float64]:
    return uniform(seed, POSITIONS, purpose, num)


def assert_uncorrelated(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    # The correlation of n independent pairs has a standard deviation of 1 / sqrt(n); seeds are fixed, so this is exact.
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_sequence_is_splitmix64() -> None:
    # The first five outputs for seed 1234567 of the authors' reference code, splitmix64.c by Sebastiano Vigna.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert element(np.array([1234567], dtype=np.uint64), np.arange(5, dtype=np.uint64)).tolist() == expected


def test_numbers_never_change() -> None:
    # A change here would change the crops of every run that was ever made.
    drawn = uniform(17, np.array([0, 10**15], dtype=np.int64), Purpose.CROP, 2)
    assert drawn.tolist() == [
        [0.09753304910423244, 0.9955433986964772],
        [0.3422216803946142, 0.20445483440627388],
    ]


def test_purposes_never_change() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "ORDER": 0,
        "CROP": 1,
        "FLIP": 2,
        "MODEL": 3,
        "COLOR_JITTER": 4,
        "AUGMENTATION": 5,
        "ERASING": 6,
        "MIXING": 7,
        "SUBSET": 8,
        "DROPOUT": 9,
        "STOCHASTIC_DEPTH": 10,
        "ORDER_SHARDS": 11,
        "ORDER_WINDOW": 12,
        "SYNTHETIC": 13,
        "STUDY": 100,
    }
    assert list(Purpose) == sorted(Purpose)


def test_numbers_are_a_function_of_the_position_alone() -> None:
    shuffled = np.random.default_rng(0).permutation(POSITIONS)
    assert np.array_equal(uniform(3, shuffled, Purpose.CROP, 4), numbers(3, num=4)[shuffled])


def test_asking_for_more_columns_leaves_the_first_ones_as_they_are() -> None:
    assert np.array_equal(numbers(num=2), numbers(num=5)[:, :2])


def test_numbers_lie_in_the_half_open_unit_interval() -> None:
    drawn = numbers(num=8)
    assert drawn.dtype == np.float64
    assert drawn.shape == (NUM, 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 + 5])
def test_numbers_are_uniform(seed: int) -> None:
    counts = np.bincount((numbers(seed).ravel() * 100).astype(int), minlength=100)
    chi_square = ((counts - NUM / 100) ** 2 / (NUM / 100)).sum()
    assert abs(chi_square - 99) < 4 * np.sqrt(2 * 99)


def test_every_bit_is_set_half_the_time() -> None:
    words = states(0, POSITIONS, Purpose.FLIP)
    for bit in range(64):
        share = float(((words >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(NUM), bit


def test_neighbouring_positions_are_independent() -> None:
    drawn = numbers()
    for distance in (1, 2, 64, 1024):
        assert_uncorrelated(drawn[:-distance], drawn[distance:])


def test_columns_are_independent() -> None:
    drawn = numbers(num=3)
    assert_uncorrelated(drawn[:, 0], drawn[:, 1])
    assert_uncorrelated(drawn[:, 1], drawn[:, 2])
    assert_uncorrelated(drawn[:-1, 1], drawn[1:, 0])


def test_purposes_are_independent() -> None:
    for purpose in (Purpose.ORDER, Purpose.FLIP):
        assert_uncorrelated(numbers(), numbers(purpose=purpose))


def test_neighbouring_seeds_are_independent() -> None:
    for seed in (1, 2, 1000):
        assert_uncorrelated(numbers(0), numbers(seed))


def test_pairs_of_neighbours_fill_the_square_evenly() -> None:
    drawn = (numbers(7).ravel() * 16).astype(int)
    counts = np.bincount(drawn[:-1:2] * 16 + drawn[1::2], minlength=256)
    expected = NUM / 2 / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 4 * np.sqrt(2 * 255)
