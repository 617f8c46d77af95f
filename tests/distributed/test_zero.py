"""DeepSpeed ZeRO on 2 and 3 workers against DDP: same losses, same weights, one form of optimizer state.

Four workers save a checkpoint to which each writes its part; three go on from it.

Each world of gloo processes runs once: this file, as a script, writes what every worker has seen of every case. Masters
of ZeRO are float32, so exactness is proved elsewhere (tests/unit/resnet_dist/engines/test_partition.py, in float64);
here every mistake must show against the rounding of float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.broadcast import load_and_broadcast
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.engines.zero import ZeroEngine
from resnet_dist.errors import CheckpointError
from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.spans import Spans
from resnet_dist.optim import Lamb, Lars, add_decoupled_decay, add_l1, decay_groups
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.telemetry.metrics_file import NoSink
from resnet_dist.training.checkpointing import RunCheckpoints
from tests.distributed.forked import run_forked, run_script

# 22 samples: shares of 11, 11 and 7, 7, 8; in two micro-batches of 11: 5, 6 and 3, 4, 4
BATCH_SIZE, SPAN, CLASSES, STEPS, LEARNING_RATE, TIMEOUT_S = 22, 11, 7, 10, 0.05, 300
# Relative and absolute. Measured over all cases: step 1 differs by 4e-8; over ten steps losses differ by 8e-8, weights
# by 1.1e-7, momenta by 2.7e-7, and where bfloat16 takes part losses by 3.2e-4.
FIRST_STEP, AFTER, BFLOAT16_BAND = 1e-6, 2e-6, 2e-3

OptimizerName = Literal["sgd", "sgdw, l1", "lars", "lars_inside", "lars_nesterov", "lamb", "adamw"]


@dataclass(frozen=True)
class Case:
    optimizer: OptimizerName
    num_micro_batches: int = 1
    clipping: float | None = None
    autocast: bool = False
    gradient_dtype: torch.dtype = torch.float32


CASES = {
    "sgd": Case("sgd"),
    "sgd, 2 micro-batches, clipped": Case("sgd", 2, clipping=0.5),
    "lars": Case("lars"),
    "lars, clipped": Case("lars", clipping=0.5),
    "lars with the rate inside, 2 micro-batches": Case("lars_inside", 2),
    "lars, nesterov": Case("lars_nesterov"),
    "lamb": Case("lamb"),
    "adamw, clipped": Case("adamw", clipping=0.5),
    "sgd, decoupled weight decay and l1, clipped": Case("sgdw, l1", clipping=0.5),
}
STAGES = (0, 1, 2)
BROKEN_AT = 5  # steps after which a state is saved on 2 workers (in one piece) or on 4 (in parts), to be loaded on 3
RESUMED = ("sgd", "lars", "lamb")
BFLOAT16 = {
    "autocast": Case("lars", autocast=True),
    "gradients": Case("lars", gradient_dtype=torch.bfloat16),
}


class Scaled(nn.Module):
    """A parameter of one element that decays: its partitions are padding on all workers but one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale


def model_of(case: Case, rank: int, world_size: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)]
    net = nn.Sequential(*layers, nn.ReLU(), Scaled(), nn.Flatten(), nn.Linear(72, CLASSES))
    layout = BatchLayout(BATCH_SIZE, case.num_micro_batches, world_size)
    return use_spans(net, Spans(layout, rank, SPAN), momentum=0.1, epsilon=1e-5).to(memory_format=torch.channels_last)


def optimizer_of(case: Case, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if case.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=1e-3)
    if case.optimizer == "sgdw, l1":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        add_decoupled_decay(optimizer, 0.1)
        add_l1(optimizer, 1e-3)
        return optimizer
    if case.optimizer == "lamb":
        return Lamb(groups, weight_decay=1e-2, epsilon=0.01)  # a bias before batch norm has a gradient of rounding only
    if case.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=1e-2, eps=1e-3)
    inside = case.optimizer == "lars_inside"
    nesterov = case.optimizer == "lars_nesterov"
    settings: dict[str, float] = {"momentum": 0.9, "weight_decay": 1e-3, "trust_coefficient": 0.1}
    return Lars(groups, lr_in_momentum=inside, nesterov=nesterov, **settings)


