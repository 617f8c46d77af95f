"""`data.on_error: replace` and `data.known_bad`: a run equals a computation that leaves its broken images out.

The reference is plain torch in this process: the good samples of each step, batch norm over what is left of each span,
and a loss divided by the number of good samples. Workers are gloo processes; this file, as a script, forks them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data import index_image_folder
from resnet_dist.data.loader import HostBatch, normalise
from resnet_dist.data.order import order_of
from resnet_dist.errors import DataError
from resnet_dist.models import build_model
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EngineRecipe,
    EvaluateRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink, read_metrics
from resnet_dist.training.trainer import Trainer
from tests.distributed.forked import run_forked, run_script

STEPS, BATCH, CLASSES, SMOOTHING, RATE = 5, 30, 5, 0.1, 0.05
# Position in the stream: of a single sample; the first span, and the part of the first of 3 workers; a pair of spans of
# which one sample is left; every third sample. Step 0 and the last have none.
BROKEN = [*range(30, 35), 47, 61, *range(65, 74), *range(90, 120, 3)]
KNOWN, BROKEN_VAL = 2, ("val/c1/3.png", "val/c4/0.png")
CASE_TIMEOUT_S = 60.0  # of each case: a hang is ended, a slow or busy machine is not


@dataclass(frozen=True)
class Case:
    workers: int
    micro_batches: int
    span: str
    kind: str = "replace"  # or known_bad, good (without broken images), fail, mixed, zero-0, zero-1, zero-2, limit

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in asdict(self).values())


EXACT = [
    Case(1, 1, "global"),
    Case(1, 3, "5"),
    Case(2, 1, "global"),
    Case(2, 2, "5"),
    Case(3, 1, "5"),
    Case(3, 3, "5"),
    Case(3, 1, "global", "known_bad"),
]
ZERO = [Case(2, 3, "5", f"zero-{stage}") for stage in (0, 1, 2)]
OTHERS = [
    Case(1, 3, "5", "ddp-float32"),
    Case(1, 1, "5", "mixed"),
    Case(2, 3, "5", "mixed"),
    Case(2, 2, "5", "good"),
    Case(2, 2, "5", "fail"),
    Case(2, 1, "5", "limit"),
]


def write_images(root: Path) -> None:
    random = np.random.default_rng(0)
    for split, num in (("train", 50), ("val", 5)):
        for label in range(CLASSES):
            folder = root / split / f"c{label}"
            folder.mkdir(parents=True)
            for number in range(num):
                pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8) // 2
                pixels[:, :, label % 3] += np.uint8(20 * label)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def damage(file: Path) -> None:
    """Make the compressed pixels unreadable; header and end stay."""
    content = file.read_bytes()
    start = content.index(b"IDAT") + 4
    file.write_bytes(content[:start] + b"\xff" * 16 + content[start + 16 :])


def recipe(case: Case, folder: Path) -> Recipe:
    root = folder / ("good" if case.kind in ("good", "fail") else "damaged")
    known = case.kind == "known_bad"
    data = DataRecipe(
        root=str(root),
        resolution=16,
        flip=False,
        crop_area=(0.8, 1.0),
        on_error="fail" if known or case.kind == "fail" else "replace",
        max_bad_images=3 if case.kind == "limit" else 0.001 if known or case.kind == "fail" else 0.9,
        known_bad=str(folder / ("all.txt" if known else "some.txt")) if case.kind not in ("good", "fail") else None,
    )
    engine, _, stage = case.kind.partition("-")
    mixed = case.kind == "mixed"
    return Recipe(
        data=data,
        batch=BatchRecipe(size=BATCH, num_micro_batches=case.micro_batches),
        duration=Duration.parse(f"{STEPS} steps"),
        schedule=ScheduleRecipe(peak_lr=RATE, decay="constant"),
        model=ModelRecipe(name="resnet8", num_classes=CLASSES),
        batch_norm=BatchNormRecipe(span="global" if case.span == "global" else int(case.span)),
        optimizer=OptimizerRecipe(name="sgd", momentum=0.9, weight_decay=1e-3),
        regularization=RegularizationRecipe(
            label_smoothing=SMOOTHING,
            mixup=0.4 if mixed else 0.0,
            cutmix=1.0 if mixed else 0.0,
            random_erasing=0.5 if mixed else 0.0,
            dropout=0.2 if mixed else 0.0,
        ),
        evaluate=EvaluateRecipe(train=mixed, precise_batch_norm=2 if mixed else 0),
        engine=EngineRecipe(name="zero", stage=int(stage)) if engine == "zero" else EngineRecipe(),
        precision="float32" if engine == "zero" or stage == "float32" else "float64",
    )


def trainer_of(case: Case, folder: Path, rank: int) -> Trainer:
    run = folder / case.name
    options = RunOptions(CheckpointOptions(run / "checkpoints"), run / "index", Duration.parse("1000 steps"), 1)
    sink = MetricsFile(run / "metrics.jsonl") if rank == 0 else NoSink()
    return build(recipe(case, folder), Worker(rank, case.workers, torch.device("cpu"), 1), options, sink, Unattended())


def outcome(case: Case, folder: Path, rank: int) -> dict[str, Any]:
    """What a run ends with; its records are in metrics.jsonl."""
    try:
        trainer = trainer_of(case, folder, rank)
        trainer.fit()
    except DataError as error:
        return {"error": str(error)}
    state = trainer.parts.engine.module.state_dict()
    bad = trainer.parts.bad
    return {
        "squares": {name: tensor.double().square().sum().item() for name, tensor in state.items()},
        "bad": {} if bad is None else bad.state(),
    }


# --- the workers: `python test_replace.py FOLDER`; FOLDER/world-N.json says what to run


def work(folder: Path, workers: int, cases: Sequence[Case], rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{workers}", rank=rank, world_size=workers)
    found = {case.name: outcome(case, folder, rank) for case in cases}
    (folder / f"outcomes-{workers}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def all_worlds(folder: Path) -> None:
    cases = [Case(**case) for case in json.loads((folder / "cases.json").read_text())]
    if any(case.kind.startswith("zero") for case in cases):
        import resnet_dist.engines.zero  # noqa: F401 # once for all workers
    for workers in (3, 2, 1):
        own = [case for case in cases if case.workers == workers]
        found = run_forked(partial(work, folder, workers, own), workers, CASE_TIMEOUT_S * len(own))
        assert found == [0] * workers, (workers, found)


# --- the reference


class PartsNorm(nn.Module):
    """Batch norm of each part of a batch by itself; keeps the values of a step for the running statistics."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer, self.sizes, self.values = layer, [0], list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.values.append(x.detach())
        parts = [part for part in torch.split(x, self.sizes) if len(part)]
        weight, bias = self.layer.weight, self.layer.bias
        return torch.cat([F.batch_norm(part, None, None, weight, bias, True) for part in parts] or [x])

    def end_step(self) -> None:
        values = torch.cat(self.values).transpose(0, 1).flatten(1)
        self.values = []
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        self.layer.running_mean.lerp_(values.mean(1), 0.1)
        self.layer.running_var.lerp_(values.var(1), 0.1)


