"""Batch norm's statistics for an evaluation, against plain torch modules on the same batches."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import RecipeError
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.training.precise_batch_norm import PreciseBatchNorm

BATCH, NUM_STEPS = 12, 3
LABELS = torch.zeros(BATCH, dtype=torch.int64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 1),
        nn.BatchNorm2d(5, momentum=0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    return net.double()


def batch_of(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 3, 6, 5, dtype=torch.float64, generator=generator) * (step + 1) + step


def precise(model: nn.Module, *, span: int = BATCH, parts: int = 1, steps: int = NUM_STEPS) -> PreciseBatchNorm:
    use_spans(model, Spans(BatchLayout(BATCH, parts), 0, span))

    def micro_batches_from(first: int) -> Generator[MicroBatch, None, None]:
        for step in range(first, 100):
            for images in batch_of(step).chunk(parts):
                yield MicroBatch(images, LABELS[: len(images)])

    return PreciseBatchNorm(model, RunningStatistics(model), micro_batches_from, steps, parts)


def expected(
    steps: range, *, span: int = BATCH, weights: Mapping[str, Tensor] | None = None, frozen: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """Of torch's own layers: the mean and variance of all their inputs, when they normalise each span by itself."""
    model = net().eval()
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        return lambda _module, inputs: seen.setdefault(name, []).append(inputs[0].detach())

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and int(name) not in frozen:
            module.train()
            module.register_forward_pre_hook(watch(name))
    for step in steps:
        for images in batch_of(step).split(span):
            functional_call(model, dict(weights or {}), (images,))
    values = {name: torch.cat(inputs).transpose(0, 1).flatten(1) for name, inputs in seen.items()}
    found = {f"{name}.running_mean": value.mean(1) for name, value in values.items()}
    return found | {f"{name}.running_var": value.var(1, correction=1) for name, value in values.items()}


def check(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(("span", "parts"), [(12, 1), (4, 1), (6, 2), (2, 3)])
def test_they_are_those_of_all_values_of_the_last_steps(span: int, parts: int) -> None:
    model = net()
    check(precise(model, span=span, parts=parts).statistics(7), expected(range(4, 7), span=span))


def test_of_fewer_steps_all_are_used() -> None:
    check(precise(net()).statistics(2), expected(range(2)))


def test_they_are_a_function_of_the_step_and_the_weights_alone() -> None:
    statistics = precise(net())
    first = statistics.statistics(5)
    statistics.statistics(9)
    again = statistics.statistics(5)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_they_are_computed_with_the_average_of_the_weights_where_there_is_one() -> None:
    model = net()
    average = {name: tensor * 0.5 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    check(precise(model).statistics(4, average), expected(range(1, 4), weights=average))


def test_the_model_and_its_training_do_not_change() -> None:
    model, other = net(), net()
    statistics = precise(model)
    use_spans(other, Spans(BatchLayout(BATCH), 0, BATCH))
    running = RunningStatistics(other)
    own = statistics._statistics
    for step in range(3):
        torch.manual_seed(step)
        model(batch_of(step))
        own.update(own.sums())
        torch.manual_seed(step)
        other(batch_of(step))
        running.update(running.sums())
        state = torch.get_rng_state()
        statistics.statistics(step + 1)
        assert torch.equal(state, torch.get_rng_state())
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert all(module.training for module in model.modules())


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    model = net()
    statistics = precise(model)
    model[1].eval()
    check(statistics.statistics(4), expected(range(1, 4), frozen=(1,)))
    assert not model[1].training


@pytest.mark.parametrize("freeze", [False, True])
def test_a_model_without_a_batch_norm_that_moves_is_refused(freeze: bool) -> None:
    model: nn.Module = net().eval() if freeze else nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="no batch norm of the model has running statistics") as caught:
        precise(model)
    assert caught.value.key == "evaluate.precise_batch_norm"


def test_the_modules_are_in_their_modes_after_an_error() -> None:
    model = net()
    statistics = precise(model)

    def broken(first: int) -> Generator[MicroBatch, None, None]:
        yield MicroBatch(batch_of(0), LABELS)
        raise OSError("a broken image")

    statistics._micro_batches_from = broken
    with pytest.raises(OSError, match="a broken image"):
        statistics.statistics(3)
    assert all(module.training for module in model.modules())
    assert not statistics._statistics._collected.any()
