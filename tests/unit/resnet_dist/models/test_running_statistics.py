"""One update a step, by what was normalised; tests/distributed/test_any_model.py has the same on several workers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_dist.models.batch_norm import SpanBatchNorm, use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout

BATCH, CHANNELS = 8, 3


def images(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, CHANNELS, 4, 6, dtype=torch.float64, generator=generator) * 2 + 1


def layer(momentum: float | None = 0.1) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(CHANNELS, momentum=momentum, dtype=torch.float64)


def trained(model: nn.Module, *batches: Tensor, span: int = BATCH) -> None:
    """A step for each batch."""
    use_spans(model, Spans(BatchLayout(BATCH), 0, span))
    statistics = RunningStatistics(model)
    for batch in batches:
        model(batch.requires_grad_()).sum().backward()
        statistics.update(statistics.sums())


def close(found: nn.Module, expected: nn.BatchNorm2d) -> None:
    assert isinstance(found, SpanBatchNorm)
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


class Twice(nn.Module):
    """One batch norm for an image and for its half."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = layer()

    def forward(self, batch: Tensor) -> Tensor:
        output: Tensor = self.norm(batch).sum((2, 3)) + self.norm(F.avg_pool2d(batch, 2) + 3).sum((2, 3))
        return output


@pytest.mark.parametrize("span", [8, 2])
def test_all_calls_of_a_layer_in_a_step_count_as_one_batch(span: int) -> None:
    model, reference = Twice(), layer()
    trained(model, images(), span=span)
    values = torch.cat([images().flatten(2), (F.avg_pool2d(images(), 2) + 3).flatten(2)], dim=2)
    reference(values.unsqueeze(-1))
    close(model.norm, reference)


def test_a_forward_pass_that_is_repeated_in_the_backward_pass_counts_once() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = layer()

        def forward(self, batch: Tensor) -> Tensor:
            return checkpoint(self.norm, batch, use_reentrant=False)  # type: ignore[no-any-return]

    model, reference = Recomputed(), layer()
    trained(model, images(0), images(1), span=2)
    for batch in (images(0), images(1)):
        reference(batch)
    close(model.norm, reference)


def test_layers_that_normalise_nothing_keep_their_bits_and_the_others_move() -> None:
    model = nn.Sequential(layer(), layer(), layer())
    model[1].running_mean.fill_(0.3)
    model[1].eval()
    trained(model, images(0), images(1))
    assert torch.equal(model[1].running_mean, torch.full((CHANNELS,), 0.3, dtype=torch.float64))
    assert torch.equal(model[1].running_var, torch.ones(CHANNELS, dtype=torch.float64))
    assert [int(norm.num_batches_tracked) for norm in model] == [2, 0, 2]
    assert not torch.equal(model[2].running_var, model[1].running_var)


def test_a_layer_may_be_frozen_and_thawed_between_steps() -> None:
    model, reference = nn.Sequential(layer(), layer()), layer()
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    for seed, training in enumerate((True, False, True)):
        model[0].train(training)
        model(images(seed))
        statistics.update(statistics.sums())
        reference.train(training)(images(seed))
    close(model[0], reference)


@pytest.mark.parametrize("momentum", [0.25, None])
def test_each_layer_keeps_its_own_momentum(momentum: float | None) -> None:
    """None is torch's cumulative average."""
    model = nn.Sequential(layer(momentum), layer(0.5))
    reference = nn.Sequential(layer(momentum), layer(0.5))
    trained(model, images(0), images(1), images(2))
    for batch in (images(0), images(1), images(2)):
        reference(batch)
    close(model[0], reference[0])  # type: ignore[arg-type]
    close(model[1], reference[1])  # type: ignore[arg-type]


def test_a_model_that_calls_itself_is_one_forward_pass() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inside = layer(), False

        def forward(self, batch: Tensor) -> Tensor:
            output: Tensor = self.norm(batch)
            if not self.inside:
                self.inside = True
                output = output + self(batch + 1)
                self.inside = False
            return output

    model, reference = Nested(), layer()
    trained(model, images())
    reference(torch.cat([images().flatten(2), images().flatten(2) + 1], dim=2).unsqueeze(-1))
    close(model.norm, reference)


def test_a_forward_pass_that_fails_leaves_the_next_one_whole() -> None:
    class Fails(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            if batch.isnan().any():
                raise ValueError("no numbers")
            return batch

    model, reference = nn.Sequential(layer(), Fails()), layer()
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    with pytest.raises(ValueError, match="no numbers"):
        model(images() * torch.nan)
    model(images())
    statistics.update(statistics.sums())
    reference(images())
    close(model[0], reference)


def test_a_momentum_that_changes_holds_from_the_next_step_on() -> None:
    model, reference = nn.Sequential(layer()), layer()
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    for seed, momentum in enumerate((0.1, 0.3)):
        model[0].momentum = reference.momentum = momentum
        model(images(seed))
        statistics.update(statistics.sums())
        reference(images(seed))
    close(model[0], reference)


def test_an_evaluation_with_a_layer_in_training_mode_moves_nothing() -> None:
    model = nn.Sequential(layer())
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    with torch.no_grad():
        model(images())
    assert not statistics.sums().any()
