from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from resnet_dist.inference.predictions import Predictions
from resnet_dist.inference.statistics import calibration, class_results, confusion_row, confusions, worst


def predictions(labels: Sequence[int], predicted: Sequence[int], probabilities: Sequence[float]) -> Predictions:
    num = len(labels)
    numbers = (np.arange(num), np.array(labels), np.array(predicted))
    return Predictions(*numbers, np.array(probabilities, float), np.full(num, 0.1))


FOUND = predictions([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 1], [0.5, 0.9, 0.6, 0.8, 0.7, 0.95])


def test_classes_have_their_images_hits_and_claims() -> None:
    zero, one, two, three = class_results(FOUND, 4)
    assert (zero.num_samples, zero.num_correct, zero.num_predicted) == (3, 1, 2)
    assert (zero.accuracy, zero.precision) == (1 / 3, 1 / 2)
    assert (one.accuracy, one.precision) == (1 / 2, 1 / 4)
    assert (two.accuracy, two.precision) == (0.0, None)
    assert (three.accuracy, three.precision) == (None, None)


def test_confusions_are_sorted_by_their_number_and_the_rows_of_the_matrix_add_up() -> None:
    found = [(pair.label, pair.predicted, pair.num_samples) for pair in confusions(FOUND)]
    assert found == [(0, 1, 2), (1, 0, 1), (2, 1, 1)]
    assert [confusion_row(FOUND, label, 3).tolist() for label in range(3)] == [[1, 2, 0], [1, 1, 0], [0, 1, 0]]


def test_the_worst_mistakes_are_the_surest() -> None:
    assert worst(FOUND, 3).tolist() == [5, 1, 4]
    assert worst(FOUND, 10).tolist() == [5, 1, 4, 2]


def test_the_calibration_error_is_that_of_the_formula() -> None:
    # 2 bins: (0, 0.5] has one image, right, 0.5 sure; (0.5, 1] has five, one right, 0.79 sure in the mean
    found = calibration(FOUND, num_bins=2)
    assert found is not None
    assert [one.num_samples for one in found.bins] == [1, 5]
    assert math.isclose(found.error, 1 / 6 * abs(1 - 0.5) + 5 / 6 * abs(1 / 5 - 3.95 / 5))


def test_calibrated_predictions_have_no_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.2, 1, 200_000)
    right = rng.uniform(size=len(sure)) < sure
    found = calibration(predictions([0] * len(sure), np.where(right, 0, 1).tolist(), sure.tolist()))
    assert found is not None
    assert found.error < 0.005
    assert len(found.bins) == 15


@pytest.mark.parametrize(("probability", "number"), [(1.0, 14), (1 / 15, 0), (1 / 15 + 1e-9, 1)])
def test_a_bin_has_its_upper_edge(probability: float, number: int) -> None:
    found = calibration(predictions([0], [0], [probability]))
    assert found is not None
    assert [one.num_samples for one in found.bins].index(1) == number


def test_what_is_not_finite_is_wrong_and_nothing_else() -> None:
    found = predictions([0, 1], [-1, 1], [math.nan, 0.8])
    assert [one.num_correct for one in class_results(found, 2)] == [0, 1]
    assert confusions(found) == []
    assert worst(found, 5).tolist() == []
    rated = calibration(found)
    assert rated is not None
    assert math.isclose(rated.error, 0.2)
    assert calibration(predictions([0], [-1], [math.nan])) is None
