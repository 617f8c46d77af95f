"""Dropout and stochastic depth: functions of the seed and the position, in distribution those of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_dist.data import random_bits
from resnet_dist.data.random_bits import Purpose
from resnet_dist.models import Block, ResNet, build_model
from resnet_dist.models.masks import Draws, Mask, SampleMasks, add_dropout, add_stochastic_depth, uniform
from resnet_dist.recipe.schema import ModelRecipe

SEED = 3
STREAM = random_bits.stream(SEED, Purpose.DROPOUT)
CPU = torch.device("cpu")
# of all sizes: 2^62 is far beyond the largest position of a run
POSITIONS = torch.tensor([0, 1, 2, 255, 256, 10**6, 2**31, 2**32 + 1, 10**15, 2**62], dtype=torch.int64)


def network(dtype: torch.dtype = torch.float64, **keys: Any) -> ResNet:
    model = build_model(ModelRecipe(**{"name": "resnet8", "num_classes": 5, **keys}), seed=1)
    assert isinstance(model, ResNet)
    return model.to(dtype)


def masked(dropout: float, depth: float, dtype: torch.dtype = torch.float64) -> tuple[ResNet, SampleMasks]:
    model = network(dtype)
    draws = [add_dropout(model, dropout, STREAM)] if dropout else []
    if depth:
        draws.append(add_stochastic_depth(model, depth, random_bits.stream(SEED, Purpose.STOCHASTIC_DEPTH)))
    return model, SampleMasks(draws, CPU)


def images(num: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("seed", [0, 17, -1, 2**63 - 1])
@pytest.mark.parametrize("purpose", [Purpose.DROPOUT, Purpose.STOCHASTIC_DEPTH])
def test_the_numbers_are_those_of_random_bits_bit_by_bit(seed: int, purpose: Purpose) -> None:
    stream = random_bits.stream(seed, purpose)
    signed = stream - 2**64 if stream >= 2**63 else stream
    expected = random_bits.uniform(seed, POSITIONS.numpy(), purpose, 7)
    assert np.array_equal(uniform(signed, POSITIONS, 7).numpy(), expected)


def test_a_factor_is_0_or_1_over_the_probability_that_it_is_not() -> None:
    positions, rates = torch.arange(20_000), [0.0, 0.1, 0.5, 0.9]
    draws = Draws(STREAM, rates, torch.float64, CPU)
    draws.draw(positions)
    numbers = random_bits.uniform(SEED, positions.numpy(), Purpose.DROPOUT, 4)
    expected = np.where(numbers >= rates, 1 / (1 - np.array(rates)), 0)
    assert np.array_equal(draws.factors.numpy(), expected)
    # the standard error of a mean is sqrt(rate / (1 - rate) / 20,000), at most 0.021
    assert draws.factors.mean(0).tolist() == pytest.approx([1, 1, 1, 1], abs=0.08)


def test_masks_are_the_same_however_the_positions_are_split() -> None:
    draws = Draws(STREAM, [0.5] * 6, torch.float32, CPU)
    draws.draw(POSITIONS)
    whole = draws.factors.clone()
    parts = []
    for part in (POSITIONS[:3], POSITIONS[3:4], POSITIONS[4:]):
        draws.draw(part)
        parts.append(draws.factors.clone())
    assert torch.equal(torch.cat(parts), whole)
    draws.draw(POSITIONS.flip(0))
    assert torch.equal(draws.factors, whole.flip(0))


def test_factors_stay_in_one_place_for_cuda_graphs() -> None:
    draws = Draws(STREAM, [0.5] * 64, torch.float32, CPU)
    draws.draw(torch.arange(8))
    place, before = draws.factors, draws.factors.clone()
    draws.draw(torch.arange(8, 16))
    assert draws.factors is place
    assert not torch.equal(place, before)


def test_dropout_scales_the_inputs_that_it_keeps() -> None:
    x = torch.randn(10, 64, dtype=torch.float64).requires_grad_()
    draws = Draws(STREAM, [0.3] * 64, torch.float64, CPU)
    draws.draw(POSITIONS)
    y = Mask(draws)(x)
    kept = draws.factors > 0
    y.sum().backward()
    gradient = x.grad
    assert torch.allclose(y, x * kept / 0.7, rtol=1e-15)
    assert gradient is not None
    assert torch.allclose(gradient, kept.double() / 0.7, rtol=1e-15)


def test_bfloat16_is_scaled_by_a_factor_of_float32() -> None:
    draws = Draws(STREAM, [0.1], torch.float32, CPU)
    draws.draw(torch.arange(200))
    x = torch.full((200, 1), 0.9, dtype=torch.bfloat16)
    y = Mask(draws)(x)
    assert y.dtype is torch.bfloat16
    # 0.8984 / 0.9 is 0.99826, of which the nearest bfloat16 is 1; with 1 / 0.9 rounded to 1.109375 it is 0.9961
    assert set(y.flatten().tolist()) == {0.0, 1.0}


def test_stochastic_depth_is_torchvisions_with_these_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's mode `row`, whose noise comes from `Tensor.bernoulli_`."""
    draws = Draws(STREAM, [0.1, 0.4], torch.float64, CPU)
    draws.draw(POSITIONS)
    x = torch.randn(10, 4, 3, 3, dtype=torch.float64)
    for column, rate in enumerate((0.1, 0.4)):
        kept = (draws.factors[:, column] > 0).double().view(-1, 1, 1, 1)
        monkeypatch.setattr(Tensor, "bernoulli_", lambda self, p, kept=kept: self.copy_(kept))
        expected = torchvision.ops.stochastic_depth(x, rate, "row")
        assert torch.allclose(Mask(draws, column)(x), expected, rtol=1e-15, atol=0)


