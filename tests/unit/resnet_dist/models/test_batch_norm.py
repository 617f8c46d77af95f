"""One worker; tests/distributed/test_batch_norm.py has the same layers on several."""

from __future__ import annotations

import copy
import logging
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from resnet_dist.errors import RecipeError
from resnet_dist.models.batch_norm import SpanBatchNorm, use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout

MOMENTUM, EPSILON, CHANNELS = 0.1, 1e-5, 3
SpanSize = int | Literal["global", "worker"]


def torch_layer() -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    layer = nn.BatchNorm2d(CHANNELS, EPSILON, MOMENTUM, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(CHANNELS, dtype=torch.float64, generator=generator) + 0.5)
    return layer


def images(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, CHANNELS, 2, 3, dtype=torch.float64, generator=generator) * 2 + 1


def with_spans(model: nn.Module, size: int, span: SpanSize, num_micro_batches: int = 1) -> nn.Module:
    return use_spans(model, Spans(BatchLayout(size, num_micro_batches), 0, span), momentum=MOMENTUM, epsilon=EPSILON)


def one_step(model: nn.Module, batch: Tensor, num_micro_batches: int = 1) -> Tensor:
    statistics = RunningStatistics(model)
    output = torch.cat([model(part) for part in batch.chunk(num_micro_batches)])
    statistics.update(statistics.sums())
    return output


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("span", ["global", "worker", 8])
def test_a_span_of_the_whole_batch_is_torchs_batch_norm(span: SpanSize) -> None:
    batch, reference, layer = images(8), torch_layer(), with_spans(torch_layer(), 8, span)
    output = one_step(layer, batch)

    assert torch.equal(output, reference(batch))
    close(layer.running_mean, reference.running_mean)
    close(layer.running_var, reference.running_var)
    assert torch.equal(layer.num_batches_tracked, reference.num_batches_tracked)  # type: ignore[arg-type]


@pytest.mark.parametrize("span", [1, 2, 4])
def test_each_span_is_normalised_by_itself(span: int) -> None:
    batch, layer = images(8).requires_grad_(), with_spans(torch_layer(), 8, span)
    alone, reference = batch.detach().clone().requires_grad_(), torch_layer()
    coefficients = images(8, seed=2)

    expected = torch.cat(
        [F.batch_norm(part, None, None, reference.weight, reference.bias, True) for part in alone.split(span)]
    )
    (expected * coefficients).sum().backward()
    output = layer(batch)
    (output * coefficients).sum().backward()

    assert torch.equal(output, expected)
    assert torch.equal(batch.grad, alone.grad)  # type: ignore[arg-type]
    close(layer.weight.grad, reference.weight.grad)  # type: ignore[arg-type, union-attr]
    close(layer.bias.grad, reference.bias.grad)  # type: ignore[arg-type, union-attr]


def test_running_statistics_are_pooled_over_the_spans_of_a_step() -> None:
    batch, layer, before = images(8), with_spans(torch_layer(), 8, 2), torch_layer()
    one_step(layer, batch)

    dims, num_values = (1, 3, 4), 8 * 6
    by_span = batch.view(4, 2, CHANNELS, 2, 3)
    means, variances = by_span.mean(dims), by_span.var(dims, correction=0)
    pooled = (variances.mean(0) + means.var(0, correction=0)) * num_values / (num_values - 1)
    close(layer.running_mean, before.running_mean * (1 - MOMENTUM) + means.mean(0) * MOMENTUM)  # type: ignore[operator]
    close(layer.running_var, before.running_var * (1 - MOMENTUM) + pooled * MOMENTUM)  # type: ignore[operator]


def test_pooled_statistics_of_equal_spans_are_those_of_the_whole_batch() -> None:
    batch, layer, reference = images(8), with_spans(torch_layer(), 8, 2), torch_layer()
    one_step(layer, batch)
    reference(batch)
    close(layer.running_mean, reference.running_mean)
    close(layer.running_var, reference.running_var)


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_micro_batches_change_neither_outputs_nor_running_statistics(num_micro_batches: int) -> None:
    batch = images(8)
    whole, split = with_spans(torch_layer(), 8, 2), with_spans(torch_layer(), 8, 2, num_micro_batches)

    assert torch.equal(one_step(whole, batch), one_step(split, batch, num_micro_batches))
    close(split.running_mean, whole.running_mean)  # type: ignore[arg-type]
    close(split.running_var, whole.running_var)  # type: ignore[arg-type]
    assert split.num_batches_tracked == 1