def reference(case: Case, batches: Sequence[HostBatch], broken: set[int]) -> tuple[list[dict[str, float]], nn.Module]:
    """Loss, accuracy and gradient norm of every step, and the model. `broken`: positions in the stream."""
    data = DataRecipe(root="none")
    model = build_model(ModelRecipe(name="resnet8", num_classes=CLASSES), 0).double()
    norms = {name: PartsNorm(m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    original = copy.copy(norms)
    for name, norm in norms.items():
        model.set_submodule(name, norm)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    size = BATCH // case.micro_batches
    span = size if case.span == "global" else int(case.span)
    records = []
    for step in range(STEPS):
        num_good, loss_sum, correct = BATCH - len(broken & set(range(step * BATCH, (step + 1) * BATCH))), 0.0, 0
        optimizer.zero_grad()
        for batch in batches[step * case.micro_batches : (step + 1) * case.micro_batches]:
            good = torch.tensor([position not in broken for position in batch.positions.tolist()])
            for norm in norms.values():
                norm.sizes = good.view(-1, span).sum(1).tolist()
            logits = model(normalise(batch.images, data.mean, data.std, torch.float64)[good])
            labels = batch.labels[good]
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=SMOOTHING)
            (loss / num_good).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
        norm_squared = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
        records.append({"loss": loss_sum / num_good, "top1": correct / num_good, "gradient_norm": norm_squared**0.5})
        optimizer.step()
        for norm in norms.values():
            norm.end_step()
    for name, norm in original.items():
        model.set_submodule(name, norm.layer)
    return records, model


# --- the tests


@dataclass
class Found:
    folder: Path
    positions: set[int]
    names: list[str]
    outcomes: dict[str, list[dict[str, Any]]]  # of the ranks

    def records(self, case: Case, kind: str) -> list[dict[str, Any]]:
        return [
            r for r in read_metrics(self.folder / case.name / "metrics.jsonl") if kind in (r["kind"], r.get("event"))
        ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("replace")
    for kind in ("good", "damaged"):
        write_images(folder / kind)
    index = index_image_folder(str(folder / "damaged"), "train")
    ids = order_of(index, DataRecipe(), 0).sample_ids(np.array(BROKEN))
    names = [index.paths[row] for row in ids.tolist()]
    for name in (*names, *BROKEN_VAL):
        damage(folder / "damaged" / name)
    (folder / "some.txt").write_text("# two of them\n" + "\n".join(names[:KNOWN]) + "\n")
    (folder / "all.txt").write_text("\n".join((*names, *BROKEN_VAL)))
    cases = [*EXACT, *OTHERS]
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        pass
    else:
        cases += ZERO
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    done = run_script(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for case in cases:
        for rank in range(case.workers):
            own = json.loads((folder / f"outcomes-{case.workers}-{rank}.json").read_text())
            outcomes[case.name].append(own[case.name])
    return Found(folder, set(BROKEN), names, outcomes)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_a_run_equals_a_computation_that_leaves_the_broken_images_out(found: Found, case: Case) -> None:
    batches = batches_of(found, case)
    expected, model = reference(case, batches, found.positions)
    records = found.records(case, "train")
    for record, wanted in zip(records, expected, strict=True):
        assert record["top1"] == pytest.approx(wanted["top1"], rel=1e-15)
        for key in ("loss", "gradient_norm"):
            assert record[key] == pytest.approx(wanted[key], rel=1e-12 if record["step"] == 1 else 1e-10), key
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            squares = found.outcomes[case.name][0]["squares"][name]
            assert squares == pytest.approx(tensor.square().sum().item(), rel=1e-10), name


def batches_of(found: Found, case: Case) -> list[HostBatch]:
    """All micro-batches as one worker decodes them where no image is broken."""
    run = found.folder / "batches" / case.name
    options = RunOptions(CheckpointOptions(run / "checkpoints"), run / "index", Duration.parse("1000 steps"), 1)
    good = recipe(dataclasses.replace(case, kind="good"), found.folder)
    trainer = build(good, Worker(0, 1, torch.device("cpu"), 1), options, NoSink(), Unattended())
    trainer.parts.checkpoints.close(patient=True)
    return list(trainer.parts.batches_from(0))


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_broken_images_are_counted_and_named_once(found: Found, case: Case) -> None:
    by_step = [len(found.positions & set(range(step * BATCH, (step + 1) * BATCH))) for step in range(STEPS)]
    assert by_step == [0, 6, 10, 10, 0]
    records = found.records(case, "train")
    assert [record["num_left_out"] for record in records] == np.cumsum(by_step).tolist()
    known = set(found.names) | set(BROKEN_VAL) if case.kind == "known_bad" else set(found.names[:KNOWN])
    events = [(record["step"], record["detail"]["path"]) for record in found.records(case, "bad_image")]
    in_training = [(position // BATCH + 1, name) for position, name in zip(BROKEN, found.names, strict=True)]
    expected = [*in_training, *((STEPS, name) for name in BROKEN_VAL)]
    assert sorted(events) == sorted((step, name) for step, name in expected if name not in known)
    for outcome_of_rank in found.outcomes[case.name]:
        assert outcome_of_rank["bad"]["num_samples"] == sum(by_step)
        assert set(outcome_of_rank["bad"]["images"]) == {name for _, name in events}


def test_an_evaluation_leaves_broken_images_out_on_any_number_of_workers(found: Found) -> None:
    for case in EXACT:
        [evaluation] = found.records(case, "eval")
        assert (evaluation["num_samples"], evaluation["num_bad"]) == (23, 2)
        assert round(evaluation["top1"] * 23) == pytest.approx(evaluation["top1"] * 23, abs=1e-9)
    [whole] = found.records(OTHERS[3], "eval")
    assert whole["num_samples"] == 25
    assert "num_bad" not in whole


def test_a_run_without_broken_images_has_the_bits_of_one_that_would_fail(found: Found) -> None:
    good, fails = (next(case for case in OTHERS if case.kind == kind) for kind in ("good", "fail"))
    assert found.outcomes[good.name][0]["squares"] == found.outcomes[fails.name][0]["squares"]
    keys = ("loss", "top1", "gradient_norm", "sample_ids")
    own, theirs = ([[r[key] for key in keys] for r in found.records(case, "train")] for case in (good, fails))
    assert own == theirs
    assert "num_left_out" not in found.records(fails, "train")[0]


def test_mixed_images_have_one_curve_on_any_number_of_workers(found: Found) -> None:
    one, two = (case for case in OTHERS if case.kind == "mixed")
    for own, theirs in zip(found.records(two, "train"), found.records(one, "train"), strict=True):
        assert own["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
    assert own["num_left_out"] == len(BROKEN)
    [own], [theirs] = (found.records(case, "eval") for case in (two, one))
    for key in ("loss", "train_loss"):  # with the batch norm of the last steps, one of which has broken samples
        assert own[key] == pytest.approx(theirs[key], rel=1e-10)
    assert own["train_top1"] == theirs["train_top1"]
    assert own["train_num_bad"] == len(BROKEN)


@pytest.mark.parametrize("case", ZERO, ids=lambda case: case.name)
def test_zero_has_the_curve_of_ddp(found: Found, case: Case) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    records, expected = found.records(case, "train"), found.records(OTHERS[0], "train")
    for record, wanted in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-6 if record["step"] == 1 else 2e-4)
        assert record["num_left_out"] == wanted["num_left_out"]


def test_too_many_broken_images_end_the_run_on_every_worker_and_name_some(found: Found) -> None:
    errors = [outcome_of_rank["error"] for outcome_of_rank in found.outcomes[OTHERS[-1].name]]
    assert len(errors) == 2
    assert errors[0] == errors[1]
    assert "4 broken images, for example train/c" in errors[0]
    assert "more than data.max_bad_images allows (3)" in errors[0]


if __name__ == "__main__":
    all_worlds(Path(sys.argv[1]))
