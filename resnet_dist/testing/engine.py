"""The conformance suite for engines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from resnet_dist.engines.protocol import Engine, MicroBatch, in_two_parts
from resnet_dist.models.loss import cross_entropy_sum

# function(module, optimizer, loss_sum, batch_size=..., num_micro_batches=...) -> Engine, as for `engine.name`
MakeEngine = Callable[..., Engine]

_BATCH, _CLASSES, _STEPS = 6, 5, 4
_FACTORS = (1.0, 0.5, 2.0, 4.0)  # of the learning rate, by parameter
_RATES = (0.1, 0.05, 0.2, 0.1)  # by step; they differ, so that an engine with its own LR fails
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def check_engine(make: MakeEngine, dtype: torch.dtype = torch.float64) -> None:
    """Check an engine in this process (one worker, with or without a process group) against SGD with momentum.

    Requirements: the gradient of a step is the sum over its samples / B for any number of micro-batches; the step uses
    the given learning rate, times the `lr_factor` of a group; losses and counts are sums; a wrong number of
    micro-batches raises ValueError; a micro-batch is computed before the next one is requested; the optimizer state is
    saved and loaded by parameter name, also by another engine; `module` is the model itself; `gradients`, if there is
    such a method, changes no weight and no state. Raises AssertionError.
    """
    expected = _reference(dtype)
    for num_micro_batches in (1, 2, 3):
        engine = _engine(make, _model(dtype), num_micro_batches)
        for step, (model, losses) in enumerate(expected):
            _check_step(engine, step, num_micro_batches, model, losses, dtype)
    _check_factors(make, dtype)
    _check_refusals(make, dtype)
    _check_order(make, dtype)
    _check_state(make, expected, dtype)
    _check_parts(make, expected, dtype)


# --- the reference


def _model(dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, _CLASSES)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return model


def _batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(_BATCH, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(_CLASSES, (_BATCH,), generator=generator)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=0.01)


def _reference(dtype: torch.dtype) -> list[tuple[nn.Module, Tensor]]:
    """The model after each step, and each step's sum of losses."""
    model = _model(dtype)
    optimizer = _optimizer(model)
    states = []
    for step, rate in enumerate(_RATES):
        images, labels = _batch(step, dtype)
        loss = nn.functional.cross_entropy(model(images), labels, reduction="sum")
        optimizer.zero_grad()
        (loss / _BATCH).backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        states.append((copy.deepcopy(model), loss.detach().double()))
    return states


def _engine(make: MakeEngine, model: nn.Module, num_micro_batches: int) -> Engine:
    return make(model, _optimizer(model), cross_entropy_sum, batch_size=_BATCH, num_micro_batches=num_micro_batches)


def _micro_batches(step: int, num: int, dtype: torch.dtype) -> Iterator[MicroBatch]:
    images, labels = _batch(step, dtype)
    return (MicroBatch(*part) for part in zip(images.chunk(num), labels.chunk(num), strict=True))


# --- the checks


def _check_step(
    engine: Engine, step: int, num_micro_batches: int, expected: nn.Module, loss: Tensor, dtype: torch.dtype
) -> None:
    where = f"step {step + 1} with num_micro_batches {num_micro_batches}"
    sums = engine.step(_micro_batches(step, num_micro_batches, dtype), _RATES[step])
    for name in ("loss", "num_correct", "gradient_squared"):
        value = getattr(sums, name)
        assert value.dtype is torch.float64, f"{where}: {name} must be float64, is {value.dtype}"
        assert value.dim() == 0, f"{where}: {name} must be 0-d"
    _assert_close(sums.loss, loss, dtype, f"{where}: the loss, a sum over samples")
    assert sums.gradient_squared > 0, f"{where}: the squared norm of the gradient"
    own = dict(engine.module.named_parameters())
    for name, parameter in expected.named_parameters():
        assert name in own, f"the module has no parameter {name}: it must be the model itself"
        _assert_close(own[name], parameter, dtype, f"{where}: {name} after the update")


