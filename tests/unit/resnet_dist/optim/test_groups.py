"""Which parameters decay."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.optim import decay_groups, write_learning_rate


def _names(model: nn.Module, decay: bool) -> list[str]:
    return [name for group in decay_groups(model) if group["decay"] is decay for name in group["names"]]


def test_only_convolutions_and_the_last_layers_weight_decay_in_resnet50() -> None:
    model = torchvision.models.resnet50()
    decaying = _names(model, decay=True)
    assert len(decaying) == 54  # 53 convolutions and fc.weight
    assert decaying == [name for name, parameter in model.named_parameters() if parameter.dim() > 1]


def test_the_batch_norm_of_a_shortcut_does_not_decay_though_its_name_lacks_bn() -> None:
    model = torchvision.models.resnet18()
    assert {"layer2.0.downsample.1.weight", "layer2.0.downsample.1.bias"} <= set(_names(model, decay=False))
    assert "layer2.0.downsample.0.weight" in _names(model, decay=True)


def test_a_convolution_that_is_called_bn_decays_all_the_same() -> None:
    model = nn.ModuleDict({"bn": nn.Conv2d(3, 4, 1), "bias": nn.Linear(2, 2)})
    assert _names(model, decay=True) == ["bn.weight", "bias.weight"]
    assert _names(model, decay=False) == ["bn.bias", "bias.bias"]


def test_every_kind_of_normalisation_is_left_out() -> None:
    norms = [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)]
    model = nn.ModuleList([*norms, nn.LayerNorm(4), nn.RMSNorm(4)])
    assert _names(model, decay=True) == []


def test_biases_of_other_layers_are_left_out() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.LSTM(2, 3)])
    excluded = _names(model, decay=False)
    assert {"0.in_proj_bias", "0.bias_k", "0.out_proj.bias", "1.bias_ih_l0", "1.bias_hh_l0"} == set(excluded) - {
        "0.bias_v"
    }
    assert {"0.in_proj_weight", "1.weight_ih_l0"} <= set(_names(model, decay=True))


def test_any_other_parameter_decays() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    assert _names(Scale(), decay=True) == ["factor"]


def test_each_parameter_is_in_one_group_once() -> None:
    model = torchvision.models.resnet18()
    grouped = [id(parameter) for group in decay_groups(model) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


def test_a_shared_parameter_is_grouped_once_under_its_first_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    assert _names(model, decay=True) == ["a.weight"]
    assert _names(model, decay=False) == ["a.bias", "b.bias"]


def test_a_shared_parameter_does_not_decay_if_one_owner_forbids_it() -> None:
    model = nn.ModuleDict({"a": nn.Conv1d(1, 3, 1), "b": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    model["a"].scale = model["norm"].weight
    assert "a.scale" in _names(model, decay=False)
    assert "a.scale" not in _names(model, decay=True)


def test_names_belong_to_their_parameters() -> None:
    model = torchvision.models.resnet18()
    by_name = dict(model.named_parameters())
    for group in decay_groups(model):
        assert all(by_name[name] is parameter for name, parameter in zip(group["names"], group["params"], strict=True))


def test_frozen_parameters_are_not_grouped() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [group["names"] for group in decay_groups(model)] == [["bias"]]


def test_a_plain_torch_optimizer_obeys_the_groups() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = torch.optim.SGD(decay_groups(model), lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


# --- factors of the learning rate


def _factors(model: nn.Module, factors: dict[str, float]) -> dict[str, float]:
    return {name: group["lr_factor"] for group in decay_groups(model, factors) for name in group["names"]}


def test_without_factors_there_are_two_groups_of_factor_1() -> None:
    groups = decay_groups(torchvision.models.resnet18())
    assert [(group["decay"], group["lr_factor"]) for group in groups] == [(True, 1.0), (False, 1.0)]
    assert decay_groups(torchvision.models.resnet18(), {})[0]["names"] == groups[0]["names"]


def test_the_longest_name_that_fits_gives_the_factor() -> None:
    factors = _factors(torchvision.models.resnet18(), {"layer1": 0.1, "layer1.0": 0.5, "layer1.0.conv2.weight": 3.0})
    assert factors["layer1.1.conv1.weight"] == 0.1
    assert factors["layer1.0.conv1.weight"] == factors["layer1.0.bn2.bias"] == 0.5
    assert factors["layer1.0.conv2.weight"] == 3.0
    assert factors["layer2.0.conv1.weight"] == 1.0


def test_names_fit_by_whole_parts() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "a1": nn.Linear(1, 1), "ab": nn.ModuleDict({"a": nn.Linear(1, 1)})})
    factors = _factors(model, {"a": 2.0})
    assert [name for name, factor in factors.items() if factor == 2.0] == ["a.weight", "a.bias"]


def test_groups_are_split_by_decay_and_factor_and_those_that_decay_come_first() -> None:
    groups = decay_groups(torchvision.models.resnet18(), {"fc": 10.0, "layer4": 10.0})
    assert [(group["decay"], group["lr_factor"]) for group in groups] == [
        (True, 1.0),
        (True, 10.0),
        (False, 1.0),
        (False, 10.0),
    ]
    assert "fc.weight" in groups[1]["names"]
    assert ["weight_decay" in group for group in groups] == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("layer5", "the model has no module or parameter layer5. Allowed: names such as .*layer4, fc. Did you mean la"),
        ("layer1.0.conv", "no module or parameter layer1.0.conv.*Did you mean layer1.0.conv1?"),
        ("layer", "no module or parameter layer."),
        ("conv1", "conv1 has no effect: its parameters are not trained"),
        ("layer1.0.conv2", "layer1.0.conv2 has no effect"),
    ],
)
def test_a_name_without_an_effect_is_refused(name: str, problem: str) -> None:
    model = torchvision.models.resnet18()
    model.conv1.weight.requires_grad_(False)
    with pytest.raises(RecipeError, match=problem) as caught:
        decay_groups(model, {name: 2.0, "layer1.0.conv2.weight": 1.0})
    assert caught.value.key == "optimizer.lr_factors"


def test_the_learning_rate_is_written_in_place_where_it_is_a_tensor() -> None:
    rate = torch.zeros(())
    groups = [{"params": [torch.ones(1)], "lr": rate, "lr_factor": 3.0}, {"params": [torch.ones(1)], "lr_factor": 2.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    write_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 1.5
    assert optimizer.param_groups[1]["lr"] == 1.0