def test_running_statistics_of_several_layers_are_kept_apart() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).double()
    reference = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).double()
    reference.load_state_dict(model.state_dict())
    one_step(with_spans(model, 6, "global"), images(6))
    reference(images(6))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_running_statistics_follow_a_model_that_is_moved_after_they_were_made() -> None:
    model = with_spans(nn.BatchNorm2d(CHANNELS), 8, "global")
    statistics = RunningStatistics(model)
    model.double()
    model(images(8))
    statistics.update(statistics.sums())
    reference = nn.BatchNorm2d(CHANNELS).double()
    reference(images(8))
    close(model.running_mean, reference.running_mean)  # type: ignore[arg-type]


def test_a_step_with_infinite_activations_spoils_its_own_statistics_only() -> None:
    layer = with_spans(torch_layer(), 8, "global")
    statistics = RunningStatistics(layer)
    layer(images(8) * torch.inf)
    assert not statistics.sums()[1].isfinite().any()
    statistics.update(statistics.sums())
    layer(images(8))
    close(statistics.sums()[1], images(8).sum((0, 2, 3)))


def test_evaluation_uses_the_running_statistics_and_any_number_of_samples() -> None:
    layer, reference = with_spans(torch_layer(), 8, 2).eval(), torch_layer().eval()
    statistics = RunningStatistics(layer)
    assert torch.equal(layer(images(5)), reference(images(5)))
    assert not statistics.sums().any()


def test_without_running_statistics_evaluation_takes_those_of_its_input() -> None:
    layer = with_spans(nn.BatchNorm2d(CHANNELS, track_running_stats=False).double(), 8, 2).eval()
    assert RunningStatistics(layer).num_channels == 0
    close(layer(images(5)), F.batch_norm(images(5), None, None, training=True))


def test_without_weight_and_bias_it_only_normalises() -> None:
    layer = with_spans(nn.BatchNorm2d(CHANNELS, affine=False).double(), 8, "global")
    close(layer(images(8)), F.batch_norm(images(8), None, None, training=True))


def test_state_dict_has_torchs_names_and_the_models_own_parameters() -> None:
    original = torch_layer()
    layer = with_spans(original, 8, 2)
    assert list(layer.state_dict()) == list(torch_layer().state_dict())
    assert layer.weight is original.weight
    assert layer.running_var is original.running_var
    layer.load_state_dict(torch_layer().state_dict())


def test_use_spans_replaces_every_batch_norm_once() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), nn.GroupNorm(1, 3), nn.BatchNorm1d(4))
    model[0].eval()
    assert with_spans(model, 8, 2) is model
    assert [isinstance(m, SpanBatchNorm) for m in (model[0][0], model[1], model[2])] == [True, False, True]
    assert (model[0][0].training, model[2].training) == (False, True)
    first = model[0][0]
    with_spans(model, 8, 2)
    assert model[0][0] is first


def test_layers_of_another_epsilon_and_momentum_take_the_recipes_with_one_warning_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = (nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=1e-3), nn.BatchNorm2d(3, eps=1e-3, momentum=None))
    with caplog.at_level(logging.WARNING, "resnet_dist.models.batch_norm"):
        model = with_spans(nn.Sequential(*own), 8, 2)
    assert {(layer.eps, layer.momentum) for layer in model} == {(EPSILON, MOMENTUM)}
    assert caplog.messages == [
        "batch_norm.epsilon 1e-05 replaces that of 2 of 3 batch norms, for example 0.001 of 1",
        "batch_norm.momentum 0.1 replaces that of 1 of 3 batch norms, for example None of 2",
    ]


def test_a_layer_keeps_its_own_epsilon_and_momentum() -> None:
    layer = use_spans(nn.BatchNorm2d(3, eps=1e-3, momentum=0.01), Spans(BatchLayout(8), 0, 2))
    assert (layer.eps, layer.momentum) == (1e-3, 0.01)


def test_a_layer_stays_the_same_object_with_its_class_and_hooks() -> None:
    norm = nn.BatchNorm2d(CHANNELS).double()
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    before = norm(images(8)).detach()
    model = nn.Sequential(nn.Sequential(norm), norm, nn.ReLU(), norm)
    with_spans(model, 8, "global")
    assert model[0][0] is model[1] is model[3] is norm
    assert isinstance(norm, SpanBatchNorm)
    assert isinstance(norm, nn.BatchNorm2d)
    close(norm(images(8)), before)


def test_a_parametrised_layer_is_converted() -> None:
    layer, reference = nn.BatchNorm2d(CHANNELS).double(), nn.BatchNorm2d(CHANNELS).double()
    for norm in (layer, reference):
        nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    with_spans(layer, 8, "global")
    close(layer(images(8)), reference(images(8)))


def test_rows_that_are_no_samples_are_refused() -> None:
    with pytest.raises(RecipeError, match="1 gets 16 rows for 8 samples"):
        with_spans(nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(4)), 8, 2)(torch.zeros(8, 2, 4))


