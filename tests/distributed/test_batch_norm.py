"""Batch norm on 2 and 3 workers against torch's batch norm over whole spans in one process, in float64.

Each world of gloo processes runs once: this file, as a script, writes what every worker has computed of every case.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from tests.cuda_batch_norm import cuda_kernels
from tests.distributed.forked import run_forked, run_script

MOMENTUM, EPSILON, CHANNELS = 0.1, 1e-5, 3
PERTURBATION = 1e-5  # of central differences in float64: an error of about its square
TIMEOUT_S = 120
SIZES = (2, 3)
KERNELS = {"cpu": nullcontext, "cuda": cuda_kernels}  # whose code path is taken


@dataclass(frozen=True)
class Case:
    size: int
    span: int | Literal["global", "worker"]
    num_micro_batches: int = 1
    shape: tuple[int, ...] = (2, 3)  # height, width; () for [samples, channels]
    affine: bool = True
    channels_last: bool = False
    dtype: torch.dtype = torch.float64
    offset: float = 0.0  # of all inputs, whose standard deviation is near 1


# Boundaries between workers: 7 -> 3 | 2, 4;  20 -> 10 | 6, 13;  8 -> 4 | 2, 5;  12 -> 6 | 4, 8
CASES = {
    "global, unequal micro-batches": Case(7, "global"),
    "crossing workers": Case(20, 4),
    "teams: one boundary of three workers is aligned": Case(8, 2),
    "aligned on every worker": Case(12, 2),
    "crossing, two micro-batches": Case(40, 4, num_micro_batches=2),
    "global, four micro-batches": Case(40, "global", num_micro_batches=4),
    "two dimensions": Case(7, "global", shape=()),
    "two dimensions, crossing": Case(20, 4, shape=()),
    "channels last": Case(20, 5, channels_last=True),
    "no weight, no bias": Case(7, "global", affine=False),
    "one worker's micro-batch": Case(7, "worker"),
    "float32 far from zero": Case(20, 4, dtype=torch.float32),
    "1e4 from zero": Case(20, 4, offset=1e4),
    "1e4 from zero, global, two micro-batches": Case(14, "global", num_micro_batches=2, offset=1e4),
    "1e6 from zero": Case(20, 4, offset=1e6),
    "1e8 from zero": Case(20, 4, offset=1e8),
}
EXACT = [name for name, case in CASES.items() if case.dtype is torch.float64 and not case.offset]
FAR = [name for name, case in CASES.items() if case.offset]


def data(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, the gradient of the loss by the outputs, and a direction in which the inputs are moved."""
    generator = torch.Generator().manual_seed(case.size)
    shape = (case.size, CHANNELS, *case.shape)
    inputs, coefficients, direction = torch.randn((3, *shape), dtype=torch.float64, generator=generator)
    # means differ by sample, so that a span of the wrong samples would show
    inputs = inputs + torch.arange(case.size, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1)) / 4
    if case.dtype is torch.float32:
        inputs = (inputs + 100).float().double()
    inputs = inputs + case.offset
    return inputs, coefficients, direction


def layer_of(case: Case) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    layer = nn.BatchNorm2d(CHANNELS, EPSILON, MOMENTUM, affine=case.affine, dtype=torch.float64)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.rand(CHANNELS, dtype=torch.float64, generator=generator) + 0.5)
    return layer.to(case.dtype)


# --- what one worker does


def run_case(case: Case, rank: int, world_size: int) -> dict[str, Any]:
    layout = BatchLayout(case.size, case.num_micro_batches, world_size)
    spans = Spans(layout, rank, case.span)
    layer = use_spans(layer_of(case), spans, momentum=MOMENTUM, epsilon=EPSILON)
    statistics = RunningStatistics(layer)
    inputs, coefficients, direction = data(case)
    result: dict[str, Any] = {"ranks": 1 if spans.group is None else dist.get_world_size(spans.group), "parts": []}
    for positions in layout.worker_micro_batches(rank):
        own = slice(positions.start, positions.stop)
        input = inputs[own].to(case.dtype)
        if case.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        input.requires_grad_()
        output = layer(input)
        output.backward(coefficients[own].to(case.dtype))
        result["parts"].append((positions, output.detach(), input.grad))
    add_up = dist.all_reduce if world_size > 1 else lambda tensor: None
    sums = statistics.sums()
    add_up(sums)
    statistics.update(sums, add_up)
    result["gradients"] = [parameter.grad for parameter in layer.parameters()]
    result["buffers"] = dict(layer.named_buffers())
    with torch.no_grad():
        for sign in (1, -1):
            moved = inputs + sign * PERTURBATION * direction
            result[f"loss {sign:+d}"] = sum(
                (layer(moved[s.start : s.stop].to(case.dtype)) * coefficients[s.start : s.stop]).sum()
                for s in layout.worker_micro_batches(rank)
            )
    return result


