from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DataError
from resnet_dist.training.evaluate import Evaluation, evaluate

CPU = torch.device("cpu")
NUM, CLASSES = 23, 7


class Lookup(nn.Module):
    """The images are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return images


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM, CLASSES, dtype=torch.float64, generator=generator)
    return logits, torch.randint(CLASSES, (NUM,), generator=generator)


def batches(size: int) -> list[MicroBatch]:
    logits, labels = samples()
    return [MicroBatch(*pair) for pair in zip(logits.split(size), labels.split(size), strict=True)]


@pytest.mark.parametrize("size", [1, 5, 23])
def test_every_sample_counts_once_whatever_the_batches(size: int) -> None:
    logits, labels = samples()
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits.tolist(), labels, strict=True)]
    found = evaluate(Lookup(), batches(size), NUM, CPU)
    assert found.top1 == sum(rank < 1 for rank in ranks) / NUM
    assert found.top5 == sum(rank < 5 for rank in ranks) / NUM
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    assert found.num_samples == NUM


def test_broken_samples_are_counted_and_left_out() -> None:
    first, second = batches(23)[0], MicroBatch(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64), num_broken=2)
    found = evaluate(Lookup(), [replace(first, num_broken=1), second], NUM + 3, CPU)
    assert found == replace(evaluate(Lookup(), batches(23), NUM, CPU), num_bad=3)
    assert found.record()["num_bad"] == 3
    assert replace(found, num_bad=0, train=found).record()["train_num_bad"] == 3
    with pytest.raises(RuntimeError, match=f"evaluation saw {NUM + 3} samples of {NUM}"):
        evaluate(Lookup(), [replace(first, num_broken=1), second], NUM, CPU)
    with pytest.raises(DataError, match="all 2 are broken"):
        evaluate(Lookup(), [second], 2, CPU)


@pytest.mark.parametrize("num_samples", [NUM - 1, NUM + 1])
def test_a_sample_too_many_or_too_few_is_an_error(num_samples: int) -> None:
    with pytest.raises(RuntimeError, match=f"evaluation saw 23 samples of {num_samples}"):
        evaluate(Lookup(), batches(5), num_samples, CPU)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_evaluation_mode_meanwhile_and_as_before_afterwards(training: bool) -> None:
    model = Lookup().train(training)
    evaluate(model, batches(23), NUM, CPU)
    assert model.modes == [(False, False)]
    assert model.training is training


def test_nothing_of_the_model_changes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, batches(5), NUM, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_top5_of_fewer_than_five_classes_is_always_right() -> None:
    batch = MicroBatch(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    found = evaluate(Lookup(), [batch], 2, CPU)
    assert (found.top1, found.top5) == (0.5, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_with_one_logit_that_is_not_finite_the_evaluation_is_not_a_number(value: float) -> None:
    spoilt = batches(5)
    spoilt[1].images[3, 2] = value
    spoilt[4].images[0, :2] = value
    found = evaluate(Lookup(), spoilt, NUM, CPU)
    assert [math.isnan(number) for number in (found.top1, found.top5, found.loss)] == [True, True, True]
    assert (found.num_nonfinite, found.num_samples) == (2, NUM)


def test_an_evaluation_of_finite_logits_has_none_that_is_not() -> None:
    assert evaluate(Lookup(), batches(5), NUM, CPU).num_nonfinite == 0


def test_samples_that_are_not_finite_are_counted_over_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker has as many samples of each kind: a sum over both is twice this one's."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    spoilt = batches(23)
    spoilt[0].images[:3] = math.nan
    found = evaluate(Lookup(), spoilt, 2 * NUM, CPU)
    assert (found.num_nonfinite, found.num_samples, math.isnan(found.top1)) == (6, 2 * NUM, True)


def broken_after_one() -> Iterator[MicroBatch]:
    yield batches(5)[0]
    raise OSError("a broken image")


def test_a_frozen_batch_norm_stays_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES), nn.BatchNorm1d(CLASSES)).double()
    model[0].eval()
    evaluate(model, batches(5), NUM, CPU)
    assert [module.training for module in (model, *model)] == [True, False, True, True]


def test_each_module_is_in_its_own_mode_after_an_evaluation_that_fails() -> None:
    model = nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES)).double()
    model[0].eval()
    with pytest.raises(OSError, match="a broken image"):
        evaluate(model, broken_after_one(), NUM, CPU)
    assert [module.training for module in (model, *model)] == [True, False, True]


def test_a_train_method_of_the_users_is_called_afterwards() -> None:
    class Merged(Lookup):
        merged = False

        def train(self, mode: bool = True) -> Merged:
            self.merged = not mode
            return super().train(mode)

    model = Merged()
    evaluate(model, batches(23), NUM, CPU)
    assert (model.training, model.merged) == (True, False)


def test_the_forward_pass_runs_under_autocast() -> None:
    model = nn.Linear(CLASSES, CLASSES)
    seen: list[torch.dtype] = []
    model.register_forward_hook(lambda _module, _input, output: seen.append(output.dtype))
    batch = MicroBatch(torch.ones(2, CLASSES), torch.tensor([0, 1]))
    found = evaluate(model, [batch], 2, CPU, partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    assert seen == [torch.bfloat16]
    assert isinstance(found, Evaluation)
