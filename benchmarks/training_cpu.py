"""The speed and the memory of a training step on a CPU, compared with peers.

    python -m benchmarks.training_cpu [--quick] [--only WORD]

ResNet-50 on noise, one thread per worker, two workers with gloo. `--quick` checks that the benchmark works, with fewer
rounds and smaller images, and writes no result.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.measure import Ratio, Row, Run, interleave, notes_of, speed_row, table_of, time_row, write
from benchmarks.peers import (
    MinimalLoop,
    OurTrainer,
    PlainDeepspeed,
    Setting,
    TimmLoop,
    TorchvisionLoop,
    plain_ddp,
    synthetic,
    why_not_timm,
    with_engine,
)
from benchmarks.workers import on_workers
from resnet_dist.recipe.schema import BatchNormRecipe

CPU = torch.device("cpu")
_BEYOND = "operations beyond the minimal loop's, by name and time in the table of python -m benchmarks.step"


@dataclass(frozen=True)
class Effort:
    """What is measured, and how often. For fewer than 16 images torch uses other algorithms for some convolutions."""

    steps: Setting
    memory: Setting
    rounds: int


FULL = Effort(Setting(batch=32, resolution=64), Setting(batch=2, resolution=32, model="resnet152"), rounds=15)
QUICK = Effort(Setting(batch=8, resolution=32), replace(FULL.memory, model="resnet50"), rounds=3)


def one_worker(effort: Effort) -> tuple[list[Row], dict[str, Any]]:
    """Our trainer against a minimal loop, torchvision's and timm's."""
    setting = effort.steps
    batches = synthetic(setting)
    peers: dict[str, Run] = {
        "ours": OurTrainer(setting.recipe(), CPU, batches),
        "minimal": MinimalLoop(setting, batches),
        "torchvision": TorchvisionLoop(setting, batches),
    }
    absent = why_not_timm()
    if absent is None:
        peers["timm"] = TimmLoop(setting, batches)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    times = interleave(peers, rounds=effort.rounds, steps=1, warm_up=2)
    torch.set_num_threads(before)
    ours, size = times["ours"], setting.batch
    rows = [
        time_row("whole step, our trainer", "a minimal loop", ours, times["minimal"], goal=1.02, cause=_BEYOND),
        speed_row("images/s", "torchvision's loop", ours, times["torchvision"], size, goal=1.0),
    ]
    if absent is None:
        rows.append(speed_row("images/s", "timm's step", ours, times["timm"], size, goal=1.0))
    return rows, {"times_s": times, "absent": {} if absent is None else {"timm": absent}}


def ddp(effort: Effort) -> tuple[list[Row], dict[str, Any]]:
    """Two workers: our trainer against plain DDP, and batch norm over both workers against local batch norm."""
    found = on_workers(2, measure_ddp, effort.steps, effort.rounds)
    times = found["times_s"]
    rows = [
        time_row("DDP step, 2 workers", "torch's plain DDP", times["ours"], times["plain"], goal=1.02, cause=_BEYOND),
        time_row(
            "batch norm over both workers", "each worker's own", times["synchronised"], times["ours"], goal=1.15,
            note="one all-gather per layer and pass",
            cause=f"{found['waited']:.0%} of the step is spent in the collectives, which wait for the other worker; the"
            " rest are operations of batch norm (python -m benchmarks.step)",
        ),
    ]  # fmt: skip
    return rows, found


def measure_ddp(setting: Setting, rounds: int) -> dict[str, Any]:
    """On each worker: the times, and the part of the steps that batch norm over both workers spends in collectives."""
    batches = synthetic(setting, rank=dist.get_rank())
    local = setting.recipe(dist.get_world_size())
    over_all = replace(local, batch_norm=BatchNormRecipe(span="global"))
    synchronised = OurTrainer(over_all, CPU, batches)
    peers: dict[str, Run] = {
        "ours": OurTrainer(local, CPU, batches),
        "plain": plain_ddp(setting, batches),
        "synchronised": synchronised,
    }
    interleave(peers, rounds=0, steps=1, warm_up=2, wait=dist.barrier)
    before = synchronised.spans.waited_s
    times = interleave(peers, rounds=rounds, steps=1, warm_up=0, wait=dist.barrier)
    return {"times_s": times, "waited": (synchronised.spans.waited_s - before) / sum(times["synchronised"])}


def zero(effort: Effort) -> tuple[list[Row], dict[str, Any]]:
    """Two workers: our ZeRO engine against plain deepspeed.initialize, stages 1 and 2."""
    rows, all_times = [], {}
    for stage in (1, 2):
        times = on_workers(2, measure_zero, effort.steps, stage, effort.rounds)
        all_times[f"zero-{stage}"] = times
        rows.append(
            time_row(
                f"zero-{stage} step, 2 workers", "plain deepspeed.initialize", times["ours"], times["plain"], goal=1.02
            )
        )
    return rows, {"times_s": all_times}


def measure_zero(setting: Setting, stage: int, rounds: int) -> dict[str, list[float]]:
    """On each worker."""
    batches = synthetic(setting, rank=dist.get_rank())
    peers: dict[str, Run] = {
        "ours": OurTrainer(with_engine(setting.recipe(dist.get_world_size()), "zero", stage), CPU, batches),
        "plain": PlainDeepspeed(setting, batches, stage),
    }
    return interleave(peers, rounds=rounds, steps=1, warm_up=2, wait=dist.barrier)


def memory(effort: Effort) -> tuple[list[Row], dict[str, Any]]:
    """Two workers: the gradients and optimizer state of each with ZeRO-2, against DDP."""
    used = {name: on_workers(2, measure_memory, effort.memory, name) for name in ("ddp", "zero")}
    rows = []
    for what in ("gradients", "optimizer state", "both"):
        ours, theirs = used["zero"][what], used["ddp"][what]
        value = ours / theirs
        rows.append(
            Row(
                f"{effort.memory.model} on 2 workers, zero-2: {what}", "DDP", "bytes", ours, theirs,
                Ratio(value, value, value), goal=0.51 if what == "both" else None,
            )
        )  # fmt: skip
    weights = used["zero"]["weights of the optimizer's own"]
    note = f"ZeRO's optimizer also keeps {weights / 1e6:,.0f} MB of weights per worker"
    return [*rows[:-1], replace(rows[-1], note=note)], {"bytes": used}


def measure_memory(setting: Setting, engine: str) -> dict[str, int]:
    """Bytes on this worker: gradients just before the optimizer's step, its state after it."""
    recipe = setting.recipe(dist.get_world_size())
    trainer = OurTrainer(recipe if engine == "ddp" else with_engine(recipe, "zero", 2), CPU, synthetic(setting))
    parameters = list(trainer.engine.module.parameters())
    found: dict[str, int] = {}

    def look() -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        weights: list[torch.Tensor] = []
        if engine == "zero":
            partitions = trainer.engine._engine.optimizer  # type: ignore[attr-defined]
            gradients += [part for parts in partitions.averaged_gradients.values() for part in parts]
            weights += partitions.single_partition_of_fp32_groups
        found["gradients"] = sum(map(_bytes, gradients))
        found["weights of the optimizer's own"] = sum(map(_bytes, weights))

    # DeepSpeed updates the parameter groups one by one and frees the gradients of each: measure before the first.
    stepper: Any = trainer.optimizer if engine == "ddp" else trainer.engine._engine  # type: ignore[attr-defined]
    step = stepper.step

    def looking(*arguments: Any) -> Any:
        look()
        return step(*arguments)

    stepper.step = looking
    trainer(2)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    found["optimizer state"] = sum(_bytes(value) for value in states if isinstance(value, torch.Tensor))
    return {**found, "both": found["gradients"] + found["optimizer state"]}