def worker(world_size: int, folder: Path, rank: int) -> None:
    """Run all cases on one worker, with each of `KERNELS`."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world_size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    for kernels, context in KERNELS.items():
        with context():
            results = {name: run_case(case, rank, world_size) for name, case in CASES.items()}
        torch.save(results, folder / f"{kernels}-{world_size}-{rank}.pt")
    dist.destroy_process_group()


def all_worlds(folder: Path) -> None:
    """Run one world after the other."""
    for size in SIZES:
        assert run_forked(partial(worker, size, folder), size, TIMEOUT_S) == [0] * size


# --- what the test does with it


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of all workers of all worlds."""
    folder = tmp_path_factory.mktemp("worlds")
    done = run_script(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=SIZES, ids="{} workers".format)
def size(request: pytest.FixtureRequest) -> int:
    """The number of workers."""
    return int(request.param)


@pytest.fixture(scope="module", params=KERNELS)
def world(request: pytest.FixtureRequest, worlds: Path, size: int) -> list[dict[str, Any]]:
    """The results of every worker, by case."""
    return [torch.load(worlds / f"{request.param}-{size}-{rank}.pt", weights_only=False) for rank in range(size)]


def whole(results: list[dict[str, Any]], case: Case) -> tuple[Tensor, Tensor]:
    """Outputs and input gradients of the global batch, put together."""
    outputs, gradients = torch.full((2, *data(case)[0].shape), torch.nan, dtype=torch.float64)
    for result in results:
        for own, output, gradient in result["parts"]:
            outputs[own.start : own.stop] = output
            gradients[own.start : own.stop] = gradient
    return outputs, gradients


