"""The peers that are timed on a GPU, by name; created when needed, and skipped if memory does not suffice."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import FAILED, Run, interleave
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


def peers_of(setting: Setting, *, compiled: bool = False) -> tuple[dict[str, Make], dict[str, str]]:
    """Our trainer and the peers for one precision and batch, and the absent ones with the reason."""
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
    reason = why_not_timm()
    if reason is not None:
        absent["timm"] = reason
    else:
        makers["timm"] = lambda: other(setting, TimmLoop)
        if compiled:
            makers["timm, compiled"] = lambda: other(fast, TimmLoop)
    return makers, absent


def why_no_graph(setting: Setting) -> str | None:
    """Why a step cannot be a CUDA graph; None if it can."""
    if setting.device.type != "cuda":
        return "no GPU"
    if setting.precision == "float16":
        return "float16 has a loss scaler, which synchronises with the host at every step"
    return f"only up to {GRAPH_UP_TO} images" if setting.batch > GRAPH_UP_TO else None


def our_trainer(setting: Setting, speed: SpeedRecipe, batches: list[HostBatch], *, wrapped: bool = False) -> Run:
    """Our trainer with these speed keys; `wrapped` in DDP even on one worker."""
    recipe = setting.recipe(speed=speed)
    return flagged(recipe, setting.device, OurTrainer(recipe, setting.device, batches, wrapped=wrapped))


def flagged(recipe: Recipe, device: torch.device, run: Run) -> Run:
    """`run`, with the process-wide flags of torch that `recipe` requires set before each turn.

    All projects that are compared let cuDNN benchmark its algorithms, as our default does.
    """

    def turn(steps: int) -> None:
        set_up_torch(recipe, device, torch.get_num_threads())
        run(steps)

    return turn


def timed(
    makers: Mapping[str, Make], device: torch.device, *, rounds: int, steps: int, warm_up_steps: int, lead: int = 0
) -> Timed:
    """Create every peer, warm it up, and time all that fit into memory in turns.

    One that fails is left out with its error, so that it does not cost the others their results. For `lead` see
    `interleave`.
    """
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
            absent[name] = "out of memory" if is_out_of_memory(error) else f"{FAILED}{_described(error)}"
            del error
            gc.collect()
            continue
        peers[name] = peer
        if device.type == "cuda":
            memory_mb[name] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
            torch.cuda.empty_cache()
    times_s = interleave(peers, rounds=rounds, steps=steps, warm_up=1, wait=wait, lead=lead) if peers else {}
    peers.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.compiler.reset()
    return Timed(times_s, memory_mb, absent)


def _described(error: Exception) -> str:
    """The type and the first line of an error, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]} ({Path(place.filename).name}:{place.lineno})"


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
