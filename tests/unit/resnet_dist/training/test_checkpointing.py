"""An optimizer state that is cut over workers: each worker's part on the disk, and the whole read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.checkpoint import restore, tensors
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.folders import new_writer
from resnet_dist.checkpoint.parts import PartFiles
from resnet_dist.checkpoint.save import write, write_part
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.engines.partition import partition_table
from resnet_dist.engines.partitioned_state import FlatGroup, own_part
from resnet_dist.engines.protocol import OptimizerPart
from resnet_dist.engines.state import state_by_name
from resnet_dist.errors import CheckpointError
from resnet_dist.telemetry.metrics_file import NoSink
from resnet_dist.training.checkpointing import RunCheckpoints

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(5, 7), nn.Linear(1, 1))


def part_of(module: nn.Module, make: MakeOptimizer, rank: int, world_size: int) -> OptimizerPart:
    """What worker `rank` holds after two steps with the gradients that are in `module`."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    numels = [parameter.numel() for parameter in parameters]
    offsets = [sum(numels[:number]) for number in range(len(numels))]
    size = -(-sum(numels) // world_size)
    flats = []
    for values in (parameters, [parameter.grad for parameter in parameters]):
        whole = torch.zeros(size * world_size)
        whole[: sum(numels)] = torch.cat([value.detach().flatten() for value in values])
        flats.append(whole[rank * size : (rank + 1) * size].clone())
    flat, flat.grad = flats[0], flats[1]
    group = FlatGroup(names, parameters, flat, partition_table(numels, offsets, size, rank))
    optimizer = make([{"params": [flat]}])
    optimizer.step()
    optimizer.step()
    return own_part([group], optimizer)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_parts_that_the_partition_has_cut_are_read_back_whole(
    tmp_path: Path, make: MakeOptimizer, world_size: int
) -> None:
    module = net()
    for parameter in module.parameters():
        parameter.grad = torch.rand_like(parameter)
    writer = new_writer()
    details: list[dict[str, Any]] = []  # rank 0's, which is closed last, is the last
    savers = [
        Saver(CheckpointOptions(tmp_path), on_event=lambda *event: details.append(event[2]), parts=parts)
        for parts in (PartFiles(rank, world_size, writer) for rank in range(world_size))
    ]
    for rank, saver in enumerate(savers):
        part = part_of(module, make, rank, world_size)
        content = CheckpointContent(3, {"weight": torch.ones(1)}, part.state, {}, shards=part.shards)
        saver.save(content, wait=False)
    for saver in reversed(savers):
        saver.close()
    whole = make(module.parameters())
    whole.step()
    whole.step()
    found = restore.load(tmp_path / "step-00000003").optimizer()
    torch.testing.assert_close(found, state_by_name(module, whole), rtol=0, atol=0)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "step-00000003").iterdir()}
    assert details[-1]["size_bytes"] == sum(sizes.values()) - sizes["manifest.json"]


def test_a_run_that_ends_badly_does_not_wait_long_for_parts_that_will_not_come(tmp_path: Path) -> None:
    events: list[str] = []
    parts = PartFiles(0, 2, new_writer(), timeout_s=1e6)  # worker 1 is dead
    saver = Saver(CheckpointOptions(tmp_path), on_event=lambda *event: events.append(event[1]), parts=parts)
    saver.save(CheckpointContent(3, {"weight": torch.ones(1)}, {}, {}), wait=False)
    saver.close(0.1)
    assert events == ["checkpoint_failed"]
    assert list(tmp_path.iterdir()) == []


class HoldsWeights:
    """As much of an engine as is saved."""

    def __init__(self) -> None:
        self.module = nn.Linear(2, 2)

    def optimizer_state(self) -> dict[str, Any]:
        return {}

    def scaler_state(self) -> dict[str, float]:
        return {}


def test_a_metric_that_is_not_finite_is_null_in_the_checkpoint(tmp_path: Path) -> None:
    engine: Any = HoldsWeights()
    checkpoints = RunCheckpoints(CheckpointOptions(tmp_path), engine, {"batch_size": 8}, 0, NoSink())
    metrics = {"top1": float("nan"), "loss": float("inf"), "top5": 0.5}
    checkpoints.save(3, wait=True, metrics=metrics)
    checkpoints.close(patient=True)
    state = restore.load(tmp_path / "step-00000003").state
    assert state["metrics"] == {"top1": None, "loss": None, "top5": 0.5}
    assert state["samples"] == 24


def written(folder: Path, *parts: tuple[Tensor, Any]) -> restore.Checkpoint:
    """A checkpoint of one momentum in parts: (elements, metadata of its shard)."""
    writer = new_writer()
    for number, (elements, shard) in reversed(list(enumerate(parts))):
        shards = {} if shard is None else {"layer": shard}
        content = CheckpointContent(4, {}, {"layer": {"momentum": elements}}, {}, shards=shards)
        (write if number == 0 else write_part)(folder, content, PartFiles(number, len(parts), writer))
    return restore.load(folder / "step-00000004")


ONES, SHAPE = torch.ones, (2, 3)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([(ONES(3), (0, SHAPE)), (ONES(2), (3, SHAPE))], "the shards of tensor 'layer/momentum' hold 5 of 6"),
        ([(ONES(3), (0, SHAPE)), (ONES(2), (4, SHAPE))], "tensor 'layer/momentum' do not fit together at element 3"),
        ([(ONES(4), (0, SHAPE)), (ONES(3), (3, SHAPE))], "tensor 'layer/momentum' do not fit together at element 4"),
        ([(ONES(3), (0, SHAPE)), (ONES(3), (3, (3, 2)))], "do not fit together at element 3"),
        ([(ONES(3), (0, SHAPE)), (ONES(3).double(), (3, SHAPE))], "do not fit together at element 3"),
        ([(ONES(3), (0, SHAPE)), (ONES(2, 3), None)], "'layer/momentum' is whole in one part and sharded in others"),
    ],
)  # fmt: skip
def test_shards_that_do_not_make_up_a_tensor_are_an_error(
    tmp_path: Path, parts: Sequence[tuple[Tensor, Any]], problem: str
) -> None:
    checkpoint = written(tmp_path, *parts)
    with pytest.raises(CheckpointError, match=problem):
        checkpoint.optimizer()


@pytest.mark.parametrize("shards", ["{", "[]", '{"layer": 3}', '{"layer": {"start": -1, "shape": [6]}}'])
def test_a_list_of_shards_that_cannot_be_read_is_an_error(tmp_path: Path, shards: str) -> None:
    checkpoint = written(tmp_path, (ONES(6), (0, (6,))))
    [file] = checkpoint.path.glob("optimizer-*")
    contents = tensors.read(file)
    file.unlink()
    record = tensors.write(file, contents.tensors, {**contents.metadata, "pieces": shards})
    assert json.loads(contents.metadata["pieces"]) == {"layer": {"start": 0, "shape": [6]}}
    altered = restore.Checkpoint(checkpoint.path, 4, {}, {**checkpoint.files, file.name: record})
    with pytest.raises(CheckpointError, match="its metadata 'pieces'"):
        altered.optimizer()
