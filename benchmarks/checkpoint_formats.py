"""The guarantees of checkpoint formats when something goes wrong, and their cost.

    python benchmarks/checkpoint_formats.py [--model resnet50] [--rounds 7] [--kills 10] [--folder FOLDER]

Three formats save the same state (a model and its momentum) to the same disk: the one of resnet_dist.checkpoint,
torch.distributed.checkpoint (with the defaults of its file system writer, which syncs) and torch.save. Each is timed in
turn, its files are damaged, its process is killed during a save, and a checkpoint of two processes is read by three.
docs/decisions/0002-own-checkpoints.md uses the results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import pickle
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from checkpoint_stall import machine, state_of
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.folders import new_writer
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.restore import load, newest
from resnet_dist.checkpoint.save import write, write_part

RESULTS = Path(__file__).parent / "results" / "checkpoint_formats.json"

State = dict[str, Tensor]  # flat: "model.<name>" and "momentum.<name>"


@dataclass(frozen=True)
class Format:
    """One format. `load` fills a state that has the right names and shapes, and raises the errors of the format."""

    name: str
    save: Callable[[Path, int, State], None]  # into the folder of checkpoints
    load: Callable[[Path, State], State]  # from one checkpoint
    newest: Callable[[Path, State], State]  # from the folder, as its library or a typical script does


def split(state: State) -> tuple[State, dict[str, dict[str, Tensor]]]:
    """Model and optimizer state, as `resnet_dist.checkpoint` expects them."""
    model = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    momentum = {name.removeprefix("momentum."): value for name, value in state.items() if name.startswith("momentum.")}
    return model, {name: {"momentum": value} for name, value in momentum.items()}


def joined(model: State, optimizer: dict[str, dict[str, Tensor]]) -> State:
    """The flat state again."""
    momentum = {f"momentum.{name}": states["momentum"] for name, states in optimizer.items()}
    return {f"model.{name}": value for name, value in model.items()} | momentum


def save_ours(folder: Path, step: int, state: State) -> None:
    """This project's format."""
    write(folder, CheckpointContent(step, *split(state), {}))


def load_ours(path: Path, state: State) -> State:
    """Load with verified hashes, as a run does."""
    checkpoint = load(path)
    return joined(checkpoint.model(), checkpoint.optimizer())


def newest_ours(folder: Path, state: State) -> State:
    """The newest valid checkpoint."""
    checkpoint = newest(folder)
    assert checkpoint is not None
    return joined(checkpoint.model(), checkpoint.optimizer())


def save_dcp(folder: Path, step: int, state: State) -> None:
    """torch.distributed.checkpoint with its defaults."""
    dcp.save(dict(state), checkpoint_id=folder / f"step-{step:08d}")


def load_dcp(path: Path, state: State) -> State:
    """Load into existing tensors; those that are not in the checkpoint stay as they are."""
    target = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(target, checkpoint_id=path)
    return target


def save_torch(folder: Path, step: int, state: State) -> None:
    """torch.save, as most scripts use it."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / f"step-{step:08d}")


def load_torch(path: Path, state: State) -> State:
    """With the default of weights_only."""
    loaded: State = torch.load(path)
    return loaded


def newest_by_name(load: Callable[[Path, State], State]) -> Callable[[Path, State], State]:
    """The checkpoint with the highest step, as a typical script chooses it."""
    return lambda folder, state: load(max(folder.glob("step-*")), state)


OURS = "format 1"
FORMATS = (
    Format(OURS, save_ours, load_ours, newest_ours),
    Format("torch.distributed.checkpoint", save_dcp, load_dcp, newest_by_name(load_dcp)),
    Format("torch.save", save_torch, load_torch, newest_by_name(load_torch)),
)


def files_of(path: Path) -> list[Path]:
    """A checkpoint's files, large ones first."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: -file.stat().st_size)