def test_timms_batch_norm_with_an_activation_keeps_it() -> None:
    original = BatchNormAct2d(CHANNELS, act_layer=nn.SiLU).double()
    layer, names = with_spans(copy.deepcopy(original), 8, "global"), list(original.state_dict())
    close(one_step(layer, images(8)), original(images(8)))
    close(layer.running_var, original.running_var)  # type: ignore[arg-type]
    close(layer.eval()(images(5)), original.eval()(images(5)))
    assert list(layer.state_dict()) == names


def test_a_batch_norm_with_a_forward_pass_of_its_own_is_refused() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(RecipeError, match=r"1 is a .*Doubled, a batch norm with its own forward method"):
        with_spans(nn.Sequential(nn.ReLU(), Doubled(3)), 8, 2)


def test_a_batch_norm_without_a_number_of_channels_is_refused() -> None:
    with pytest.raises(RecipeError, match="0 is a LazyBatchNorm2d whose number of channels is not known yet"):
        with_spans(nn.Sequential(nn.LazyBatchNorm2d()), 8, 2)


def test_a_subclass_of_timms_batch_norm_is_converted() -> None:
    class Named(BatchNormAct2d):
        """Inherits torch's forward method."""

    layer, reference = Named(CHANNELS).double(), BatchNormAct2d(CHANNELS).double()
    close(one_step(with_spans(layer, 8, "global"), images(8)), reference(images(8)))


def test_torchs_synchronised_batch_norm_is_replaced_like_any_other() -> None:
    assert isinstance(with_spans(nn.SyncBatchNorm(3), 8, 2), SpanBatchNorm)


def test_a_layer_without_running_statistics_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with_spans(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), 8, 2)
    [message] = caplog.messages
    assert message.startswith(
        "1 of 1 batch norms have no running statistics (track_running_stats=False), for example 0"
    )


@pytest.mark.parametrize("span", [1, 2])
def test_one_value_a_channel_is_refused_in_training(span: int) -> None:
    layer = with_spans(nn.Sequential(nn.BatchNorm2d(3)), 4, span)
    one_value = torch.zeros(4, 3, 1, 1)
    if span == 1:
        with pytest.raises(RecipeError, match=r"at 0, whose input has the shape \[4, 3, 1, 1\]: one value has no"):
            layer(one_value)
    else:
        layer(one_value)
    layer(torch.zeros(4, 3, 1, 2))
    layer.eval()(one_value)


@pytest.mark.parametrize("dims", [0, 2])
def test_what_is_left_of_spans_is_normalised_as_by_torch(dims: int) -> None:
    good = torch.tensor([True, True, True, False, True, False, False, False])  # of spans of 2
    kind = nn.BatchNorm2d if dims else nn.BatchNorm1d
    layer, reference = (kind(CHANNELS, EPSILON, MOMENTUM, dtype=torch.float64) for _ in range(2))
    with_spans(layer, 8, 2)
    assert isinstance(layer, SpanBatchNorm)
    statistics = RunningStatistics(layer)
    layer.spans.leave_out(good.numpy(), torch.device("cpu"))
    batch = images(8)[good][:, :, :1, :1] if dims else images(8)[good].mean((2, 3))
    batch.requires_grad_()

    output = layer(batch)
    (output * torch.arange(1.0, 5)[(...,) + (None,) * (output.dim() - 1)]).sum().backward()
    statistics.update(statistics.sums())

    alone = batch.detach().clone().requires_grad_()
    expected = F.batch_norm(alone[:2], None, None, reference.weight, reference.bias, True)
    (expected * torch.arange(1.0, 3)[(...,) + (None,) * (output.dim() - 1)]).sum().backward()
    close(output[:2], expected)
    assert output[2:].abs().max() == 0  # one value a channel: its own mean
    assert batch.grad is not None
    assert alone.grad is not None
    close(batch.grad[:2], alone.grad[:2])
    assert batch.grad[2:].abs().max() == 0
    close(layer.weight.grad, reference.weight.grad)
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [10.0] * CHANNELS  # with the weights 1 + 2 + 3 + 4
    reference(batch)  # all that is left
    close(layer.running_mean, reference.running_mean)
    close(layer.running_var, reference.running_var)


def test_a_share_of_another_size_is_refused_in_training() -> None:
    layer = with_spans(torch_layer(), 8, 2, num_micro_batches=2)
    with pytest.raises(RecipeError, match="gets 8 rows for 4 samples"):
        layer(images(8))


def test_an_input_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[samples, channels, ...\], got 1 dimensions"):
        with_spans(torch_layer(), 8, 2)(torch.zeros(8))


def test_half_precision_input_is_pooled_in_float32() -> None:
    batch = images(8).bfloat16()
    layer, reference = with_spans(nn.BatchNorm2d(3), 8, "global"), nn.BatchNorm2d(3)
    assert one_step(layer, batch).dtype is torch.bfloat16
    reference(batch.float())
    torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-5, atol=0)
