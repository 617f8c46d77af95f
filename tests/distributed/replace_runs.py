"""The runs of test_replace.py: gloo processes, which this file, as a script, forks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.errors import DataError
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
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink
from resnet_dist.training.trainer import Trainer
from tests.distributed.forked import run_forked

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


# --- the workers: `python replace_runs.py FOLDER`; FOLDER/cases.json says what to run


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


if __name__ == "__main__":
    all_worlds(Path(sys.argv[1]))
