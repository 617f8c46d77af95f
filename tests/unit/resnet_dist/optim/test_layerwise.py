"""Norms of layers, and what optimizers with a factor for each layer share."""

from __future__ import annotations

import pytest
import torch

from resnet_dist.optim import Lamb, Lars, LayerwiseOptimizer, squared_norms
from resnet_dist.optim.layerwise import WholeLayers, last_trust_ratios


def test_float32_weights_have_their_norms_in_float64() -> None:
    norms = squared_norms([torch.full((10,), 0.1), torch.zeros(2)])
    assert norms.dtype is torch.float64
    assert norms.tolist() == pytest.approx([10 * float(torch.tensor(0.1)) ** 2, 0.0], rel=1e-15)


@pytest.mark.parametrize("num", [1, 4095, 4096, 4097, 3 * 4096 + 5, 2**20 + 1])
def test_norms_of_float32_weights_of_any_length_are_near_those_of_float64(num: int) -> None:
    weights = torch.randn(num, generator=torch.Generator().manual_seed(0))
    assert squared_norms([weights]).item() == pytest.approx(weights.double().square().sum().item(), rel=1e-6)


def test_norms_count_every_element_once() -> None:
    assert squared_norms([torch.ones(2 * 4096 + 4), torch.full((4096,), 2.0)]).tolist() == [8196.0, 16384.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_of_other_dtypes_are_added_up_in_float64(dtype: torch.dtype) -> None:
    weights = torch.randn(3 * 4096 + 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms = squared_norms([weights])
    assert norms.dtype is torch.float64
    assert norms.item() == pytest.approx(weights.double().square().sum().item(), rel=1e-14)


@pytest.mark.parametrize("shape", [(16, 64, 3, 3), (8, 1024, 1, 1), (64, 3, 7, 7), (1, 3000, 2, 2), (2, 20_000)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_of_weights_of_any_shape_are_near_those_of_float64(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    weights = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    weights = weights.to(memory_format=layout) if len(shape) == 4 else weights
    assert squared_norms([weights]).item() == pytest.approx(weights.double().square().sum().item(), rel=5e-7)


def test_norms_of_a_transposed_matrix_are_those_of_the_matrix() -> None:
    matrix = torch.randn(100, 80, generator=torch.Generator().manual_seed(0))
    assert squared_norms([matrix.T]).item() == pytest.approx(squared_norms([matrix]).item(), rel=1e-6)


# --- the base of LARS and LAMB


def test_whole_layers_are_their_own_pieces() -> None:
    tensors, values = [torch.ones(2), torch.ones(3)], torch.tensor([1.0, 2.0])
    assert WholeLayers().split(tensors) is tensors
    assert WholeLayers().per_piece(values) is values
    squares = WholeLayers().squared_norms(tensors, [2 * tensor for tensor in tensors])
    assert squares.flatten().tolist() == pytest.approx([2.0, 3.0, 8.0, 12.0], rel=1e-14)


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_ratios_are_in_the_order_of_the_groups_also_if_groups_are_stepped_one_by_one(
    kind: type[LayerwiseOptimizer],
) -> None:
    def ratios(one_by_one: bool) -> list[float]:
        weights = [torch.full((2,), float(k), requires_grad=True) for k in range(1, 5)]
        for number, weight in enumerate(weights):
            weight.grad = torch.tensor([1.0, float(number)])
        decays = ((weights[:1], True), (weights[1:2], False), (weights[2:], True))
        optimizer = kind([{"params": some, "decay": decay} for some, decay in decays], lr=1.0)
        every = optimizer.param_groups
        for _ in range(2):
            for some in [[group] for group in every] if one_by_one else [every]:
                optimizer.param_groups = some
                optimizer.step()
        return optimizer.last_trust_ratios().tolist()

    assert len(ratios(False)) == 3
    assert ratios(True) == ratios(False)


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_a_gradient_that_is_missing_leaves_no_ratio_of_an_earlier_step(kind: type[LayerwiseOptimizer]) -> None:
    first, second = (torch.full((2,), float(k), requires_grad=True) for k in (1, 2))
    first.grad, second.grad = torch.ones(2), torch.ones(2)
    optimizer = kind([first, second], lr=0.0)
    optimizer.step()
    both = optimizer.last_trust_ratios()
    assert len(both) == 2
    first.grad = None
    optimizer.step()
    assert len(optimizer.last_trust_ratios()) == 1


def test_optimizers_without_trust_ratios_have_none() -> None:
    assert last_trust_ratios(torch.optim.SGD([torch.ones(1)], lr=0.1)) is None
    ratios = last_trust_ratios(Lars([torch.ones(1, requires_grad=True)]))
    assert ratios is not None
    assert len(ratios) == 0