class LarsOfOne(torch.optim.Optimizer):
    """The oracle: every group is one tensor, so the norms of a flat partition, padded with zeros, are parts of its own.

    It needs to know nothing of where DeepSpeed puts what. As `optimizer_of` has it, lr_in_momentum is False.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            [flat] = group["params"]
            decay = group["weight_decay"]
            squares = torch.stack([flat.double().square().sum(), flat.grad.double().square().sum()])
            dist.all_reduce(squares)
            weight_norm, gradient_norm = squares.sqrt().tolist()
            trust = 0.1 * weight_norm / (gradient_norm + decay * weight_norm) if group["decay"] else 1.0
            momentum = self.state[flat].setdefault("momentum_buffer", torch.zeros_like(flat))
            momentum.mul_(0.9).add_(flat.grad + decay * flat, alpha=trust)
            flat.sub_(momentum, alpha=group["lr"])


def engine_of(kind: str, case: Case, net: nn.Module) -> tuple[Engine, torch.optim.Optimizer]:
    """The engine, and the optimizer that it was given."""
    groups = decay_groups(net, {"0": 0.5})  # groups of two factors of the learning rate
    optimizer = optimizer_of(case, groups)
    settings: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "num_micro_batches": case.num_micro_batches,
        "autocast_dtype": torch.bfloat16 if case.autocast else None,
        "gradient_clipping": case.clipping,
    }
    loss_sum = partial(cross_entropy_sum, label_smoothing=0.1)
    if kind == "ddp":
        return DdpEngine(net, optimizer, loss_sum, **settings), optimizer
    if kind == "oracle":
        single = [
            {
                "params": [p],
                "decay": group["decay"],
                "weight_decay": group.get("weight_decay", 1e-3),
                "lr_factor": group["lr_factor"],
            }
            for group in groups
            for p in group["params"]
        ]
        optimizer, kind = LarsOfOne(single, {"lr": 0.0}), "zero 1"
    # a bucket of 120 elements: smaller than some tensors, larger than others
    settings |= {"stage": int(kind.split()[1]), "bucket_size_bytes": 480, "gradient_dtype": case.gradient_dtype}
    return ZeroEngine(net, optimizer, loss_sum, **settings), optimizer


# --- what one worker does


def batches(step: int, case: Case, rank: int, world_size: int) -> Iterator[MicroBatch]:
    generator = torch.Generator().manual_seed(step % 2)  # the same two batches again and again: losses fall
    images = torch.randn(BATCH_SIZE, 3, 9, 9, generator=generator)
    labels = torch.randint(CLASSES, (BATCH_SIZE,), generator=generator)
    for positions in BatchLayout(BATCH_SIZE, case.num_micro_batches, world_size).worker_micro_batches(rank):
        own = slice(positions.start, positions.stop)
        yield MicroBatch(images[own].contiguous(memory_format=torch.channels_last), labels[own])


def train(
    kind: str,
    case: Case,
    rank: int,
    world_size: int,
    start: dict[str, Any] | None = None,
    save: bool = False,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """What a worker sees of one run: per step the sums over all workers, at the end its own model and state."""
    net = model_of(case, rank, world_size)
    if start is not None:
        net.load_state_dict(start["model"])
    engine, optimizer = engine_of(kind, case, net)
    if start is not None:
        engine.load_optimizer_state(start["optimizer"])
    record: dict[str, Any] = {"losses": [], "norms": [], "ratios": []}
    for step in range(0 if start is None else BROKEN_AT, STEPS):
        if save and step == BROKEN_AT:
            model = {name: value.clone() for name, value in net.state_dict().items()}
            record["broken"] = {"model": model, "optimizer": engine.optimizer_state()}
        if checkpoints is not None and step == BROKEN_AT:
            saving = RunCheckpoints(CheckpointOptions(checkpoints), engine, {"batch_size": BATCH_SIZE}, rank, NoSink())
            saving.save(BROKEN_AT, wait=True, metrics={})
            assert rank > 0 or (checkpoints / format.folder_name(BROKEN_AT)).exists()
            saving.close(patient=True)
        sums = engine.step(batches(step, case, rank, world_size), LEARNING_RATE)
        totals = torch.stack([sums.loss, sums.gradient_squared])
        dist.all_reduce(totals)
        record["losses"].append(totals[0].item() / BATCH_SIZE)
        record["norms"].append(totals[1].sqrt().item())
        record["ratios"].append(None if sums.trust_ratios is None else sums.trust_ratios.tolist())
    record["weights"] = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    record["state"] = {name: dict(entries) for name, entries in engine.optimizer_state().items()}
    record["num_held"] = sum(tensor.numel() for held in optimizer.state.values() for tensor in held.values())
    return record


def worker(world_size: int, folder: Path, rank: int) -> None:
    """Run all cases that are for a world of this size, on one worker."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world_size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    kinds = ["ddp", *(f"zero {stage}" for stage in STAGES)]
    records: dict[tuple[str, str], dict[str, Any]] = {}
    if world_size == 4:
        for name in RESUMED:
            train("zero 2", CASES[name], rank, world_size, checkpoints=folder / name)
        dist.destroy_process_group()
        return
    for name, case in CASES.items():
        for kind in kinds:
            records[name, kind] = train(kind, case, rank, world_size, save=kind == "zero 2")
    records["lars", "oracle"] = train("oracle", CASES["lars"], rank, world_size)
    if world_size == 3:
        for name, case in BFLOAT16.items():
            for kind in kinds:
                records[name, kind] = train(kind, case, rank, world_size)
        for name in RESUMED:
            start = torch.load(folder / "2 workers, rank 0.pt")[name, "zero 2"]["broken"]
            for kind in kinds:
                records[f"{name}, resumed", kind] = train(kind, CASES[name], rank, world_size, start)
            saved = folder / name / f"step-{BROKEN_AT:08d}"
            checkpoint = load_and_broadcast(saved, rank, world_size, torch.device("cpu"))
            start = {"model": checkpoint.model, "optimizer": checkpoint.optimizer}
            for kind in ("ddp", "zero 1"):
                records[f"{name}, resumed from 4", kind] = train(kind, CASES[name], rank, world_size, start)
            records[f"{name}, resumed from 4", "files"] = {"names": sorted(format.read_manifest(saved))}
        with pytest.raises(CheckpointError) as caught:
            load_and_broadcast(folder / "no checkpoint", rank, world_size, torch.device("cpu"))
        records["no checkpoint", "error"] = {"text": str(caught.value)}
    torch.save(records, folder / f"{world_size} workers, rank {rank}.pt")
    dist.destroy_process_group()