def _check_factors(make: MakeEngine, dtype: torch.dtype) -> None:
    model = _model(dtype)
    pairs = zip(model.parameters(), _FACTORS, strict=True)
    groups = [{"params": [parameter], "lr_factor": factor} for parameter, factor in pairs]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    engine = make(model, optimizer, cross_entropy_sum, batch_size=_BATCH, num_micro_batches=1)
    engine.step(_micro_batches(0, 1, dtype), 0.25)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    wanted = [0.25 * factor for factor in _FACTORS]
    advice = "call resnet_dist.optim.write_learning_rate(optimizer, learning_rate) in each step"
    assert rates == wanted, f"the learning rates of the groups are {rates}, not lr * lr_factor, {wanted}: {advice}"


def _check_refusals(make: MakeEngine, dtype: torch.dtype) -> None:
    for given in (1, 3):
        engine = _engine(make, _model(dtype), 2)
        try:
            engine.step(_micro_batches(0, given, dtype), 0.1)
        except ValueError:
            continue
        raise AssertionError(f"num_micro_batches 2: a step with {given} must raise ValueError")


class _Scale(nn.Module):
    """Multiplies by a number that changes with each micro-batch, as the masks of dropout do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.factor = torch.ones((), dtype=dtype)  # no buffer: an engine may broadcast buffers

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _check_order(make: MakeEngine, dtype: torch.dtype) -> None:
    num, scale, model = 3, _Scale(dtype), _model(dtype)
    expected = torch.zeros((), dtype=torch.float64)
    for number, batch in enumerate(_micro_batches(0, num, dtype)):
        expected += cross_entropy_sum(model(batch.images) * number, batch.labels).detach()

    def requested() -> Iterator[MicroBatch]:
        for number, batch in enumerate(_micro_batches(0, num, dtype)):
            scale.factor.fill_(number)
            yield batch

    sums = _engine(make, nn.Sequential(model, scale), num).step(requested(), 0.1)
    what = "the loss of micro-batches, each of which must be computed before the next is requested"
    _assert_close(sums.loss, expected, dtype, what)


def _check_parts(make: MakeEngine, expected: list[tuple[nn.Module, Tensor]], dtype: torch.dtype) -> None:
    """Make a step in two parts, if the engine can."""
    engine = _engine(make, _model(dtype), 1)
    parts = in_two_parts(engine)
    if parts is None:
        return
    engine.step(_micro_batches(0, 1, dtype), _RATES[0])

    def state() -> dict[str, Tensor]:
        states = [
            (f"{name}/{key}", value) for name, own in engine.optimizer_state().items() for key, value in own.items()
        ]
        return {name: tensor.clone() for name, tensor in [*engine.module.state_dict().items(), *states]}

    before = state()
    sums = parts.gradients(_micro_batches(1, 1, dtype))
    changed = [name for name, tensor in state().items() if name not in before or not torch.equal(tensor, before[name])]
    assert not changed, f"`gradients` must change nothing, and has changed {', '.join(changed)}"
    parts.update(sums, _RATES[1])
    for name, parameter in expected[1][0].named_parameters():
        own = engine.module.get_parameter(name)
        _assert_close(own, parameter, dtype, f"{name} after `gradients` and `update`")


def _check_state(make: MakeEngine, expected: list[tuple[nn.Module, Tensor]], dtype: torch.dtype) -> None:
    """Run half of the steps in one engine, the rest in another one with its state."""
    first = _engine(make, _model(dtype), 1)
    half = len(expected) // 2
    for step in range(half):
        first.step(_micro_batches(step, 1, dtype), _RATES[step])
    state = {name: {key: value.clone() for key, value in own.items()} for name, own in first.optimizer_state().items()}
    parameters = dict(first.module.named_parameters())
    assert set(state) == set(parameters), f"state of {sorted(state)}, parameters {sorted(parameters)}"
    for name, own in state.items():
        for key, value in own.items():
            assert value.dim() == 0 or value.shape == parameters[name].shape, f"{key} of {name} has another shape"
    model = _model(dtype)
    model.load_state_dict(first.module.state_dict())
    second = _engine(make, model, 1)
    second.load_optimizer_state(state)
    for step in range(half, len(expected)):
        _check_step(second, step, 1, *expected[step], dtype)


def _assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    tolerance = _TOLERANCE[dtype]
    difference = (found.detach().double() - expected.detach().double()).abs().max().item()
    scale = max(expected.detach().abs().max().item(), 1e-3)
    assert difference <= tolerance * scale, f"{what}: off by {difference:.1e}, at most {tolerance * scale:.1e} allowed"
