"""Operations and bytes of batch norm, and cases that one process can show.

tests/distributed/test_batch_norm.py has the exactness of spans on several workers, on both code paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_dist.errors import RecipeError
from resnet_dist.models.batch_norm import SpanBatchNorm, use_spans
from resnet_dist.models.span_norm import normalise_shared
from resnet_dist.models.spans import OPERATORS, Spans
from resnet_dist.recipe.batch_layout import BatchLayout, SpanGroup
from tests.cuda_batch_norm import cuda_kernels

CPU = torch.device("cpu")
CHANNELS = 4
KERNELS = {"cpu": nullcontext, "cuda": cuda_kernels}
ALLOCATIONS = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided"}


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both code paths; that of CUDA with stand-ins for its kernels."""
    with KERNELS[request.param]():
        yield request.param


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker has the same numbers as this one."""

    def gather(gathered: Tensor, own: Tensor, group: object) -> None:
        gathered.view(2, -1).copy_(own.flatten())

    monkeypatch.setattr("resnet_dist.models.spans.dist.all_gather_single", gather)


def shared(layer: nn.Module, num_samples: int) -> SpanBatchNorm:
    """`layer` on the first of two workers, whose samples are one span."""
    layout = BatchLayout(2 * num_samples, world_size=2)
    spans = Spans(layout, 0, "worker")  # without process groups
    spans.span_size = 2 * num_samples
    spans.join(SpanGroup(range(2), range(2 * num_samples)), object(), layout, 0)  # type: ignore[arg-type]
    found = use_spans(layer, spans)
    assert isinstance(found, SpanBatchNorm)
    return found


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    values = torch.randn(shape, dtype=torch.float64, generator=generator) * 2 + 1
    return values.to(dtype).to(memory_format=torch.channels_last)


class Counts(TorchDispatchMode):
    """Counts operations, also those inside ours, without views and allocations, and the bytes that they name.

    A tensor counts once for each operation that has it as an argument, and once for each that returns it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, _, _ = str(func.name()).partition(".")
        if name in OPERATORS:
            with self:
                return OPERATORS[name](*args)
        found = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in (*ALLOCATIONS, "aten::detach"):
            self.names.append(name)
            tensors = [value for value in tree_leaves((args, found)) if isinstance(value, Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


def counts_of(layer: nn.Module, input: Tensor) -> tuple[list[str], float]:
    """The operations of a forward and a backward pass, and their bytes per element of `input`."""
    input = input.requires_grad_()
    gradient = torch.ones_like(input)
    layer(input).backward(gradient)  # a first time, whose constants are kept
    for parameter in (input, *layer.parameters()):
        parameter.grad = None
    with torch.autograd.set_multithreading_enabled(False), Counts() as found:
        layer(input).backward(gradient)
    return found.names, found.num_bytes / input.numel()


def test_torchs_batch_norm_has_2_operations_and_10_bytes_an_element() -> None:
    """The measure of the others."""
    layer = nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    names, num_bytes = counts_of(layer, images(8, CHANNELS, 64, 64, dtype=torch.bfloat16))
    assert names == ["aten::native_batch_norm", "aten::native_batch_norm_backward"]
    assert num_bytes == pytest.approx(10, abs=0.02)


def test_a_shared_span_on_a_gpu_has_12_operations_and_16_bytes_an_element(two_workers: None) -> None:
    layer = shared(nn.BatchNorm2d(CHANNELS), 8)
    layer.spans._checked = False  # as on a GPU after the first passes
    with cuda_kernels():
        names, num_bytes = counts_of(layer, images(8, CHANNELS, 64, 64, dtype=torch.bfloat16))
    gather = "aten::copy_"  # of the stand-in for the other worker
    assert names == [
        "aten::batch_norm_stats", "aten::cat", gather, "aten::batch_norm_gather_stats_with_counts", "aten::stack",
        "aten::_to_copy", "aten::batch_norm_elemt",
        "aten::batch_norm_backward_reduce", "aten::stack", gather, "aten::sum", "aten::batch_norm_backward_elemt",
    ]  # fmt: skip
    assert num_bytes == pytest.approx(16, abs=0.02)


def test_a_shared_span_on_a_cpu_has_7_operations_and_20_bytes_an_element(two_workers: None) -> None:
    """Counted in float32, half of it. The gradient takes two passes more than on a GPU: a write and a read."""
    layer = shared(nn.BatchNorm2d(CHANNELS), 8)
    names, num_bytes = counts_of(layer, images(8, CHANNELS, 64, 64, dtype=torch.float32))
    gather = "aten::copy_"
    assert names == [
        "aten::batch_norm_update_stats", gather, "aten::addcmul",
        "aten::native_batch_norm_backward", gather, "aten::addcmul", "aten::addcmul_",
    ]  # fmt: skip
    assert num_bytes / 2 == pytest.approx(20, abs=0.4)


@pytest.mark.parametrize("num_spans", [2, 4])
def test_several_spans_on_a_worker_have_14_bytes_an_element(num_spans: int) -> None:
    """10 of torch's kernels, and 4 of the one copy that puts the gradients of the spans together."""
    layer = use_spans(nn.BatchNorm2d(CHANNELS), Spans(BatchLayout(8), 0, 8 // num_spans))
    names, num_bytes = counts_of(layer, images(8, CHANNELS, 64, 64, dtype=torch.bfloat16))
    forward, backward = ["aten::native_batch_norm"] * num_spans, ["aten::native_batch_norm_backward"] * num_spans
    assert names[: 2 * num_spans + 1] == [*forward, *backward, "aten::cat"]
    assert num_bytes == pytest.approx(14, abs=0.02)


def reference(layer: nn.BatchNorm2d, input: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input of torch's batch norm, for two workers with the same numbers: those of one."""
    both = torch.cat([input, input]).detach().requires_grad_()
    weight, bias = layer.weight, layer.bias
    output = F.batch_norm(both, None, None, weight, bias, True, 0.0, layer.eps)
    output.backward(torch.cat([gradient, gradient]))
    assert both.grad is not None
    return output[: len(input)].detach(), both.grad[: len(input)]


@pytest.mark.parametrize("good", [[True, True, False, True], [False, False, True, True]])
def test_what_is_left_of_a_shared_span_is_normalised_as_by_torch(
    good: list[bool], kernels: str, two_workers: None
) -> None:
    layer, plain = shared(nn.BatchNorm2d(CHANNELS).double(), 4), nn.BatchNorm2d(CHANNELS).double()
    layer.spans.leave_out(np.array(good + good), CPU)
    input = images(sum(good), CHANNELS, 3, 2).requires_grad_()
    gradient = images(sum(good), CHANNELS, 3, 2).square()
    output = layer(input)
    output.backward(gradient)
    expected, expected_gradient = reference(plain, input, gradient)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(input.grad, expected_gradient, rtol=1e-12, atol=1e-12)


def test_a_worker_whose_samples_are_all_left_out_takes_part(kernels: str, two_workers: None) -> None:
    layer = shared(nn.BatchNorm2d(CHANNELS).double(), 4)
    layer.spans.leave_out(np.zeros(8, np.bool_), CPU)
    input = torch.empty(0, CHANNELS, 3, 2, dtype=torch.float64, requires_grad=True)
    layer(input).sum().backward()
    assert input.grad is not None
    assert input.grad.shape == input.shape
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [0.0] * CHANNELS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_float32s(dtype: torch.dtype, kernels: str, two_workers: None) -> None:
    layer, plain = shared(nn.BatchNorm2d(CHANNELS), 8), nn.BatchNorm2d(CHANNELS)
    input = images(8, CHANNELS, 5, 6, dtype=dtype).requires_grad_()
    gradient = images(8, CHANNELS, 5, 6, dtype=dtype).detach()
    output = layer(input)
    output.backward(gradient)
    expected, expected_gradient = reference(plain, input.float(), gradient.float())
    rounding = torch.finfo(dtype).eps
    assert output.dtype is dtype
    torch.testing.assert_close(output.float(), expected, rtol=rounding, atol=rounding)
    torch.testing.assert_close(input.grad.float(), expected_gradient, rtol=rounding, atol=rounding)  # type: ignore[union-attr]


@pytest.mark.parametrize("samples", [32, 31])  # 31: an odd number of values
def test_float32_statistics_of_many_values_on_a_cpu_are_exact(samples: int, two_workers: None) -> None:
    """torch's kernel alone adds up all 100,352 values of a channel in float32: a relative error of 1e-5 to 1e-4."""
    layer, input = shared(nn.BatchNorm2d(CHANNELS), samples), images(samples, CHANNELS, 56, 56, dtype=torch.float32)
    _, moments = normalise_shared(input, None, None, 0.0, layer.spans, layer.number)
    variances, means = torch.var_mean(input.double(), [0, 2, 3], correction=0)
    torch.testing.assert_close(moments[0, 0], means, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(moments[1, 0].pow(-2), variances, rtol=2e-6, atol=0.0)


def test_workers_at_different_layers_are_refused(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = shared(nn.BatchNorm2d(CHANNELS), 8)
    layer.spans.add_layer("another layer", CHANNELS)

    def gather(gathered: Tensor, own: Tensor, group: object) -> None:
        gathered.view(2, -1).copy_(own.flatten())
        gathered[-1] += 2 * (layer.spans._layers.index("another layer") - layer.number)  # the call of the other worker

    monkeypatch.setattr("resnet_dist.models.spans.dist.all_gather_single", gather)
    with pytest.raises(RecipeError, match=r"worker 0 is at the model .* worker 1 at another layer \(forward pass\)"):
        layer(images(8, CHANNELS, 3, 2, dtype=torch.float32))


def test_autocast_does_not_round_the_statistics(kernels: str, two_workers: None) -> None:
    layer, input = shared(nn.BatchNorm2d(CHANNELS), 8), images(8, CHANNELS, 5, 6, dtype=torch.float32)
    expected = layer(input)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(input), expected)


def test_a_gradient_of_other_strides_is_accepted(kernels: str, two_workers: None) -> None:
    layer, plain = shared(nn.BatchNorm2d(CHANNELS).double(), 8), nn.BatchNorm2d(CHANNELS).double()
    input = images(8, CHANNELS, 5, 6).requires_grad_()
    gradient = torch.arange(8.0, dtype=torch.float64).view(-1, 1, 1, 1).expand(input.shape)
    layer(input).backward(gradient)
    _, expected = reference(plain, input, gradient)
    torch.testing.assert_close(input.grad, expected, rtol=1e-12, atol=1e-12)
