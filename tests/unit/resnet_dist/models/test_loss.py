"""The loss against closed forms and torch; counts against hand-made answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from resnet_dist.errors import RecipeError
from resnet_dist.models.loss import (
    LossSum,
    balanced_weights,
    bce_sum,
    cross_entropy_sum,
    loss_of,
    num_correct,
    num_in_top_k,
    num_not_finite,
)
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    LossRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)


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


# --- mixed targets, binary cross-entropy, class weights, a user's loss


def _targets(batch: int = 9, classes: int = 6) -> torch.Tensor:
    """Mixed targets, with labels among them."""
    _, labels = _logits(batch, classes)
    parts = torch.rand(batch, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    parts[:3] = 1.0
    own = F.one_hot(labels, classes).double()
    return own * parts + own.flip(0) * (1 - parts)


def close(own: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(own, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_mixed_targets_is_timms(smoothing: float) -> None:
    logits, targets = _logits()[0], _targets()
    theirs = SoftTargetCrossEntropy()(logits, targets * (1 - smoothing) + smoothing / 6)  # smoothed by timm's Mixup
    assert close(cross_entropy_sum(logits, targets, smoothing), 9 * theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_labels_is_timms(smoothing: float) -> None:
    logits, labels = _logits()
    assert close(
        cross_entropy_sum(logits, labels, smoothing), 9 * LabelSmoothingCrossEntropy(smoothing)(logits, labels)
    )


@pytest.mark.parametrize("loss", [cross_entropy_sum, bce_sum])
def test_labels_are_targets_with_one_class(loss: Callable[..., torch.Tensor]) -> None:
    logits, labels = _logits()
    assert close(loss(logits, F.one_hot(labels, 6).double(), 0.1), loss(logits, labels, 0.1))
    assert close(loss(logits, F.one_hot(labels, 6).float(), 0.1), loss(logits, labels, 0.1))


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_timms(smoothing: float, threshold: float | None) -> None:
    logits, labels = _logits()
    theirs = BinaryCrossEntropy(smoothing, threshold)
    assert close(bce_sum(logits, labels, smoothing, threshold), 9 * theirs(logits, labels))
    mixed = _targets()
    smoothed = mixed * (1 - smoothing) + smoothing / 6  # by timm's Mixup
    assert close(bce_sum(logits, mixed, smoothing, threshold), 9 * theirs(logits, smoothed))


def test_bce_follows_its_formula() -> None:
    logits, targets = _logits()[0], _targets()
    p = 1 / (1 + (-logits).exp())
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 6
    assert torch.allclose(bce_sum(logits, targets), expected, rtol=1e-12, atol=0)


def test_bce_is_never_computed_in_half_precision() -> None:
    logits, labels = _logits()
    loss = bce_sum(logits.bfloat16(), labels, 0.1)
    assert (loss.dtype, loss.shape) == (torch.float32, torch.Size([]))
    assert torch.equal(loss, bce_sum(logits.bfloat16().float(), labels, 0.1))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    compute_class_weight = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.array([0] * 50 + [1] * 3 + [2] * 7)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(balanced_weights(labels, 3), expected, rtol=1e-15, atol=0)


def test_a_class_without_images_has_weight_1_and_changes_no_other_weight() -> None:
    labels = np.array([0] * 50 + [2] * 10)
    assert balanced_weights(labels, 4).tolist() == [0.6, 1.0, 3.0, 1.0]
    assert balanced_weights(labels, 4)[labels].mean() == pytest.approx(1.0, rel=1e-15)


WEIGHTS = torch.tensor([0.3, 1.0, 2.5, 0.7, 1.9, 4.0], dtype=torch.float64)


def test_the_weighted_cross_entropy_of_labels_is_torchs_weighted_sum() -> None:
    logits, labels = _logits()
    expected = F.cross_entropy(logits, labels, weight=WEIGHTS, reduction="sum")
    assert close(cross_entropy_sum(logits, labels, class_weights=WEIGHTS), expected)


@pytest.mark.parametrize("loss", [cross_entropy_sum, bce_sum])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_weighted_loss_is_the_sum_of_the_samples_losses_times_their_weights(
    loss: Callable[..., torch.Tensor], mixed: bool
) -> None:
    logits, labels = _logits()
    targets = _targets() if mixed else labels
    parts = targets if mixed else F.one_hot(labels, 6).double()
    weights = [sum(WEIGHTS[c] * parts[sample, c] for c in range(6)) for sample in range(9)]
    alone = [loss(logits[sample : sample + 1], targets[sample : sample + 1], 0.1) for sample in range(9)]
    expected = torch.stack([w * own for w, own in zip(weights, alone, strict=True)]).sum()
    assert close(loss(logits, targets, 0.1, class_weights=WEIGHTS), expected)


@pytest.mark.parametrize("loss", [cross_entropy_sum, bce_sum])
def test_weights_of_1_change_nothing(loss: Callable[..., torch.Tensor]) -> None:
    logits, labels = _logits()
    assert close(loss(logits, labels, 0.1, class_weights=torch.ones(6)), loss(logits, labels, 0.1))


def test_the_label_of_a_mixed_target_is_its_largest_part() -> None:
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.0, 0.7], [0.0, 0.5, 0.5]])
    assert num_correct(F.one_hot(torch.tensor([0, 2, 1]), 3).double(), mixed).item() == 3
    assert num_correct(F.one_hot(torch.tensor([1, 0, 2]), 3).double(), mixed).item() == 0


def focal(logits: torch.Tensor, targets: torch.Tensor, *, gamma: float) -> torch.Tensor:
    log_p = logits.log_softmax(1).gather(1, targets[:, None])
    return -((1 - log_p.exp()) ** gamma * log_p).sum()


def one_per_sample(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def as_a_number(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(logits.sum())


def counted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == targets).sum()


def recipe(loss: LossRecipe, smoothing: float = 0.0) -> Recipe:
    return Recipe(
        data=DataRecipe(root="none"),
        batch=BatchRecipe(size=8),
        duration=Duration.parse("1 step"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(num_classes=6),
        regularization=RegularizationRecipe(label_smoothing=smoothing),
        loss=loss,
    )


def built(loss: LossRecipe, smoothing: float = 0.0) -> LossSum:
    return loss_of(recipe(loss, smoothing), np.array([0, 0, 0, 1, 2]), torch.device("cpu"))


def test_the_loss_of_a_recipe_has_its_arguments() -> None:
    logits, labels = _logits()
    weights = torch.tensor([5 / 9, 5 / 3, 5 / 3, 1, 1, 1], dtype=torch.float64)
    assert torch.equal(built(LossRecipe(), 0.1)(logits, labels), cross_entropy_sum(logits, labels, 0.1))
    weighted = built(LossRecipe(class_weights="balanced"))(logits, labels)
    assert close(weighted, cross_entropy_sum(logits, labels, class_weights=weights))
    own = built(LossRecipe(name="bce", target_threshold=0.2, class_weights="balanced"), 0.1)
    assert close(own(logits, _targets()), bce_sum(logits, _targets(), 0.1, 0.2, weights))


def test_the_default_is_torchs_cross_entropy_bit_by_bit() -> None:
    logits, labels = _logits()
    narrow = logits.float()
    assert torch.equal(built(LossRecipe())(narrow, labels), F.cross_entropy(narrow, labels, reduction="sum"))


def test_a_users_loss_is_called_with_its_arguments() -> None:
    logits, labels = _logits()
    own = built(LossRecipe(name=f"{__name__}:focal", arguments={"gamma": 2.0}))
    assert torch.equal(own(logits, labels), focal(logits, labels, gamma=2.0))
    assert close(built(LossRecipe(name=f"{__name__}:focal", arguments={"gamma": 0.0}))(logits, labels),
                 cross_entropy_sum(logits, labels))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [("one_per_sample", r"torch.float64 \[9\]"), ("as_a_number", "float"), ("counted", r"torch.int64 \[\]")],
)
def test_a_users_loss_that_returns_something_else_is_refused(name: str, found: str) -> None:
    with pytest.raises(RecipeError, match=rf"loss\.name: .*:{name}' returned {found} .*Allowed: .*the sum over the"):
        built(LossRecipe(name=f"{__name__}:{name}"))(*_logits())


@pytest.mark.parametrize(("name", "said"), [("missing", "has no missing"), ("focal", "cannot be called with")])
def test_a_loss_that_cannot_be_called_is_refused_before_training(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"loss\.name: .*{said}"):
        built(LossRecipe(name=f"{__name__}:{name}"))
