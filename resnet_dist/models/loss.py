"""The loss and counts as sums over samples, which are additive over micro-batches and workers; means are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over the samples, with label smoothing s (Szegedy et al. 2016, arXiv 1512.00567, section 7).

        loss = sum over samples of  -(1 - s) log p[label] - (s / C) sum over classes of log p

    logits      floating [batch, C]; half precision is converted to float32 first
    labels      int64 [batch]
    returns     0-d, float32, or float64 for float64 logits
    """
    wide = logits if logits.dtype is torch.float64 else logits.float()
    return F.cross_entropy(wide, labels, reduction="sum", label_smoothing=label_smoothing)


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of samples whose largest logit (the first of equals) is at their label: int64, 0-d, on the device.

    A sample with a NaN logit does not count.
    """
    largest, classes = logits.max(dim=1)  # NaN where any logit of the sample is
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
