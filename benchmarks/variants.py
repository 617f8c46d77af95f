"""The peers that are timed on a GPU, by name; created when needed, and skipped if memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.measure import Run, interleave
from benchmarks.peers import MinimalLoop, OurTrainer, Setting, TimmLoop, TorchvisionLoop, synthetic, why_not_timm
from resnet_dist.data.loader import HostBatch
from resnet_dist.recipe.schema import Recipe, SpeedRecipe
from resnet_dist.telemetry.memory import is_out_of_memory
from resnet_dist.training.device import set_up_torch

Make = Callable[[], Run]
GRAPH_UP_TO = 128  # images: for more, kernels hide the launches, and a graph doubles the memory of a step


@dataclass(frozen=True)
class Timed:
    """The result of peers that were timed together.

    times_s     seconds per step by peer, one number per round
    memory_mb   peak memory of each peer during its warm-up, on a GPU
    absent      peers that were not timed, and why
    """

    times_s: dict[str, list[float]]
    memory_mb: dict[str, float]
    absent: dict[str, str]


def peers_of(setting: Setting, *, compiled: bool) -> tuple[dict[str, Make], dict[str, str]]:
    """Our variants and the peers for one precision and batch, and the absent ones with the reason."""
    batches = synthetic(setting)
    fast = replace(setting, compile=True)

    def ours(**speed: Any) -> Make:
        return lambda: our_trainer(setting, SpeedRecipe(**speed), batches)

    def other(setting: Setting, peer: Callable[[Setting, list[HostBatch]], Run]) -> Run:
        return flagged(setting.recipe(), setting.device, peer(setting, batches))

    makers: dict[str, Make] = {
        "ours": ours(),
        "minimal": lambda: other(setting, MinimalLoop),
        "torchvision": lambda: other(setting, TorchvisionLoop),
    }
    absent: dict[str, str] = {}
    if compiled:
        makers["ours, compiled"] = ours(compile=True)
        makers["minimal, compiled"] = lambda: other(fast, MinimalLoop)
    if setting.device.type != "cuda":
        absent["ours, CUDA graph"] = "no GPU"
    elif setting.precision == "float16":
        absent["ours, CUDA graph"] = "float16 has a loss scaler, which synchronises with the host at every step"
    elif setting.batch > GRAPH_UP_TO:
        absent["ours, CUDA graph"] = f"only up to {GRAPH_UP_TO} images"
    else:
        makers["ours, CUDA graph"] = ours(cuda_graph=True)
    reason = why_not_timm()
    if reason is not None:
        absent["timm"] = reason
    else:
        makers["timm"] = lambda: other(setting, TimmLoop)
        if compiled:
            makers["timm, compiled"] = lambda: other(fast, TimmLoop)
    return makers, absent


def our_trainer(setting: Setting, speed: SpeedRecipe, batches: list[HostBatch]) -> Run:
    """Our trainer with these speed keys."""
    recipe = setting.recipe(speed=speed)
    return flagged(recipe, setting.device, OurTrainer(recipe, setting.device, batches))


def flagged(recipe: Recipe, device: torch.device, run: Run) -> Run:
    """`run`, with the process-wide flags of torch that `recipe` requires set before each turn.

    All projects that are compared let cuDNN benchmark its algorithms, as our default does.
    """

    def turn(steps: int) -> None:
        set_up_torch(recipe, device, torch.get_num_threads())
        run(steps)

    return turn


def timed(makers: Mapping[str, Make], device: torch.device, *, rounds: int, steps: int, warm_up_steps: int) -> Timed:
    """Create every peer, warm it up, and time all that fit into memory in turns."""
    wait = waiting_for(device)
    peers: dict[str, Run] = {}
    absent: dict[str, str] = {}
    memory_mb: dict[str, float] = {}
    for name, make in makers.items():
        try:
            before = _reset_memory(device)
            peer = make()
            peer(warm_up_steps)
            wait()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            absent[name] = "out of memory"
            gc.collect()
            continue
        peers[name] = peer
        if device.type == "cuda":
            memory_mb[name] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
            torch.cuda.empty_cache()
    times_s = interleave(peers, rounds=rounds, steps=steps, warm_up=1, wait=wait) if peers else {}
    peers.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    torch.compiler.reset()
    return Timed(times_s, memory_mb, absent)


def waiting_for(device: torch.device) -> Callable[[], object]:
    """A function that waits for the device."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _reset_memory(device: torch.device) -> int:
    """Start to record the peak of allocated memory; returns the bytes that are allocated now."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
