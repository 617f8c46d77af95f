"""Losses and counts as sums over samples, which are additive over micro-batches and workers; means are not.

Targets are labels, int64 [batch], or the parts of all classes in a mixed image, floating [batch, C].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import function_for, is_reference
from resnet_dist.recipe.schema import Recipe

# logits [batch, C], targets -> 0-d sum over the samples
LossSum = Callable[[Tensor, Tensor], Tensor]


def loss_of(recipe: Recipe, train_labels: NDArray[np.int64], device: torch.device) -> LossSum:
    """The loss that `recipe.loss` names. `train_labels`, int64 [N], of the training split, give the class weights.

    Raises RecipeError for a user's function that cannot be loaded or called.
    """
    loss, smoothing = recipe.loss, recipe.regularization.label_smoothing
    if is_reference(loss.name):
        function = function_for("loss.name", loss.name, "logits", "targets", **loss.arguments)
        return _checked(loss.name, partial(function, **loss.arguments))
    weights = None
    if loss.class_weights == "balanced":
        weights = torch.from_numpy(balanced_weights(train_labels, recipe.model.num_classes)).to(device)
    if loss.name == "bce":
        threshold = loss.target_threshold
        return partial(bce_sum, label_smoothing=smoothing, target_threshold=threshold, class_weights=weights)
    return partial(cross_entropy_sum, label_smoothing=smoothing, class_weights=weights)


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy summed over the samples, with label smoothing s (Szegedy et al. 2016, arXiv 1512.00567, section 7).

        loss = sum over samples of  w * -sum over classes of ((1 - s) target + s / C) log p

    where w is the sample's weight, the mean of `class_weights` in the parts of its target, and 1 without them. torch
    weights the terms of the classes instead, which is the same for labels without smoothing.

    logits          floating [batch, C]; half precision is converted to float32 first
    targets         int64 [batch] or floating [batch, C]
    class_weights   floating [C]
    returns         0-d, float32, or float64 for float64 logits
    """
    wide = _wide(logits)
    if targets.is_floating_point():
        targets = targets.to(wide.dtype)
    if class_weights is None:
        return F.cross_entropy(wide, targets, reduction="sum", label_smoothing=label_smoothing)
    of_samples = F.cross_entropy(wide, targets, reduction="none", label_smoothing=label_smoothing)
    return (of_samples * _sample_weights(targets, class_weights.to(wide.dtype))).sum()


def bce_sum(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of each class, averaged over the classes and summed over the samples.

        loss = sum over samples of  w / C * -sum over classes of (t log sigmoid(x) + (1 - t) log(1 - sigmoid(x)))
        t = (1 - s) target + s / C, or with `target_threshold` 1 where that is above it, and 0 elsewhere

    for logits x, label smoothing s, and the weights w of `cross_entropy_sum`. Wightman et al. 2021, ResNet strikes
    back, arXiv 2110.00476; it is timm's BinaryCrossEntropy, which leaves the smoothing of mixed targets to its Mixup.

    Shapes and types are those of `cross_entropy_sum`.
    """
    wide, num_classes = _wide(logits), logits.shape[1]
    parts = targets
    if not targets.is_floating_point():
        parts = targets[:, None] == torch.arange(num_classes, device=targets.device)
    smoothed = parts.to(wide.dtype) * (1.0 - label_smoothing) + label_smoothing / num_classes
    if target_threshold is not None:
        smoothed = (smoothed > target_threshold).to(wide.dtype)
    of_samples = F.binary_cross_entropy_with_logits(wide, smoothed, reduction="none").mean(dim=1)
    if class_weights is not None:
        of_samples = of_samples * _sample_weights(targets, class_weights.to(wide.dtype))
    return of_samples.sum()


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Weights of the classes, float64 [num_classes], with which each class contributes the same to the loss.

    A class with n of the N images gets N / (K n), where K classes have images (scikit-learn's `balanced`); a class
    without images gets 1, which no image uses. The mean over the images is 1.

    >>> balanced_weights(np.array([0, 0, 0, 2]), num_classes=3).round(3).tolist()
    [0.667, 1.0, 2.0]
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.ones(num_classes)
    present = counts > 0
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype is torch.float64 else logits.float()


def _sample_weights(targets: Tensor, class_weights: Tensor) -> Tensor:
    """The weights of the samples, [batch]."""
    return targets @ class_weights if targets.is_floating_point() else class_weights[targets]


def _checked(reference: str, function: Callable[..., object]) -> LossSum:
    """The user's loss, with a check of its results."""

    def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
        found = function(logits, targets)
        if isinstance(found, Tensor) and found.dim() == 0 and found.is_floating_point():
            return found
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        problem = f"{reference!r} returned {what} for logits of shape {list(logits.shape)}"
        raise RecipeError("loss.name", problem, "a floating tensor without dimensions: the sum over the samples")

    return loss_sum


def num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """The number of samples whose largest logit (the first of equals) is at their label: int64, 0-d, on the device.

    The label of a mixed target is the class of its largest part. A sample with a NaN logit does not count.
    """
    largest, classes = logits.max(dim=1)  # NaN where any logit of the sample is
    labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
    return ((classes == labels) & ~largest.isnan()).sum()


def num_in_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """The number of samples with their label among the k largest logits: int64, 0-d, on the device.

    k is clipped to the number of classes. Of equal logits the lower class comes first: constant logits do not count as
    correct for every class, and the count is the same on every device. A label with a NaN logit does not count.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    classes = torch.arange(logits.shape[1], device=logits.device)
    # not (a <= b) instead of a > b: it is also true for NaN
    ahead = ~(logits <= own) | ((logits == own) & (classes < labels.unsqueeze(1)))
    return (ahead.sum(dim=1) < min(k, logits.shape[1])).sum()


def num_not_finite(logits: Tensor) -> Tensor:
    """The number of samples with an infinite or NaN logit: int64, 0-d, on the device."""
    return (~logits.isfinite().all(dim=1)).sum()