def is_pickle(file: Path) -> bool:
    """Whether the file is a pickle or a torch archive with one."""
    content = file.read_bytes()
    if b"data.pkl" in content or (zipfile.is_zipfile(file) and "data.pkl" in str(zipfile.ZipFile(file).namelist())):
        return True
    return content[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def outcome(format: Format, folder: Path, states: dict[int, State]) -> str:
    """The result of loading the newest checkpoint in `folder`; `states` by step."""
    try:
        loaded = format.newest(folder, states[1])
    except (
        Exception,
        CheckpointException,
    ) as error:  # any exception of a format is a result
        return f"error ({type(error).__name__})"
    for step, state in states.items():
        if all(torch.equal(loaded[name].cpu(), value) for name, value in state.items()):
            return "loads it" if step == max(states) else "uses the previous one"
    return "LOADS WRONG NUMBERS"


def flip(file: Path) -> None:
    """Flip one bit in the middle."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))


def halve(file: Path) -> None:
    """Truncate to half its length."""
    os.truncate(file, file.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit flipped in the largest file": flip,
    "the largest file cut in half": halve,
    "the largest file missing": Path.unlink,
}


def damage(format: Format, scratch: Path, state: State) -> dict[str, str]:
    """The result of each damage to the newer of two checkpoints."""
    states = {1: state, 2: {name: value + 1 for name, value in state.items()}}
    found = {}
    for name, apply in DAMAGES.items():
        folder = scratch / "damaged"
        for step, content in states.items():
            format.save(folder, step, content)
        apply(files_of(folder / "step-00000002")[0])
        found[name] = outcome(format, folder, states)
        shutil.rmtree(folder)
    return found


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def runs_code(format: Format, scratch: Path, state: State) -> str:
    """Whether loading runs code from a replaced checkpoint file."""
    folder, witness = scratch / "foreign", scratch / "witness"
    format.save(folder, 1, state)
    ran = []
    for file in files_of(folder / "step-00000001"):
        original = file.read_bytes()
        file.write_bytes(pickle.dumps(_Payload(witness)))
        outcome(format, folder, {1: state})
        file.write_bytes(original)
        if witness.exists():
            ran.append(file.name)
            witness.unlink()
    shutil.rmtree(folder)
    return f"yes: {', '.join(ran)}" if ran else "no"


def kill(format: Format, scratch: Path, state: State, save_s: float, num_kills: int) -> dict[str, int]:
    """How often the newest checkpoint can be loaded after a kill at a random moment of a save."""
    moments, found = random.Random(0), {"newest loads": 0, "newest is torn": 0}
    for number in range(num_kills):
        folder = scratch / f"killed-{number}"
        format.save(folder, 1, state)
        states = {1: state, 2: state}
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            format.save(folder, 2, state)
            os._exit(0)
        time.sleep(moments.uniform(0, save_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loads = outcome(format, folder, states).startswith(("loads", "uses"))
        found["newest loads" if loads else "newest is torn"] += 1
        shutil.rmtree(folder)
    return found


def timed(scratch: Path, state: State, num_rounds: int) -> dict[str, dict[str, Any]]:
    """Median times of saving and loading, with the formats in turns, and the files on the disk."""
    times: dict[str, dict[str, list[float]]] = {format.name: {"save_s": [], "load_s": []} for format in FORMATS}
    found: dict[str, dict[str, Any]] = {}
    for number in range(num_rounds):
        for format in FORMATS:
            folder = scratch / "timed"
            os.sync()
            started = time.perf_counter()
            format.save(folder, number, state)
            os.sync()  # torch.save does not sync; the others have done so
            times[format.name]["save_s"].append(time.perf_counter() - started)
            path = folder / f"step-{number:08d}"
            started = time.perf_counter()
            format.load(path, state)
            times[format.name]["load_s"].append(time.perf_counter() - started)
            files = files_of(path)
            found[format.name] = {
                "num_files": len(files),
                "size_bytes": sum(file.stat().st_size for file in files),
                "pickles": sorted(file.name for file in files if is_pickle(file)),
            }
            shutil.rmtree(folder)
    for name, own in times.items():
        found[name] |= {key: statistics.median(values) for key, values in own.items()} | {"times": own}
    return found


def _start(rank: int, world_size: int, store: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)


def _write_by_two(rank: int, scratch: Path, store: str, state: State) -> None:
    _start(rank, 2, store)
    mesh = init_device_mesh("cpu", (2,))
    dcp.save(
        {name: distribute_tensor(value, mesh, [Shard(0)]) if value.dim() else value for name, value in state.items()},
        checkpoint_id=scratch / "dcp",
    )
    writer = [new_writer()]
    dist.broadcast_object_list(writer, src=0)
    model, optimizer = split(state)
    part = {name: states for number, (name, states) in enumerate(optimizer.items()) if number % 2 == rank}
    content = CheckpointContent(1, model if rank == 0 else {}, part, {})
    (write if rank == 0 else write_part)(scratch / "ours", content, PartFiles(rank, 2, writer[0]))
    dist.destroy_process_group()


def _read_by_three(rank: int, scratch: Path, store: str, state: State) -> None:
    _start(rank, 3, store)
    mesh = init_device_mesh("cpu", (3,))
    target: dict[str, Any] = {
        name: distribute_tensor(torch.zeros_like(value), mesh, [Shard(0)]) if value.dim() else torch.zeros_like(value)
        for name, value in state.items()
    }
    dcp.load(target, checkpoint_id=scratch / "dcp")
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in target.items()}
    right = {
        "torch.distributed.checkpoint": whole,
        OURS: load_ours(scratch / "ours" / "step-00000001", state),
    }
    for name, loaded in right.items():
        equal = all(torch.equal(loaded[key], value) for key, value in state.items())
        (scratch / f"{name}-{rank}").write_text("equal" if equal else "different")
    dist.destroy_process_group()


def other_world_size(scratch: Path, state: State) -> dict[str, str]:
    """Whether three processes can read what two saved, sharded."""
    spawn = torch.multiprocessing.spawn
    spawn(_write_by_two, (scratch, str(scratch / "store-2"), state), nprocs=2)
    spawn(_read_by_three, (scratch, str(scratch / "store-3"), state), nprocs=3)
    names = (OURS, "torch.distributed.checkpoint")
    found = {name: {(scratch / f"{name}-{rank}").read_text() for rank in range(3)} for name in names}
    return {name: " and ".join(sorted(results)) for name, results in found.items()}


def rows(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    """The rows of the table: title, and function that formats the value."""
    yield "save, including sync", lambda own: f"{own['save_s']:.2f} s"
    yield "load", lambda own: f"{own['load_s']:.2f} s"
    yield "files", lambda own: str(own["num_files"])
    yield "size", lambda own: f"{own['size_bytes'] / 1e6:.1f} MB"
    yield "files with a pickle", lambda own: ", ".join(own["pickles"]) or "none"
    yield "loading runs code from a file", lambda own: own["runs_code"]
    for name in DAMAGES:
        yield name, lambda own, name=name: own["damage"][name]  # type: ignore[misc]
    yield (
        "killed while saving, newest loads",
        lambda own: f"{own['kill']['newest loads']} of {sum(own['kill'].values())}",
    )
    yield "saved by 2, read by 3", lambda own: own["other_world_size"]


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="on the storage to be measured (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # the errors are expected
    model, momentum = state_of(arguments.model, "cpu")
    state = {name: value.detach().clone() for name, value in joined(model, momentum).items()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        scratch = Path(name)
        found = timed(scratch, state, arguments.rounds)
        sizes = other_world_size(scratch, state)
        for format in FORMATS:
            own = found[format.name]
            own["runs_code"] = runs_code(format, scratch, state)
            own["damage"] = damage(format, scratch, state)
            own["kill"] = kill(format, scratch, state, own["save_s"], arguments.kills)
            own["other_world_size"] = sizes.get(format.name, "a file of one process")
    print(f"\n{arguments.model} and its momentum, {arguments.rounds} rounds\n")
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for what, text in rows(found):
        print(f"| {what} | {' | '.join(text(own) for own in found.values())} |")
    record = {
        "question": "guarantees and cost of checkpoint formats",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine("cpu"),
        "model": arguments.model,
        "rounds": arguments.rounds,
        "formats": found,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
