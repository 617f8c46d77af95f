"""What a model must do for the promises of docs/reproducibility.md to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.engines.missing_gradients import unreached
from resnet_dist.models.batch_norm import SpanBatchNorm
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.recipe.references import is_reference
from resnet_dist.testing.trial import Result, Trainee, Trial, batch, run

# Relative differences in float64: of the first step's loss, and of all losses, weights and buffers. Small spans and
# small images amplify rounding: 1.4e-9 was seen after two steps of timm's resnet10t on 8 pixels with spans of 3.
FIRST_STEP, ALL_STEPS = 1e-12, 1e-7
_ITS_BITS = 0.0


def check_model(
    model: str | Callable[..., nn.Module],
    *,
    arguments: Mapping[str, Any] | None = None,
    num_classes: int = 10,
    resolution: int = 32,
    batch_size: int = 10,
    num_steps: int = 4,
    draws_random_numbers: bool = False,
) -> None:
    """Check that `model(num_classes=..., **arguments)`, as the key `model` calls it, keeps its loss curve.

    The model is trained in float64 on random images [batch_size, 3, resolution, resolution] for `num_steps`: twice,
    with an evaluation after every step, resumed in the middle, in 2 micro-batches, and on 2 workers (processes that
    are started here), with batch norm over half of the batch. `model` is a function at the top of a module, or its
    name `package.module:function`.

    The random numbers of a model of its own (`nn.Dropout`) are the same at every run on as many workers, and others on
    another number of workers or micro-batches: say `draws_random_numbers` where that is meant.

    Raises AssertionError with a line for each promise that does not hold, and a line for each cause that was found;
    ValueError for a function that another process could not import, and for sizes that are too small.
    """
    if num_steps < 2 or batch_size < 4 or batch_size % 2:
        found = f"num_steps {num_steps}, batch_size {batch_size}"
        raise ValueError(f"{found}: give 2 steps or more, and an even batch of 4 or more")
    trial = Trial(
        _reference(model), dict(arguments or {}), num_classes, resolution, batch_size, batch_size // 2, num_steps
    )
    lines = list(_broken_promises(trial, same_everywhere=not draws_random_numbers))
    try:
        causes = list(_causes(trial, draws_random_numbers))
    except Exception as error:
        if not lines:
            raise
        lines.append(f"no cause was looked for: the model raises {type(error).__name__} in its first forward pass")
        causes = []
    if lines or causes:
        raise AssertionError("\n".join([f"{trial.model} does not conform:", *(f"- {line}" for line in lines + causes)]))


def _reference(model: str | Callable[..., nn.Module]) -> str:
    if isinstance(model, str):
        name = model
    else:
        name = f"{getattr(model, '__module__', '')}:{getattr(model, '__qualname__', '')}"
    if not is_reference(name) or name.startswith("__main__:"):
        raise ValueError(f"{name}: workers cannot import it; give a function at the top of a module that is imported")
    return name


# --- the promises


@dataclass(frozen=True)
class _Promise:
    """`trial` is to end as `like` does, up to a relative difference."""

    name: str
    trial: Trial
    like: Trial
    tolerance: float


def _promises(trial: Trial, same_everywhere: bool) -> list[_Promise]:
    half = trial.num_steps // 2
    two = replace(trial, workers=2)
    promises = [
        _Promise("a second run", replace(trial), trial, _ITS_BITS),
        _Promise("a run with an evaluation after every step", replace(trial, evaluates=True), trial, _ITS_BITS),
        _Promise(f"a run resumed after step {half}", replace(trial, resumes_after=half), trial, _ITS_BITS),
    ]
    if not same_everywhere:
        resumed = replace(two, resumes_after=half)
        return [*promises, _Promise(f"a run on 2 workers resumed after step {half}", resumed, two, _ITS_BITS)]
    return [
        *promises,
        _Promise("a run with 2 micro-batches", replace(trial, num_micro_batches=2), trial, ALL_STEPS),
        _Promise("a run on 2 workers", two, trial, ALL_STEPS),
        _Promise("a run on 2 workers with 2 micro-batches", replace(two, num_micro_batches=2), trial, ALL_STEPS),
    ]


def _broken_promises(trial: Trial, *, same_everywhere: bool) -> Iterator[str]:
    promises = _promises(trial, same_everywhere)
    references = list({promise.like.workers: promise.like for promise in promises}.values())
    results = run([*references, *(promise.trial for promise in promises)])
    expected = dict(zip([like.workers for like in references], results, strict=False))
    for promise, found in zip(promises, results[len(references) :], strict=True):
        like = expected[promise.like.workers]
        if isinstance(found, str) or isinstance(like, str):
            yield f"{promise.name} fails: {found if isinstance(found, str) else like}"
            continue
        yield from (f"{promise.name} {line}" for line in _differences(like[0], found[0], promise.tolerance))
        yield from (f"{promise.name} {line}" for line in _workers_apart(found))


def _differences(expected: Result, found: Result, tolerance: float) -> Iterator[str]:
    """In what a run differs from what it is to be equal to, one line."""
    for step, (own, other) in enumerate(zip(expected.losses, found.losses, strict=True), start=1):
        allowed = min(tolerance, FIRST_STEP) if step == 1 else tolerance
        if not abs(own - other) <= allowed * abs(own):
            yield f"has another loss in step {step}: {other!r}, not {own!r}"
            return
    for name, tensor in expected.state.items():
        gap = _gap(tensor, found.state[name])
        if not gap <= tolerance:
            yield f"has the same losses, but ends with another {name} (by {gap:.1e})"
            return
    gap = abs(found.evaluation - expected.evaluation)
    if not gap <= tolerance * abs(expected.evaluation):
        yield f"has the same losses, but another evaluation: {found.evaluation!r}, not {expected.evaluation!r}"


def _workers_apart(results: list[Result]) -> Iterator[str]:
    for rank, result in enumerate(results):
        for name, tensor in result.state.items():
            if not torch.equal(tensor, results[0].state[name]):
                yield f"leaves worker {rank} with another {name} than worker 0"
                return


def _gap(expected: Tensor, found: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    scale = max(expected.abs().max().item(), 1e-6)
    return float((expected.double() - found.double()).abs().max().item() / scale)


# --- the causes


def _causes(trial: Trial, draws_random_numbers: bool) -> Iterator[str]:
    """What in the model breaks promises, by calling each of its modules once more."""
    model = Trainee(replace(trial, span=None), rank=0).model
    calls = _first_calls(model, batch(trial, 0, range(trial.batch_size)).images)
    mixing, drawing, unseeded = [], [], []
    for name, (module, images, state) in calls.items():
        same, other = _again(module, images, state), _again(module, images, None)
        if not torch.equal(same, _again(module, images, state)):
            unseeded.append(name)
        elif not torch.equal(same, other):
            drawing.append(name)
        elif len(images) == trial.batch_size and not _by_sample(module, images, same):
            mixing.append(name)
    for name in _innermost(unseeded):
        yield f"{name} draws random numbers that torch's generators do not give: no two runs are the same"
    for name in [] if draws_random_numbers else _innermost(drawing):
        yield (
            f"{name} draws random numbers: they are others on another number of workers or micro-batches"
            " (draws_random_numbers=True if that is meant)"
        )
    for name in _innermost(mixing):
        yield f"{name} mixes samples: what it gives for a sample depends on which others its worker has"
    labels = batch(trial, 0, range(trial.batch_size)).labels
    model = Trainee(replace(trial, span=None), rank=0).model
    loss = cross_entropy_sum(model(batch(trial, 0, range(trial.batch_size)).images), labels)
    for name in unreached(model, loss):
        yield f"{name} has no part in the loss: its gradient is 0, and weight decay still moves it"


def _first_calls(model: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Of each module that takes and gives one tensor with the samples in its first dimension: its first input in a
    training forward pass, and the generator's state before. Batch norm takes its running statistics in it."""
    for module in model.modules():
        if isinstance(module, SpanBatchNorm):
            module.eval()
    calls: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def record(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, inputs: Any) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() > 1:
                calls.setdefault(name, (module, inputs[0].detach().clone(), torch.get_rng_state()))

        hooks.append(module.register_forward_pre_hook(before))

    hooks: list[Any] = []
    for name, module in model.named_modules():
        record(name or "the model", module)
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return calls


@torch.no_grad()
def _again(module: nn.Module, images: Tensor, state: Tensor | None) -> Tensor:
    """The module's output, with torch's generator in `state`, or in another one; its buffers are left as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        if state is None:
            torch.default_generator.manual_seed(0)
        else:
            torch.set_rng_state(state)
        output = module(images.clone())
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return output if isinstance(output, Tensor) else torch.zeros(0)


def _by_sample(module: nn.Module, images: Tensor, whole: Tensor) -> bool:
    """Whether half of the samples give half of the output."""
    half = len(images) // 2
    with torch.no_grad():
        first = module(images[:half].clone())
    return len(whole) != len(images) or _gap(whole[:half], first) <= ALL_STEPS


def _innermost(names: list[str]) -> list[str]:
    """Without the modules that contain another of them."""
    return [n for n in names if not any(o != n and (n == "the model" or o.startswith(f"{n}.")) for o in names)]
