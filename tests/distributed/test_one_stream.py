"""One stream of samples, wherever they are stored: 3 workers, then 2, then 4, in the middle of epochs.

Loose files, tar shards and packed shards of the same images, in float64. This file, as a script, forks the workers.
"""

from __future__ import annotations

import io
import sys
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from launcher.prepare.packing import Options, pack
from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data import index_image_folder
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EvaluateRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink, read_metrics
from tests.distributed.forked import run_forked, run_script

STEPS, BATCH = 14, 13  # epochs of 48 images end inside of steps 4, 8 and 12
STOPS = {3: 5, 2: 9, 4: STEPS}  # workers: the step after which they stop
ALONE = {1: STEPS}
SAME = 1e-9  # relative difference of losses in float64
TIMEOUT_S = 60


@dataclass(frozen=True)
class Case:
    source: str
    order: str
    changing: bool  # the number of workers changes

    @property
    def name(self) -> str:
        return f"{self.source}-{self.order}-{'changing' if self.changing else 'alone'}"


SOURCES = ("imagefolder", "webdataset", "packed")
CASES = [
    *(Case(source, "uniform", changing=True) for source in SOURCES),
    *(Case(source, "shards", changing=True) for source in SOURCES[1:]),
]
BASELINES = [Case("imagefolder", "uniform", False), *(Case(source, "shards", False) for source in SOURCES[1:])]


# --- the images


def write_images(folder: Path) -> None:
    """imagefolder/, webdataset/ and packed/: 48 training images in 3 classes, 6 for val."""
    random, loose = np.random.default_rng(0), folder / "imagefolder"
    for split, per_class in (("train", 16), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            (loose / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = random.integers(0, 256, (128, 128, 3), dtype=np.uint8)  # noise: 48 kB each
                Image.fromarray(pixels).save(loose / split / name / f"{number:02}.png")
    (folder / "webdataset").mkdir()
    (folder / "webdataset" / "classes.txt").write_text("ant\nbee\ncat\n")
    for split, num_shards in (("train", 5), ("val", 1)):
        index = index_image_folder(str(loose), split)  # type: ignore[arg-type]
        for shard, rows in enumerate(np.array_split(np.arange(len(index)), num_shards)):
            with tarfile.open(folder / "webdataset" / f"{split}-{shard:03}.tar", "w") as archive:
                for row in rows.tolist():
                    image, label = Path(index.path(row)).read_bytes(), str(index.labels[row]).encode()
                    for suffix, content in (("png", image), ("cls", label)):
                        member = tarfile.TarInfo(f"{row:03}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    list(pack(DataRecipe(root=str(loose)), folder / "packed", Options(shard_mb=1, shuffle=True)))


def recipe(case: Case, folder: Path) -> Recipe:
    shards = {"order": "shards", "shuffle_window": 20} if case.order == "shards" else {}
    return Recipe(
        data=DataRecipe(root=str(folder / case.source), source=case.source, resolution=16, **shards),  # type: ignore[arg-type]
        batch=BatchRecipe(size=BATCH),
        duration=Duration.parse(f"{STEPS} steps"),
        schedule=ScheduleRecipe(peak_lr=0.05),
        model=ModelRecipe(name="resnet8", num_classes=3, width=0.25),
        batch_norm=BatchNormRecipe(span="global"),
        optimizer=OptimizerRecipe(name="sgd"),
        precision="float64",
        evaluate=EvaluateRecipe(every=Duration.parse("1000 steps")),
    )


# --- the workers: `python test_one_stream.py FOLDER`


class Stops(Unattended):
    """Asks for a stop so that `steps` steps are done since the attempt began."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def stop_requested(self) -> bool:
        self._left -= 1
        return self._left == 1  # it takes effect one step later


def train(case: Case, folder: Path, rank: int, workers: int, end: int) -> None:
    """Train from the newest checkpoint, if there is one, to step `end`."""
    run = folder / case.name
    saved = restore.newest(run / "checkpoints") if (run / "checkpoints").exists() else None
    never = Duration.parse("1000 steps")
    options = RunOptions(CheckpointOptions(run / "checkpoints"), run / "index", never, log_every=1)
    worker = Worker(rank, workers, torch.device("cpu"), num_threads=1)
    sink = MetricsFile(run / "metrics.jsonl") if rank == 0 else NoSink()
    supervisor = Unattended() if end == STEPS else Stops(end - (0 if saved is None else saved.step))
    build(recipe(case, folder), worker, options, sink, supervisor, None if saved is None else saved.path).fit()
    sink.close()


def work(folder: Path, cases: list[Case], workers: int, end: int, rank: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{workers}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    for case in cases:
        train(case, folder, rank, workers, end)
    dist.destroy_process_group()


def all_worlds(folder: Path) -> None:
    write_images(folder)
    for cases, stops in ((CASES, STOPS), (BASELINES, ALONE)):
        for workers, end in stops.items():
            found = run_forked(partial(work, folder, cases, workers, end), workers, TIMEOUT_S)
            assert found == [0] * workers, (workers, found)


# --- the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_stream")
    done = run_script(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def records(folder: Path, case: Case) -> list[dict[str, Any]]:
    return [dict(record) for record in read_metrics(folder / case.name / "metrics.jsonl")]


def ledger(found: list[dict[str, Any]]) -> list[dict[str, int]]:
    return [record["detail"] for record in found if record.get("event") == "epoch_complete"]


def steps(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(record["step"], record["sample_ids"]) for record in found if record["kind"] == "train"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_stream_and_the_losses_do_not_depend_on_workers_and_storage(folder: Path, case: Case) -> None:
    found = records(folder, case)
    alone = "imagefolder" if case.order == "uniform" else case.source
    expected = records(folder, Case(alone, case.order, changing=False))
    assert [record["step"] for record in found if record.get("event") == "started"] == [0, 5, 9]
    assert steps(found) == steps(expected)
    assert [step for step, _ in steps(found)] == list(range(1, STEPS + 1))
    assert ledger(found) == ledger(expected)
    assert [record["num_samples"] for record in ledger(found)] == [48, 48, 48]
    losses = [[record["loss"] for record in one if record["kind"] == "train"] for one in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=SAME)


def test_orders_and_epochs_differ(folder: Path) -> None:
    """Otherwise the test above could not fail."""
    ledgers = {case.name: ledger(records(folder, case)) for case in BASELINES}
    assert len({tuple(record["pairs"] for record in epochs) for epochs in ledgers.values()}) == len(BASELINES)
    assert len({record["samples"] for epochs in ledgers.values() for record in epochs}) == 1


if __name__ == "__main__":
    all_worlds(Path(sys.argv[1]))