def test_the_rate_rises_linearly_over_the_blocks() -> None:
    model = network(name="resnet20")
    draws = add_stochastic_depth(model, 0.45, STREAM)
    assert draws._rates.tolist() == pytest.approx([0.05 * block for block in range(1, 10)])
    columns = [block.stochastic_depth.column for block in model.modules() if isinstance(block, Block)]  # type: ignore[union-attr]
    assert columns == list(range(9))


def test_a_network_is_the_one_in_which_the_branches_of_some_samples_are_scaled() -> None:
    """Written out for the three blocks of resnet8, in training mode."""
    model, masks = masked(0.3, 0.6)
    masks(POSITIONS)
    dropout, depth = (
        torch.from_numpy(random_bits.uniform(SEED, POSITIONS.numpy(), purpose, num))
        for purpose, num in ((Purpose.DROPOUT, 64), (Purpose.STOCHASTIC_DEPTH, 3))
    )
    x = images(10)
    with torch.no_grad():
        logits = model(x)
        x = model.bn1(model.conv1(x)).relu()
        for column, name in enumerate(("layer1.0", "layer2.0", "layer3.0")):
            block = model.get_submodule(name)
            assert isinstance(block, Block)
            rate = 0.6 * (column + 1) / 3
            kept = (depth[:, column] >= rate).view(-1, 1, 1, 1)
            shortcut = x if block.downsample is None else block.downsample(x)
            x = (block.branch(x) * kept / (1 - rate) + shortcut).relu()
        expected = model.fc(x.mean((2, 3)) * (dropout >= 0.3) / 0.7)
    assert torch.allclose(logits, expected, rtol=1e-12, atol=1e-12)


def test_in_evaluation_mode_nothing_is_masked_and_the_state_has_no_new_names() -> None:
    plain, (model, _) = network(), masked(0.5, 0.5)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model.eval()(images(4)), plain.eval()(images(4)))


@pytest.mark.parametrize("keys", [{"activation_order": "pre"}, {"normalisation": "none"}, {"name": "resnet18d"}])
def test_every_residual_network_takes_masks(keys: dict[str, Any]) -> None:
    model = network(**keys)
    draws = add_stochastic_depth(model, 0.9, STREAM)
    draws.draw(POSITIONS)
    assert not torch.equal(model(images(10)), network(**keys)(images(10)))


def test_a_mask_of_other_samples_is_an_error() -> None:
    model, masks = masked(0.0, 0.5)
    with pytest.raises(RuntimeError, match="4 samples reach a mask that was drawn for 0"):
        model(images(4))
    masks(torch.arange(5))
    with pytest.raises(RuntimeError, match="4 samples reach a mask that was drawn for 5"):
        model(images(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_keep_the_dtype_and_the_memory_layout(dtype: torch.dtype) -> None:
    model, masks = masked(0.5, 0.5, dtype)
    model.to(memory_format=torch.channels_last)
    layouts, dtypes = [], []

    def note(module: nn.Module, inputs: object, y: Tensor) -> None:
        layouts.append(y.is_contiguous(memory_format=torch.channels_last))
        dtypes.append(y.dtype)

    for block in (module for module in model.modules() if isinstance(module, Block)):
        assert block.stochastic_depth is not None
        block.stochastic_depth.register_forward_hook(note)
    masks(torch.arange(4))
    x = images(4, dtype).contiguous(memory_format=torch.channels_last)
    assert model(x).dtype is dtype
    assert layouts == [True] * 3
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.float32):
        assert model(x).dtype is (torch.bfloat16 if dtype is torch.float32 else dtype)
    assert dtypes == [dtype] * 3 + [torch.bfloat16 if dtype is torch.float32 else dtype] * 3


def test_a_repeated_forward_pass_of_activation_checkpointing_has_the_same_masks() -> None:
    gradients = []
    for checkpointed in (False, True):
        model, masks = masked(0.5, 0.5)
        masks(torch.arange(4))
        logits = checkpoint(model, images(4), use_reentrant=False) if checkpointed else model(images(4))
        assert isinstance(logits, Tensor)
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_compiled_code_takes_new_masks_without_a_new_compilation() -> None:
    model, masks = masked(0.5, 0.5)
    compiled = torch.compile(model, dynamic=False, backend="aot_eager", fullgraph=True)
    found = []
    for start in (0, 4, 8):
        masks(torch.arange(start, start + 4))
        found.append(compiled(images(4)))
        assert torch.allclose(found[-1], model(images(4)), rtol=1e-10, atol=1e-10)
        if start == 0:
            before = torch._dynamo.utils.counters["frames"]["total"]
    assert torch._dynamo.utils.counters["frames"]["total"] == before
    assert not torch.allclose(found[0], found[1])
