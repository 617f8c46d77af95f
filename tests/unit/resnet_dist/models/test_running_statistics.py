"""One update a step, by what was normalised; tests/distributed/test_any_model.py has the same on several workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy as copy_of
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.step import Operations
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


# --- the buffers of all layers are views of one tensor


def test_an_update_takes_the_same_number_of_operations_for_any_number_of_layers() -> None:
    numbers = []
    for num_layers in (2, 5):
        model = nn.Sequential(*(layer() for _ in range(num_layers)))
        use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
        statistics = RunningStatistics(model)
        for _ in range(2):
            model(images())
            with Operations() as found:
                statistics.update(statistics.sums())
        numbers.append(found.numbers.total() + found.num_views)
    assert numbers[0] == numbers[1] < 30


def moved(model: nn.Module) -> None:
    model.to(torch.float32).to(torch.float64)


def assigned(model: nn.Module) -> None:
    copies = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(copies, assign=True)


def replaced(model: nn.Module) -> None:
    model[0].running_mean = model[0].running_mean.clone()  # type: ignore[index]


@pytest.mark.parametrize("change", [moved, assigned, replaced])
def test_buffers_that_were_replaced_between_steps_are_updated(change: Callable[[nn.Module], None]) -> None:
    model, reference = nn.Sequential(layer(), layer()), nn.Sequential(layer(), layer())
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    for seed in (0, 1):
        model(images(seed))
        statistics.update(statistics.sums())
        change(model)
        reference(images(seed))
    for found, expected in zip(model, reference, strict=True):
        for name, buffer in expected.named_buffers():  # float32 in between
            torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-6, atol=1e-6)


def test_a_loaded_state_is_where_the_next_update_starts() -> None:
    model, reference = nn.Sequential(layer()), layer()
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    reference(images(1))
    model.load_state_dict({f"0.{name}": value for name, value in reference.state_dict().items()})
    model(images(2))
    statistics.update(statistics.sums())
    reference(images(2))
    close(model[0], reference)


def test_a_copy_of_the_model_keeps_its_statistics() -> None:
    """Its buffers have a memory of their own."""
    model = nn.Sequential(layer(), layer())
    use_spans(model, Spans(BatchLayout(BATCH), 0, BATCH))
    statistics = RunningStatistics(model)
    copy = copy_of(model)
    model(images())
    statistics.update(statistics.sums())
    assert [int(norm.num_batches_tracked) for norm in model] == [1, 1]
    assert [int(norm.num_batches_tracked) for norm in copy] == [0, 0]
    assert torch.equal(copy[1].running_var, torch.ones(CHANNELS, dtype=torch.float64))


def test_a_state_can_be_written_and_read(tmp_path: Path) -> None:
    """torch.save writes the memory of views once; safetensors refuses tensors that overlap."""
    model = nn.Sequential(layer(), layer())
    trained(model, images())
    torch.save(model.state_dict(), tmp_path / "state.pt")
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    for found in (torch.load(tmp_path / "state.pt"), load_file(tmp_path / "state.safetensors")):
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_compiled_code_collects_the_same_statistics() -> None:
    model, reference = nn.Sequential(layer(), layer()), nn.Sequential(layer(), layer())
    use_spans(model, Spans(BatchLayout(BATCH), 0, 4))
    statistics = RunningStatistics(model)
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    use_spans(reference, Spans(BatchLayout(BATCH), 0, 4))
    plain = RunningStatistics(reference)
    for seed in (0, 1):
        for run, of in ((compiled, statistics), (reference, plain)):
            run(images(seed).requires_grad_()).sum().backward()
            of.update(of.sums())
    for found, expected in zip(model, reference, strict=True):
        assert int(found.num_batches_tracked) == 2
        for name, buffer in expected.named_buffers():
            torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


def test_the_module_is_imported_without_the_compiler() -> None:
    """torch._dynamo takes about a second. torch's optimizers import it, but not before they are needed."""
    code = "import sys, resnet_dist.models.running_statistics; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
