from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.engines.state import load_state_by_name, state_by_name

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2)).double()
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=generator)).square().sum().backward()
    optimizer.step()


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def plain_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


@pytest.mark.parametrize("make", [sgd, plain_sgd, adam])
def test_a_loaded_state_goes_on_with_the_same_bits(make: MakeOptimizer) -> None:
    net = model()
    optimizer = make(net.parameters())
    step(net, optimizer, 1)
    resumed = model()
    resumed.load_state_dict(net.state_dict())
    resumed_optimizer = make(resumed.parameters())
    load_state_by_name(resumed, resumed_optimizer, state_by_name(net, optimizer))

    step(net, optimizer, 2)
    step(resumed, resumed_optimizer, 2)

    for name, value in net.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_states_are_named_after_parameters() -> None:
    net = model()
    optimizer = sgd(net.parameters())
    step(net, optimizer, 1)
    state = state_by_name(net, optimizer)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert {name: entries["momentum_buffer"].shape for name, entries in state.items()} == {
        name: parameter.shape for name, parameter in net.named_parameters()
    }


def test_the_order_of_the_optimizers_groups_does_not_matter() -> None:
    net = model()
    backwards = sgd(reversed(list(net.parameters())))
    step(net, backwards, 1)
    other = model()
    forwards = sgd(other.parameters())
    load_state_by_name(other, forwards, state_by_name(net, backwards))
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(forwards.state[ours]["momentum_buffer"], backwards.state[theirs]["momentum_buffer"])


def test_a_parameter_without_state_is_left_out() -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = sgd(net.parameters())
    assert state_by_name(net, optimizer) == {}
    step(net, optimizer, 1)
    assert list(state_by_name(net, optimizer)) == ["2.weight", "2.bias"]


def test_a_loaded_state_is_a_copy_in_the_parameters_memory_layout() -> None:
    net = model()
    optimizer = sgd(net.parameters())
    given = torch.arange(48, dtype=torch.float64).view(4, 3, 2, 2)
    load_state_by_name(net, optimizer, {"0.weight": {"momentum_buffer": given}})
    loaded = optimizer.state[net[0].weight]["momentum_buffer"]
    assert loaded.stride() == net[0].weight.stride() != given.stride()
    assert not loaded.requires_grad
    loaded.zero_()
    assert given[3, 2, 1, 1] == 47


def test_a_python_number_becomes_a_tensor() -> None:
    net = model()
    optimizer = sgd(net.parameters())
    optimizer.state[net[0].bias] = {"count": 3}
    assert torch.equal(state_by_name(net, optimizer)["0.bias"]["count"], torch.tensor(3))


def test_states_go_to_the_parameters_device_but_step_counts_stay_on_the_cpu() -> None:
    net = nn.Module()
    net.scale = nn.Parameter(torch.zeros((), device="meta"))
    optimizer = adam(net.parameters())
    load_state_by_name(net, optimizer, {"scale": {"exp_avg": torch.ones(()), "step": torch.ones(())}})
    devices = {key: value.device.type for key, value in optimizer.state[net.scale].items()}
    assert devices == {"exp_avg": "meta", "step": "cpu"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.wieght", torch.zeros(4), "optimizer state of 0.wieght, which is not a parameter of the model"),
        ("0.bias", torch.zeros(5), r"momentum_buffer of 0.bias has shape \(5,\), but the parameter has \(4,\)"),
    ],
)
def test_a_state_of_another_model_is_refused(name: str, value: Tensor, message: str) -> None:
    net = model()
    with pytest.raises(ValueError, match=message):
        load_state_by_name(net, sgd(net.parameters()), {name: {"momentum_buffer": value}})


@pytest.mark.parametrize("setting", ["capturable", "fused"])
def test_counts_are_on_the_device_of_their_parameter_where_the_optimizer_has_them_there(setting: str) -> None:
    module = nn.Linear(2, 1, bias=False, device="meta")
    state = {"weight": {"step": torch.tensor(3.0), "exp_avg": torch.zeros(1, 2)}}
    for wanted in (True, False):
        optimizer = torch.optim.SGD([{"params": [module.weight], setting: wanted}], lr=0.1)
        load_state_by_name(module, optimizer, state)
        assert optimizer.state[module.weight]["step"].is_meta is wanted
        assert optimizer.state[module.weight]["exp_avg"].is_meta
