"""Classes, confusions, calibration and mistakes of a model, from its predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_dist.inference.predictions import Predictions

NUM_BINS = 15  # of the calibration error (Guo et al. 2017)


@dataclass(frozen=True)
class ClassResult:
    """The images of one class, and those that the model takes for it."""

    label: int
    num_samples: int
    num_correct: int
    num_predicted: int  # images that the model takes for this class

    @property
    def accuracy(self) -> float | None:
        """The fraction of the class's images that are recognised (recall); None without images."""
        return self.num_correct / self.num_samples if self.num_samples else None

    @property
    def precision(self) -> float | None:
        """The fraction of the images taken for this class that are of it; None if there are none."""
        return self.num_correct / self.num_predicted if self.num_predicted else None


@dataclass(frozen=True)
class Confusion:
    """Images of one class that the model takes for another one."""

    label: int
    predicted: int
    num_samples: int


@dataclass(frozen=True)
class Bin:
    """The images whose predicted class has a probability in (low, high]."""

    low: float
    high: float
    num_samples: int
    accuracy: float  # the fraction that is right; 0 without images
    confidence: float  # the mean probability of the predicted class; 0 without images


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error, and the bins that it comes from."""

    error: float
    bins: tuple[Bin, ...]


def class_results(found: Predictions, num_classes: int) -> list[ClassResult]:
    """The result of each class, by label. Images with logits that are not finite count as not recognised."""
    right = found.predicted == found.labels
    columns = (found.labels, found.labels[right], found.predicted[found.predicted >= 0])
    counts = [np.bincount(column, minlength=num_classes).tolist() for column in columns]
    return [ClassResult(label, *numbers) for label, numbers in enumerate(zip(*counts, strict=True))]


def confusions(found: Predictions) -> list[Confusion]:
    """The pairs of different classes with images, the most frequent first; of equals the lower labels first."""
    wrong = (found.predicted != found.labels) & (found.predicted >= 0)
    pairs = np.stack([found.labels[wrong], found.predicted[wrong]], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    columns = (kinds[order, 0], kinds[order, 1], counts[order])
    return [Confusion(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def confusion_row(found: Predictions, label: int, num_classes: int) -> NDArray[np.int64]:
    """How many images of class `label` the model takes for each class: int64 [num_classes], one row of the matrix."""
    chosen = (found.labels == label) & (found.predicted >= 0)
    return np.bincount(found.predicted[chosen], minlength=num_classes)


def calibration(found: Predictions, num_bins: int = NUM_BINS) -> Calibration | None:
    """The expected calibration error of the predicted classes; None without finite predictions.

        ECE = sum over bins of  n_b / n * |accuracy_b - confidence_b|

    for bins of equal width in (0, 1], by the probability of the predicted class; confidence_b is its mean in a bin, and
    accuracy_b the fraction of right predictions. Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv
    1706.04599, equation 3, with 15 bins as in their tables.
    """
    finite = found.predicted >= 0
    confidences, right = found.probabilities[finite], (found.predicted == found.labels)[finite]
    if not len(confidences):
        return None
    numbers = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(numbers, minlength=num_bins)
    filled = np.maximum(counts, 1)
    accuracies = np.bincount(numbers, weights=right, minlength=num_bins) / filled
    means = np.bincount(numbers, weights=confidences, minlength=num_bins) / filled
    bins = tuple(
        Bin(number / num_bins, (number + 1) / num_bins, int(counts[number]), float(accuracies[number]), float(mean))
        for number, mean in enumerate(means)
    )
    error = float((counts / len(confidences) * np.abs(accuracies - means)).sum())
    return Calibration(error, bins)


def worst(found: Predictions, num: int) -> NDArray[np.int64]:
    """The wrong predictions with the highest probabilities, as numbers of their rows in `found`: at most `num`."""
    wrong = np.flatnonzero((found.predicted != found.labels) & (found.predicted >= 0))
    return wrong[np.argsort(-found.probabilities[wrong], kind="stable")[:num]]