def _bytes(tensor: torch.Tensor | nn.Parameter) -> int:
    return tensor.numel() * tensor.element_size()


QUESTIONS = {"one_worker": one_worker, "ddp": ddp, "zero": zero, "memory": memory}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write results/training_cpu.json; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check that it works, in a minute")
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL.rounds}")
    given = parser.parse_args(arguments)
    effort = QUICK if given.quick else FULL
    effort = replace(effort, rounds=given.rounds or effort.rounds)
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for name in given.only or QUESTIONS:
        found, details[name] = QUESTIONS[name](effort)
        rows += [row.record() for row in found]
    print(table_of(rows))
    print("\n".join(notes_of(rows)))
    for question in details.values():
        for peer, reason in question.get("absent", {}).items():
            print(f"{peer}: not measured, {reason}")
    if not given.quick and not given.only:
        steps = f"{_described(effort.steps)}, {effort.rounds} rounds"
        settings = {"steps": steps, "memory": _described(effort.memory)}
        print(f"\n{write('training_cpu', {'settings': settings, 'rows': rows, 'details': details})}")
    return 0 if all(row["reached"] is not False for row in rows) else 1


def _described(setting: Setting) -> str:
    return f"{setting.model}, {setting.resolution} px, {setting.batch} images per worker, {setting.precision}, 1 thread"


if __name__ == "__main__":
    raise SystemExit(main())
