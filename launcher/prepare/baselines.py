"""The accuracy of classical methods on the pixels of an image folder, for comparison with a network."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data.sources.image_folder import list_images
from resnet_dist.data.sources.listing import Split
from resnet_dist.errors import DataError, MissingPackage

_NEIGHBOURS = range(1, 6)
_MOST_FOR_K = 10_000  # images of train that choose k: the time grows with their square
_ITERATIONS = 1000  # of L-BFGS, at most
_SEED = 0  # of the choice of those images


def classical_baselines(folder: Path) -> dict[str, float]:
    """Top-1 accuracy on val of two classical methods trained on the grey pixels of train.

    k_nearest_neighbours  k of 1..5 with the best 5-fold cross-validation on train (`k` in the result), on a stratified
                          choice of 10,000 images if train has more
    logistic_regression   multinomial, L2, scikit-learn's default strength

    MissingPackage without scikit-learn.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackage("data.root", "scikit-learn", "pip install 'resnet-launcher[demo]'")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score, train_test_split
    from sklearn.neighbors import KNeighborsClassifier

    train_pixels, train_labels = _pixels(folder, "train")
    val_pixels, val_labels = _pixels(folder, "val")
    few_pixels, few_labels = train_pixels, train_labels
    if len(train_labels) > _MOST_FOR_K:
        few_pixels, _, few_labels, _ = train_test_split(
            train_pixels, train_labels, train_size=_MOST_FOR_K, stratify=train_labels, random_state=_SEED
        )

    def cross_validated(k: int) -> float:
        return float(cross_val_score(KNeighborsClassifier(k), few_pixels, few_labels, cv=5).mean())

    k = max(_NEIGHBOURS, key=cross_validated)
    nearest = KNeighborsClassifier(k).fit(train_pixels, train_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic = LogisticRegression(max_iter=_ITERATIONS).fit(train_pixels, train_labels)
    return {
        "k": float(k),
        "k_nearest_neighbours": float(nearest.score(val_pixels, val_labels)),
        "logistic_regression": float(logistic.score(val_pixels, val_labels)),
    }


def _pixels(folder: Path, split: Split) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grey pixels in 0..1, float64 [n, height × width], and labels, int64 [n], of one split."""
    found = list_images(str(folder), split)
    pixels = [
        np.asarray(Image.open(folder / path).convert("L"), dtype=np.float64).ravel() / 255 for path in found.paths
    ]
    if len({len(row) for row in pixels}) != 1:
        raise DataError(str(folder / split), "has images of different sizes; the baselines need one size")
    return np.stack(pixels), np.array(found.labels, dtype=np.int64)
