"""The conformance suite for models: the guarantees of docs/reproducibility.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from resnet_dist.engines.missing_gradients import MissingGradients
from resnet_dist.models.batch_norm import SpanBatchNorm
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.recipe.references import is_reference
from resnet_dist.testing.trial import Result, Trainee, Trial, batch, run

# Largest relative differences in float64 of the first step's loss, and of all losses, weights and buffers. Small spans
# and images amplify rounding: timm's resnet10t on 8 pixels with spans of 3 has 1.4e-9 after two steps.
FIRST_STEP, ALL_STEPS = 1e-12, 1e-7
_SAME_BITS = 0.0


def check_model(
    model: str | Callable[..., nn.Module],
    *,
    arguments: Mapping[str, object] | None = None,
    num_classes: int = 10,
    resolution: int = 32,
    batch_size: int = 10,
    num_steps: int = 4,
    draws_random_numbers: bool = False,
) -> None:
    """Check that the loss curve of `model(num_classes=..., **arguments)` is reproducible.

    The model is trained in float64 on random images [batch_size, 3, resolution, resolution] for `num_steps`: twice,
    with an evaluation after every step, resumed in the middle, in 2 micro-batches, and on 2 workers (processes that
    this function starts), with batch norm over half of the batch. `model` is a function at the top level of a module,
    or its name `package.module:function`.

    The model's random numbers (`nn.Dropout`) are the same in all runs on the same number of workers, but depend on the
    number of workers and micro-batches. Set `draws_random_numbers` to allow that.

    Raises AssertionError with a line for each failed check and for each cause that was found; ValueError for a function
    that other processes cannot import, and for sizes that are too small.
    """
    if num_steps < 2 or batch_size < 4 or batch_size % 2:
        found = f"num_steps {num_steps}, batch_size {batch_size}"
        raise ValueError(f"{found}. Allowed: at least 2 steps, and an even batch of at least 4")
    trial = Trial(
        _reference(model), dict(arguments or {}), num_classes, resolution, batch_size, batch_size // 2, num_steps
    )
    lines = list(_broken_checks(trial, same_everywhere=not draws_random_numbers))
    try:
        causes = list(_causes(trial, draws_random_numbers))
    except Exception as error:
        if not lines:
            raise
        lines.append(f"causes unknown: the model raises {type(error).__name__} in its first forward pass")
        causes = []
    if lines or causes:
        raise AssertionError("\n".join([f"{trial.model} does not conform:", *(f"- {line}" for line in lines + causes)]))


def _reference(model: str | Callable[..., nn.Module]) -> str:
    if isinstance(model, str):
        name = model
    else:
        name = f"{getattr(model, '__module__', '')}:{getattr(model, '__qualname__', '')}"
    if not is_reference(name) or name.startswith("__main__:"):
        raise ValueError(
            f"{name}: workers cannot import it. Allowed: a function at the top level of an importable module"
        )
    return name


# --- the checks


@dataclass(frozen=True)
class _Check:
    """`trial` must end as `like` does, up to a relative difference."""

    name: str
    trial: Trial
    like: Trial
    tolerance: float


def _checks(trial: Trial, same_everywhere: bool) -> list[_Check]:
    half = trial.num_steps // 2
    two = replace(trial, workers=2)
    checks = [
        _Check("a second run", replace(trial), trial, _SAME_BITS),
        _Check("a run with an evaluation after every step", replace(trial, evaluates=True), trial, _SAME_BITS),
        _Check(f"a run resumed after step {half}", replace(trial, resumes_after=half), trial, _SAME_BITS),
    ]
    if not same_everywhere:
        resumed = replace(two, resumes_after=half)
        return [*checks, _Check(f"a run on 2 workers resumed after step {half}", resumed, two, _SAME_BITS)]
    return [
        *checks,
        _Check("a run with 2 micro-batches", replace(trial, num_micro_batches=2), trial, ALL_STEPS),
        _Check("a run on 2 workers", two, trial, ALL_STEPS),
        _Check("a run on 2 workers with 2 micro-batches", replace(two, num_micro_batches=2), trial, ALL_STEPS),
    ]


def _broken_checks(trial: Trial, *, same_everywhere: bool) -> Iterator[str]:
    checks = _checks(trial, same_everywhere)
    references = list({check.like.workers: check.like for check in checks}.values())
    results = run([*references, *(check.trial for check in checks)])
    expected = dict(zip([like.workers for like in references], results, strict=False))
    for check, found in zip(checks, results[len(references) :], strict=True):
        like = expected[check.like.workers]
        if isinstance(found, str) or isinstance(like, str):
            yield f"{check.name} fails: {found if isinstance(found, str) else like}"
            continue
        yield from (f"{check.name} {line}" for line in _differences(like[0], found[0], check.tolerance))
        yield from (f"{check.name} {line}" for line in _workers_apart(found))


def _differences(expected: Result, found: Result, tolerance: float) -> Iterator[str]:
    """The first difference between two runs that should be equal, as a line."""
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
    """Causes of failed checks, found by calling each module of the model again."""
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
        yield f"{name} draws random numbers from other generators than torch's: no two runs are the same"
    for name in [] if draws_random_numbers else _innermost(drawing):
        yield (
            f"{name} draws random numbers, which depend on the number of workers and micro-batches"
            " (draws_random_numbers=True allows that)"
        )
    for name in _innermost(mixing):
        yield f"{name} mixes samples: its output for a sample depends on the other samples of its worker"
    labels = batch(trial, 0, range(trial.batch_size)).labels
    model = Trainee(replace(trial, span=None), rank=0).model
    loss = cross_entropy_sum(model(batch(trial, 0, range(trial.batch_size)).images), labels)
    for name in MissingGradients(model).unreached(loss) or []:
        yield f"{name} does not affect the loss: its gradient is 0, and weight decay still changes it"


def _first_calls(model: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Each module with one input tensor of the form [samples, ...], by name: its first input and the generator's state.

    Both are taken from a training forward pass in which batch norm uses its running statistics.
    """
    for module in model.modules():
        if isinstance(module, SpanBatchNorm):
            module.eval()
    calls: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def record(name: str, module: nn.Module) -> None:
        def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() > 1:
                calls.setdefault(name, (module, inputs[0].detach().clone(), torch.get_rng_state()))

        hooks.append(module.register_forward_pre_hook(before))

    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        record(name or "the model", module)
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return calls


@torch.no_grad()
def _again(module: nn.Module, images: Tensor, state: Tensor | None) -> Tensor:
    """The module's output with torch's generator in `state` (None: in another state). Restores the buffers."""
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
    """Whether the first half of the samples gives the first half of the output."""
    half = len(images) // 2
    with torch.no_grad():
        first = module(images[:half].clone())
    return len(whole) != len(images) or _gap(whole[:half], first) <= ALL_STEPS


def _innermost(names: list[str]) -> list[str]:
    """`names` without modules that contain another one of them."""
    return [n for n in names if not any(o != n and (n == "the model" or o.startswith(f"{n}.")) for o in names)]
