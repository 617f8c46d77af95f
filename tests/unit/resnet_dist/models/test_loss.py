"""The loss against closed forms and torch; counts against hand-made answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from resnet_dist.models.loss import cross_entropy_sum, num_correct, num_in_top_k, num_not_finite


def _logits(batch: int = 9, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_follows_the_closed_form(smoothing: float) -> None:
    logits, labels = _logits()
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    own = -(1 - smoothing) * log_p[torch.arange(9), labels].sum()
    uniform = -smoothing / 6 * log_p.sum()
    assert torch.allclose(cross_entropy_sum(logits, labels, smoothing), own + uniform, rtol=1e-14, atol=0)


def test_the_sum_is_torchs_mean_times_the_batch() -> None:
    logits, labels = _logits()
    mean = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(cross_entropy_sum(logits, labels, 0.1), 9 * mean, rtol=1e-14, atol=0)


def test_an_untrained_network_has_the_loss_of_a_guess() -> None:
    loss = cross_entropy_sum(torch.zeros(4, 1000, dtype=torch.float64), torch.arange(4), 0.1)
    assert loss.item() == pytest.approx(4 * math.log(1000), rel=1e-14)


def test_sums_of_parts_add_up_to_the_sum_of_the_whole() -> None:
    logits, labels = _logits()
    parts = cross_entropy_sum(logits[:2], labels[:2], 0.1) + cross_entropy_sum(logits[2:], labels[2:], 0.1)
    assert torch.allclose(parts, cross_entropy_sum(logits, labels, 0.1), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_loss_is_never_computed_in_half_precision(given: torch.dtype, returned: torch.dtype) -> None:
    logits, labels = _logits()
    narrow = logits.to(given)
    loss = cross_entropy_sum(narrow, labels, 0.1)
    assert (loss.dtype, loss.shape) == (returned, torch.Size([]))
    assert torch.equal(loss, F.cross_entropy(narrow.to(returned), labels, reduction="sum", label_smoothing=0.1))


def test_the_gradient_reaches_half_precision_logits() -> None:
    logits, labels = _logits()
    narrow = logits.bfloat16().requires_grad_()
    cross_entropy_sum(narrow, labels).backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None
    assert narrow.grad.dtype is torch.bfloat16


LOGITS = torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, 1.0], [1.0, 2.0, 9.0], [4.0, 6.0, 5.0]])
LABELS = torch.tensor([0, 1, 1, 0])  # place of the label among the logits: first, first, second, third


def test_right_answers_are_counted() -> None:
    assert num_correct(LOGITS, LABELS).item() == 2


@pytest.mark.parametrize(("k", "expected"), [(1, 2), (2, 3), (3, 4)])
def test_answers_in_the_top_k_are_counted(k: int, expected: int) -> None:
    assert num_in_top_k(LOGITS, LABELS, k).item() == expected


def test_k_is_clipped_to_the_number_of_classes() -> None:
    assert num_in_top_k(LOGITS, LABELS, 5).item() == 4


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_torch(k: int) -> None:
    logits, labels = _logits(batch=200, classes=20)
    expected = (logits.topk(k, dim=1).indices == labels.unsqueeze(1)).any(dim=1).sum()
    assert torch.equal(num_in_top_k(logits, labels, k), expected)


def test_a_network_that_answers_the_same_for_every_class_is_right_once_in_c() -> None:
    logits, labels = torch.zeros(10, 10), torch.arange(10)
    assert num_in_top_k(logits, labels, 1).item() == num_correct(logits, labels).item() == 1
    assert num_in_top_k(logits, labels, 5).item() == 5


@pytest.mark.parametrize("k", [1, 3, 5])
def test_nan_is_never_right(k: int) -> None:
    assert num_in_top_k(torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0]), k).item() == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_sample_with_nan_is_not_a_right_answer(place: int) -> None:
    logits = LOGITS.clone()
    logits[0, place] = torch.nan  # a right answer until then
    assert num_correct(logits, LABELS).item() == 1
    assert num_correct(torch.full((3, 3), torch.nan), torch.arange(3)).item() == 0


def test_samples_with_a_logit_that_is_not_finite_are_counted_once_each() -> None:
    logits = LOGITS.clone()
    logits[0, 1], logits[1, :], logits[3, 2] = torch.nan, torch.inf, -torch.inf
    assert num_not_finite(logits).item() == 3
    assert num_not_finite(LOGITS).item() == 0
