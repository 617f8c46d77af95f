"""An optimizer step on ResNet-50's parameters: ours against torch's SGD and timm's LARS and LAMB.

    python -m benchmarks.optimizers

writes benchmarks/results/optimizers.json and prints a table. Float32, on one thread by default: a worker's share of a
CPU. On a CPU `Lars` is built as the trainer builds it there, with torch's fused kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm.optim
import torch
import torchvision
from torch import nn

from benchmarks.measure import Row, Run, interleave, ratio, table_of, time_row, write
from resnet_dist.optim import build_optimizer, decay_groups, write_learning_rate
from resnet_dist.recipe.schema import OptimizerRecipe

WEIGHT_DECAY = 1e-4
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
LARS_AND_SGD, LARS_AND_TIMM = 1.6, 0.5  # goals: largest ratios of the times


def _ours(**keys: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    recipe = OptimizerRecipe(weight_decay=WEIGHT_DECAY, **keys)
    return lambda model: build_optimizer(recipe, model, "fused")


def _timms(name: str, **keys: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    make: Callable[..., torch.optim.Optimizer] = getattr(timm.optim, name)
    return lambda model: make(decay_groups(model), lr=0.0, weight_decay=WEIGHT_DECAY, foreach=True, **keys)


def _torchs_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(model), lr=0.0, momentum=0.9, weight_decay=WEIGHT_DECAY, foreach=True)


PEERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch's SGD (foreach)": _torchs_sgd,
    "LARS": _ours(name="lars"),
    "LARS, Nesterov": _ours(name="lars", nesterov=True),
    "timm's Lars": _timms("Lars", momentum=0.9),
    "LAMB": _ours(name="lamb"),
    "timm's Lamb": _timms("Lamb", max_grad_norm=None),
    "AdamW": _ours(name="adamw"),
    "SGD (as trained)": _ours(name="sgd"),
}

# ours, peer, goal
COMPARED = (
    ("LARS", "torch's SGD (foreach)", LARS_AND_SGD),
    ("LARS", "timm's Lars", LARS_AND_TIMM),
    ("LARS, Nesterov", "torch's SGD (foreach)", None),
    ("LARS, Nesterov", "timm's Lars", None),
    ("LAMB", "torch's SGD (foreach)", None),
    ("LAMB", "timm's Lamb", None),
    ("AdamW", "torch's SGD (foreach)", None),
    ("SGD (as trained)", "torch's SGD (foreach)", None),
)


def measure(layout: torch.memory_format, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each peer, one number per round; each has its own model."""
    return interleave({name: _run(make, layout) for name, make in PEERS.items()}, rounds=rounds, steps=steps)


def _run(make: Callable[[nn.Module], torch.optim.Optimizer], layout: torch.memory_format) -> Run:
    torch.manual_seed(0)
    model = torchvision.models.resnet50().to(memory_format=layout)
    optimizer = make(model)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)

    def run(steps: int) -> None:
        for _ in range(steps):
            write_learning_rate(optimizer, 1e-3)
            optimizer.step()

    return run


def rows(times: dict[str, list[float]], layout: str) -> list[Row]:
    """The comparisons."""
    timms = ratio(times["timm's Lars"], times["torch's SGD (foreach)"]).median
    cause = f"timm's Lars takes {timms:.2f} times as long as SGD; ours reads weights and gradients twice, for the norms"
    return [
        time_row(f"{ours}, {layout}", peer, times[ours], times[peer], goal, cause=cause)
        for ours, peer, goal in COMPARED
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="An optimizer step on ResNet-50's parameters.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="per turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = {"rounds": given.rounds, "steps": given.steps, "threads": given.threads, "times_s": {}}
    every = []
    for name, layout in LAYOUTS.items():
        times = measure(layout, given.rounds, given.steps)
        found["times_s"][name] = times
        every += [row.record() for row in rows(times, name)]
    found["rows"] = every
    print(table_of(every))
    if not given.no_write:
        print(write("optimizers", found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