def spans_of(case: Case, world_size: int) -> list[int]:
    """The sizes of all spans of the global batch, in order."""
    if case.span == "worker":
        layout = BatchLayout(case.size, case.num_micro_batches, world_size)
        return [len(layout.worker_micro_batch(m, r)) for m in range(case.num_micro_batches) for r in range(world_size)]
    size = case.size // case.num_micro_batches if case.span == "global" else case.span
    return [size] * (case.size // size)


def reference(case: Case, world_size: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs, input gradients and parameter gradients of torch's batch norm, span by span, in one process."""
    inputs, coefficients, _ = data(case)
    inputs.requires_grad_()
    layer = layer_of(case).double()
    spans = inputs.split(spans_of(case, world_size))
    outputs = torch.cat([F.batch_norm(s, None, None, layer.weight, layer.bias, True, 0.0, EPSILON) for s in spans])
    outputs.backward(coefficients)
    assert inputs.grad is not None
    return outputs.detach(), inputs.grad, [p.grad for p in layer.parameters() if p.grad is not None]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", EXACT)
def test_outputs_are_those_of_whole_spans(world: list[dict[str, Any]], name: str) -> None:
    outputs, _ = whole([results[name] for results in world], CASES[name])
    close(outputs, reference(CASES[name], len(world))[0])


@pytest.mark.parametrize("name", EXACT)
def test_input_gradients_are_those_of_whole_spans(world: list[dict[str, Any]], name: str) -> None:
    _, gradients = whole([results[name] for results in world], CASES[name])
    close(gradients, reference(CASES[name], len(world))[1])


@pytest.mark.parametrize("name", EXACT)
def test_parameter_gradients_add_up_over_workers(world: list[dict[str, Any]], name: str) -> None:
    expected = reference(CASES[name], len(world))[2]
    assert len(expected) == (2 if CASES[name].affine else 0)
    for number, gradient in enumerate(expected):
        close(sum(results[name]["gradients"][number] for results in world), gradient)


@pytest.mark.parametrize("name", EXACT)
def test_gradients_are_the_slopes_of_the_loss(world: list[dict[str, Any]], name: str) -> None:
    case = CASES[name]
    _, gradients = whole([results[name] for results in world], case)
    rise = sum(results[name]["loss +1"] - results[name]["loss -1"] for results in world) / (2 * PERTURBATION)
    close(rise, (gradients * data(case)[2]).sum(), tolerance=1e-7)


@pytest.mark.parametrize("name", [name for name in EXACT if CASES[name].span != "worker"])
def test_running_statistics_are_the_same_on_every_topology(world: list[dict[str, Any]], name: str) -> None:
    alone = run_case(CASES[name], rank=0, world_size=1)["buffers"]
    for results in world:
        assert list(results[name]["buffers"]) == ["running_mean", "running_var", "num_batches_tracked"]
        for key, value in results[name]["buffers"].items():
            torch.testing.assert_close(value, alone[key], rtol=1e-12, atol=1e-12)
            assert torch.equal(value, world[0][name]["buffers"][key]), "workers differ"


@pytest.mark.parametrize("name", EXACT)
def test_running_statistics_are_those_of_the_whole_batch(world: list[dict[str, Any]], name: str) -> None:
    inputs, layer = data(CASES[name])[0], layer_of(CASES[name])
    F.batch_norm(inputs, layer.running_mean, layer.running_var, training=True, momentum=MOMENTUM)
    buffers = world[-1][name]["buffers"]
    close(buffers["running_mean"], layer.running_mean)  # type: ignore[arg-type]
    close(buffers["running_var"], layer.running_var)  # type: ignore[arg-type]


def errors_far_from_zero(case: Case, buffers: dict[str, Tensor]) -> tuple[float, float]:
    """Relative errors of the running mean and variance after one step; the offset is subtracted without rounding."""
    values = (data(case)[0] - case.offset).transpose(0, 1).flatten(1)
    mean = MOMENTUM * (values.mean(1) + case.offset)
    variance = (1 - MOMENTUM) + MOMENTUM * values.var(1)
    pairs = ((buffers["running_mean"], mean), (buffers["running_var"], variance))
    first, second = ((found - expected).abs().div(expected).max().item() for found, expected in pairs)
    return first, second


@pytest.mark.parametrize("name", FAR)
def test_running_statistics_far_from_zero_are_as_exact_as_on_one_worker(world: list[dict[str, Any]], name: str) -> None:
    case = CASES[name]
    alone = errors_far_from_zero(case, run_case(case, rank=0, world_size=1)["buffers"])
    for results in world:
        together = errors_far_from_zero(case, results[name]["buffers"])
        print(f"{name}: {together} on {len(world)} workers, {alone} on one")
        for error, error_alone in zip(together, alone, strict=True):
            assert error <= max(10 * error_alone, 1e-15)  # sums in another order round differently
            assert error <= 1e-12 or case.offset > 1e4


def test_only_workers_that_share_spans_exchange_them(world: list[dict[str, Any]]) -> None:
    def ranks(name: str) -> list[int]:
        return [results[name]["ranks"] for results in world]

    assert ranks("teams: one boundary of three workers is aligned") == {2: [1, 1], 3: [1, 2, 2]}[len(world)]
    assert ranks("aligned on every worker") == [1] * len(world)
    assert ranks("crossing workers") == [len(world)] * len(world)
    assert ranks("one worker's micro-batch") == [1] * len(world)


def test_memory_layout_is_kept(world: list[dict[str, Any]]) -> None:
    for results in world:
        for _, output, gradient in results["channels last"]["parts"]:
            assert output.is_contiguous(memory_format=torch.channels_last)
            assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_float32_far_from_zero_keeps_its_variance(world: list[dict[str, Any]]) -> None:
    """Inputs near 100 with a variance near 1: float32 sums of squares would be wrong in the third digit."""
    name = "float32 far from zero"
    outputs, gradients = whole([results[name] for results in world], CASES[name])
    expected, expected_gradients, _ = reference(CASES[name], len(world))
    assert world[0][name]["parts"][0][1].dtype is torch.float32
    # shift - scale × 100 rounds at 100 × 2^-24 of the scale: 6e-6, twice
    close(outputs, expected, tolerance=5e-5)
    close(gradients, expected_gradients, tolerance=5e-5)


if __name__ == "__main__":
    all_worlds(Path(sys.argv[1]))