def all_worlds(folder: Path) -> None:
    """Run one world after the other."""
    for size in (2, 4, 3):
        assert run_forked(partial(worker, size, folder), size, TIMEOUT_S) == [0] * size


# --- what the tests do with it

Records = list[dict[tuple[str, str], dict[str, Any]]]  # by rank


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Records]:
    """The records of all workers, by number of workers. What Python warns of, and all that is printed, is an error."""
    folder = tmp_path_factory.mktemp("worlds")
    done = run_script(__file__, str(folder), options=("-W", "error"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return {size: [torch.load(folder / f"{size} workers, rank {rank}.pt") for rank in range(size)] for size in (2, 3)}


ALL = [(size, name, stage) for size in (2, 3) for name in CASES for stage in STAGES]


def pair(worlds: dict[int, Records], size: int, name: str, stage: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What rank 0 has seen under ZeRO and under DDP."""
    return worlds[size][0][name, f"zero {stage}"], worlds[size][0][name, "ddp"]


def close(actual: Any, expected: Any, tolerance: float = AFTER) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("size", "name", "stage"), ALL)
def test_the_first_step_has_the_loss_of_ddp(worlds: dict[int, Records], size: int, name: str, stage: int) -> None:
    ours, theirs = pair(worlds, size, name, stage)
    close(ours["losses"][0], theirs["losses"][0], FIRST_STEP)


@pytest.mark.parametrize(("size", "name", "stage"), ALL)
def test_ten_steps_have_the_losses_and_weights_of_ddp(
    worlds: dict[int, Records], size: int, name: str, stage: int
) -> None:
    ours, theirs = pair(worlds, size, name, stage)
    assert theirs["losses"][-1] < 0.9 * theirs["losses"][0], "the model learns, or its losses say nothing"
    close(ours["losses"], theirs["losses"])
    close(ours["weights"], theirs["weights"])


@pytest.mark.parametrize(("size", "name", "stage"), ALL)
def test_gradient_norms_before_clipping_are_those_of_ddp(
    worlds: dict[int, Records], size: int, name: str, stage: int
) -> None:
    ours, theirs = pair(worlds, size, name, stage)
    close(ours["norms"], theirs["norms"])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("lars", "lamb"))])
@pytest.mark.parametrize("size", [2, 3])
def test_all_workers_have_the_trust_ratios_of_ddp(worlds: dict[int, Records], size: int, name: str) -> None:
    theirs = worlds[size][0][name, "ddp"]["ratios"]
    assert len(theirs[0]) == 4  # the weights that decay
    for stage in STAGES:
        for records in worlds[size]:
            assert records[name, f"zero {stage}"]["ratios"] == worlds[size][0][name, f"zero {stage}"]["ratios"]
        close(worlds[size][0][name, f"zero {stage}"]["ratios"], theirs, 1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_clipping_is_at_work_in_the_clipped_cases(worlds: dict[int, Records], size: int) -> None:
    clipped, free = worlds[size][0]["lars, clipped", "zero 2"], worlds[size][0]["lars", "zero 2"]
    assert min(clipped["norms"]) > 0.5
    assert abs(clipped["losses"][-1] / free["losses"][-1] - 1) > 100 * AFTER


@pytest.mark.parametrize("size", [2, 3])
def test_lars_is_that_of_one_group_a_tensor(worlds: dict[int, Records], size: int) -> None:
    oracle = worlds[size][0]["lars", "oracle"]
    for stage in (1, 2):
        ours = worlds[size][0]["lars", f"zero {stage}"]
        close(ours["losses"], oracle["losses"])
        close(ours["weights"], oracle["weights"])


@pytest.mark.parametrize(("size", "name", "stage"), ALL)
def test_all_workers_hold_the_same_model_and_give_the_same_state(
    worlds: dict[int, Records], size: int, name: str, stage: int
) -> None:
    first = worlds[size][0][name, f"zero {stage}"]
    for other in worlds[size][1:]:
        close(other[name, f"zero {stage}"]["weights"], first["weights"], 0)
        close(other[name, f"zero {stage}"]["state"], first["state"], 0)


@pytest.mark.parametrize(("size", "name", "stage"), ALL)
def test_the_optimizers_state_is_that_of_ddp(worlds: dict[int, Records], size: int, name: str, stage: int) -> None:
    ours, theirs = pair(worlds, size, name, stage)
    assert list(ours["state"]) == list(theirs["state"]) == list(theirs["weights"])
    adam = {"exp_avg", "exp_avg_sq", "step"}
    expected = adam if CASES[name].optimizer in ("lamb", "adamw") else {"momentum_buffer"}
    assert {key for entries in ours["state"].values() for key in entries} == expected
    close(ours["state"], theirs["state"])


@pytest.mark.parametrize("size", [2, 3])
def test_each_worker_holds_its_part_of_the_optimizers_state_from_stage_1_on(
    worlds: dict[int, Records], size: int
) -> None:
    def held(kind: str) -> list[int]:
        return [records["sgd", kind]["num_held"] for records in worlds[size]]

    [whole] = set(held("ddp"))
    assert held("zero 0") == [whole] * size
    for stage in (1, 2):
        # four groups, each padded to a multiple of twice the number of workers
        assert all(whole / size <= num < whole / size + 4 * 2 for num in held(f"zero {stage}"))


@pytest.mark.parametrize("kind", ["ddp", "zero 0", "zero 1", "zero 2"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_state_saved_under_zero_2_on_2_workers_goes_on_elsewhere_on_3(
    worlds: dict[int, Records], name: str, kind: str
) -> None:
    resumed, unbroken = worlds[3][0][f"{name}, resumed", kind], worlds[3][0][name, "ddp"]
    close(resumed["losses"], unbroken["losses"][BROKEN_AT:])
    close(resumed["weights"], unbroken["weights"])


@pytest.mark.parametrize("kind", ["ddp", "zero 1"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_that_4_workers_under_zero_2_wrote_in_parts_goes_on_elsewhere_on_3(
    worlds: dict[int, Records], name: str, kind: str
) -> None:
    resumed, unbroken = worlds[3][0][f"{name}, resumed from 4", kind], worlds[3][0][name, "ddp"]
    parts = [f"optimizer-0000{rank}-of-00004.safetensors" for rank in range(4)]
    assert worlds[3][0][f"{name}, resumed from 4", "files"]["names"] == ["model.safetensors", *parts, "state.json"]
    close(resumed["losses"], unbroken["losses"][BROKEN_AT:])
    close(resumed["weights"], unbroken["weights"])


def test_what_rank_0_finds_wrong_with_a_checkpoint_is_raised_on_every_worker(worlds: dict[int, Records]) -> None:
    texts = {records["no checkpoint", "error"]["text"] for records in worlds[3]}
    assert len(texts) == 1
    assert texts.pop().endswith("no checkpoint/manifest.json: is missing")


@pytest.mark.parametrize("stage", STAGES)
def test_autocast_is_that_of_ddp(worlds: dict[int, Records], stage: int) -> None:
    ours, theirs = pair(worlds, 3, "autocast", stage)
    float32 = worlds[3][0]["lars", "ddp"]
    assert abs(theirs["losses"][0] / float32["losses"][0] - 1) > 10 * FIRST_STEP, "bfloat16 is at work"
    close(ours["losses"], theirs["losses"], BFLOAT16_BAND)
    assert all(weight.dtype is torch.float32 for weight in ours["weights"].values())


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_exchanged_in_bfloat16_train_as_well(worlds: dict[int, Records], stage: int) -> None:
    ours, theirs = pair(worlds, 3, "gradients", stage)
    close(ours["losses"][0], theirs["losses"][0], FIRST_STEP)
    assert max(abs(a - b) for a, b in zip(ours["norms"], theirs["norms"], strict=True)) > 10 * AFTER, "at work"
    close(ours["losses"], theirs["losses"], BFLOAT16_BAND)


if __name__ == "__main__":
    all_worlds(Path(sys.argv[1]))
