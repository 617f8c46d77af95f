"""One curve, whatever trains it: workers, engines, micro-batches, optimizers, batch-norm spans, clipping.

    pytest tests/distributed/test_one_curve.py            a covering array: every pair of values meets
    python tests/distributed/test_one_curve.py --full     every combination, as the tables of docs/reproducibility.md
    python tests/distributed/test_one_curve.py --rounded  its second table: half precisions
    python tests/distributed/test_one_curve.py --kernels  its third table: the same sums in another order

A world of gloo processes is started once for each number of workers; this file, as a script, forks them.
One more run is killed in the world of three, goes on in that of two, is killed again, and ends in that of one.
DDP computes in float64, where a mistake stands out by ten orders of magnitude; ZeRO's weights are float32, so it is
held against DDP in float32, within the band that float32 itself has when only the number of workers changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.prepare.digits import write_digits
from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    AugmentationRecipe,
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    EngineRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
    SpeedRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink, read_metrics
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.evaluate import Evaluation
from tests.distributed.forked import run_forked, run_script

STEPS, STEPS_OF_TABLES = 10, 20
DIFFERENCES = f"step 1 | {STEPS_OF_TABLES} steps"  # the last columns of the tables
BATCH = 30  # 30, 15 and 10 samples a micro-batch: nothing divides by 4, and only 30 by 2
# With half precisions nothing can be the same; asserted is ten times what their rounding was seen to do here.
FIRST_STEP = {"float64": 1e-12, "float32": 1e-6, "bfloat16": 2e-4, "float16": 1e-5, "bfloat16 gradients": 1e-6}
# float32: losses only, since the gradient's norm amplifies rounding a hundred times more; 7.8e-5 was the largest seen
ALL_STEPS = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 2e-3, "float16": 5e-4, "bfloat16 gradients": 1e-4}
# lamb and adamw divide by the size of each element, which amplifies rounding; 1.7e-4 was the largest seen
ADAPTIVE_FLOAT32 = 2e-3
EMA_DECAY = 0.9
LAYERS_EVERY = 5  # steps
NUM_VAL = 355  # images of the val split: no multiple of workers x evaluate.batch_size, which is 64
KILLED_IN, CHECKPOINT_EVERY = 4, 3  # steps, the first since an attempt began
CASE_TIMEOUT_S = 60  # of each case: a hang is ended, a slow or busy machine is not


@dataclass(frozen=True)
class Case:
    workers: int
    engine: str
    micro_batches: int
    optimizer: str
    span: str
    clipping: bool
    precision: str
    variant: str = ""  # of VARIANTS

    @property
    def baseline(self) -> Case:
        """The same recipe in one process, with DDP and whole batches."""
        precision = "float32" if self.precision == "bfloat16 gradients" else self.precision
        return Case(1, "ddp", 1, self.optimizer, self.span, self.clipping, precision, self.variant)

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in asdict(self).values() if value != "")


VALUES: dict[str, tuple[Any, ...]] = {
    "workers": (1, 2, 3, 4),
    "engine": ("ddp", "zero-0", "zero-1", "zero-2"),
    "micro_batches": (1, 2, 3),
    "optimizer": ("sgd", "lars"),
    "span": ("global", "5"),
    "clipping": (False, True),
}


def every_case() -> list[Case]:
    """The full product, without what the rules refuse: global spans of more than one micro-batch."""
    cases = []
    for values in itertools.product(*VALUES.values()):
        case = Case(*values, precision="float64" if values[1] == "ddp" else "float32")
        if not (case.span == "global" and case.micro_batches > 1):
            cases.append(case)
    return cases


ROUNDED = [
    Case(2, "ddp", 2, "sgd", "5", False, "bfloat16"),
    Case(3, "zero-1", 1, "lars", "global", False, "bfloat16"),
    Case(2, "ddp", 1, "lars", "5", False, "float16"),
    Case(2, "ddp", 2, "sgd", "5", True, "bfloat16 gradients"),
    Case(3, "zero-2", 1, "sgd", "global", False, "bfloat16 gradients"),
]

# Changes of the recipe that no pair of values above reaches: sections with their keys.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "": {},
    "frozen": {"model": {"freeze": ("conv1", "bn1", "layer1", "layer3.0.bn1")}, "data": {"subset": 200}},
    "evaluation": {"evaluate": {"train": True, "precise_batch_norm": 2, "metrics": (f"{__name__}:margin",)}},
    "nesterov": {"optimizer": {"nesterov": True, "lr_factors": {"layer2": 0.5}}},  # its layers are recorded, too
    # The epsilons are large because both divide by the gradient's size: where it is only rounding, as for a bias before
    # batch norm, they would make steps of that rounding. ZeRO computes in float32.
    "lamb": {"optimizer": {"name": "lamb", "nesterov": False, "epsilon": 0.01}, "schedule": {"peak_lr": 0.005}},
    "adamw": {"optimizer": {"name": "adamw", "nesterov": False, "epsilon": 0.01}, "schedule": {"peak_lr": 0.001}},
    "penalties": {
        "optimizer": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "regularization": {"l1": 1e-3},
    },
    "masks": {"regularization": {"dropout": 0.2, "stochastic_depth": 0.3}},
    "mixed": {
        "data": {"color_jitter": 0.4, "augmentation": AugmentationRecipe(name="randaugment")},
        "loss": {"name": "bce", "target_threshold": 0.2, "class_weights": "balanced"},
        "regularization": {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.5},
    },
}
VARIED = [
    Case(2, "ddp", 1, "lars", "5", False, "float64", "nesterov"),
    Case(3, "ddp", 2, "lars", "5", False, "float64", "nesterov"),
    Case(2, "zero-2", 1, "lars", "global", True, "float32", "nesterov"),
    Case(2, "ddp", 2, "lars", "5", True, "float64", "lamb"),
    Case(3, "ddp", 1, "lars", "5", True, "float64", "lamb"),
    Case(3, "zero-1", 2, "lars", "5", False, "float32", "lamb"),
    Case(2, "ddp", 1, "sgd", "global", True, "float64", "adamw"),
    Case(3, "ddp", 3, "sgd", "5", True, "float64", "adamw"),
    Case(3, "zero-2", 1, "sgd", "global", False, "float32", "adamw"),
    Case(2, "ddp", 3, "sgd", "5", True, "float64", "penalties"),
    Case(3, "ddp", 1, "sgd", "5", True, "float64", "penalties"),
    Case(2, "zero-1", 2, "sgd", "5", True, "float32", "penalties"),
    Case(2, "ddp", 2, "sgd", "5", False, "float64", "masks"),
    Case(3, "ddp", 1, "lars", "global", True, "float64", "masks"),
    Case(2, "zero-1", 1, "sgd", "global", False, "float32", "masks"),
    Case(2, "ddp", 2, "lars", "5", False, "float64", "evaluation"),
    Case(3, "ddp", 1, "sgd", "global", False, "float64", "evaluation"),
    Case(2, "ddp", 2, "sgd", "5", False, "float64", "frozen"),
    Case(3, "ddp", 1, "lars", "global", True, "float64", "frozen"),
    Case(3, "zero-1", 1, "lars", "5", False, "float32", "frozen"),
    Case(2, "ddp", 1, "sgd", "5", False, "float64", "mixed"),
    Case(3, "ddp", 3, "lars", "5", True, "float64", "mixed"),  # 5 pairs a micro-batch: 2, 4, 4 samples
]

# of the run that is killed; on 3 workers 3, 3, 4 samples
RESIZED = Case(3, "ddp", 3, "lars", "5", True, "float64", "masks")


def covering_array() -> list[Case]:
    """A few cases in which every pair of values meets that can meet at all; greedy, the same every time."""

    def pairs(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        return set(itertools.combinations([(key, getattr(case, key)) for key in VALUES], 2))

    candidates = every_case()
    missing = set().union(*map(pairs, candidates))
    chosen = []
    while missing:
        best = max(candidates, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def recipe(case: Case, root: Path, speed: SpeedRecipe, steps: int) -> Recipe:
    engine, _, stage = case.engine.partition("-")
    base = Recipe(
        data=DataRecipe(root=str(root), resolution=16, crop_area=(0.7, 1.0), flip=False),
        batch=BatchRecipe(size=BATCH, num_micro_batches=case.micro_batches),
        duration=Duration.parse(f"{steps} steps"),
        schedule=ScheduleRecipe(peak_lr=0.002 if case.optimizer == "sgd" else 0.05, warmup=Duration.parse("5 steps")),
        model=ModelRecipe(name="resnet20", num_classes=10),
        batch_norm=BatchNormRecipe(span="global" if case.span == "global" else int(case.span)),
        optimizer=OptimizerRecipe(
            name=case.optimizer,
            nesterov=case.optimizer == "sgd",
            weight_decay=1e-4,
            gradient_clipping=1.0 if case.clipping else None,
        ),
        regularization=RegularizationRecipe(label_smoothing=0.1),
        engine=EngineRecipe(
            name=engine,
            stage=int(stage) if stage else None,
            gradient_dtype="bfloat16" if case.precision == "bfloat16 gradients" else None,
        ),
        precision="float32" if case.precision == "bfloat16 gradients" else case.precision,  # type: ignore[arg-type]
        speed=speed,
    )
    sections = VARIANTS[case.variant].items()
    return dataclasses.replace(base, **{key: dataclasses.replace(getattr(base, key), **own) for key, own in sections})


def curve(
    case: Case, root: Path, folder: Path, rank: int, steps: int, speed: SpeedRecipe | None = None, num_threads: int = 1
) -> list[dict[str, float]]:
    """Loss, learning rate, gradient norm and samples of every step; of the last, the weights' moving average too.

    In float64 the last record also has what an evaluation of the model finds.
    """
    options = RunOptions(
        CheckpointOptions(folder / "checkpoints"),
        folder / "index",
        Duration.parse("1000 steps"),
        log_every=1,
        layers_every=LAYERS_EVERY if case.variant == "nesterov" and case.engine == "ddp" else None,
    )
    worker = Worker(rank, case.workers, torch.device("cpu"), num_threads=num_threads)
    trainer = build(recipe(case, root, speed or SpeedRecipe(), steps), worker, options, NoSink(), Unattended())
    parts, records = trainer.parts, []
    with torch.no_grad():
        weights = sum(parameter.double().square().sum().item() for parameter in parts.engine.module.parameters())
    before = evaluated(parts.evaluate(3)) if case.variant == "evaluation" else {}  # of the initial weights
    average = WeightAverage(parts.engine.module, EMA_DECAY)
    batches = parts.batches_from(0)
    for step in range(1, steps + 1):
        taken = list(itertools.islice(batches, case.micro_batches))
        rate = parts.learning_rate(step - 1)
        parts.layers.begin(step)
        sums = parts.engine.step(map(parts.to_device, taken), rate)
        checksum = sum(batch.checksum for batch in taken)
        parts.layers.reduce()
        totals = parts.exchange.finish(step, sums, checksum=checksum).read()
        if not sums.skipped:
            average.update(step)
        records.append({"loss": totals.loss, "lr": rate, "norm": totals.gradient_norm, "ids": totals.checksum})
        for layer, numbers in (parts.layers.end(step, sums) or {"layers": {}})["layers"].items():
            records[-1] |= {f"{key} of {layer}": value for key, value in numbers.items()}
    batches.close()
    parts.checkpoints.close(patient=True)
    records[0]["weights"] = weights
    records[-1]["average"] = squares(average.state())
    if case.precision == "float64":
        records[0] |= before
        records[-1] |= evaluated(parts.evaluate(steps))
    return records


def evaluated(evaluation: Evaluation) -> dict[str, float]:
    values = evaluation.record()
    return {f"val {key}": value for key, value in (values | values.pop("metrics", {})).items() if key != "weights"}


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric of the user's."""
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1) - logits.amax(1)


def squares(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors.values())


# --- a run that is killed, and goes on with fewer workers


class Killed(Unattended):
    """Rank 0 kills every worker in a step that all of them have come to, once a checkpoint is on the disk."""

    def __init__(self, rank: int, pids: list[int], checkpoint: Path) -> None:
        self._rank, self._pids, self._checkpoint = rank, pids, checkpoint
        self._num_steps = 0

    def stop_requested(self) -> bool:
        self._num_steps += 1
        if self._num_steps == KILLED_IN:
            while self._rank > 0 or not self._checkpoint.exists():
                time.sleep(0.01)
            for pid in reversed(self._pids):  # its own comes last
                os.kill(pid, signal.SIGKILL)
        return False


def go_on(run: Path, root: Path, rank: int, workers: int) -> None:
    """Train from the newest checkpoint of `run` on: one worker to the end, more until they are killed."""
    saved = restore.newest(run / "checkpoints")
    supervisor = Unattended()
    if workers > 1:
        pids = [0] * workers
        dist.all_gather_object(pids, os.getpid())
        next_step = (0 if saved is None else saved.step) + CHECKPOINT_EVERY
        supervisor = Killed(rank, pids, run / "checkpoints" / f"step-{next_step:08d}")
    every = Duration.parse(f"{CHECKPOINT_EVERY} steps")
    options = RunOptions(CheckpointOptions(run / "checkpoints", Retention(1)), run / "index", every, log_every=1)
    averaged = dataclasses.replace(recipe(RESIZED, root, SpeedRecipe(), STEPS), ema=EmaRecipe(decay=EMA_DECAY))
    worker = Worker(rank, workers, torch.device("cpu"), num_threads=1)
    sink = MetricsFile(run / "metrics.jsonl") if rank == 0 else NoSink()
    build(averaged, worker, options, sink, supervisor, None if saved is None else saved.path).fit()
    sink.close()


# --- the workers: `python test_one_curve.py FOLDER`; FOLDER/world-N/cases.json says what to run


def work(folder: Path, workers: int, rank: int) -> None:
    """Be one worker of a world."""
    torch.set_num_threads(1)
    job = json.loads((folder / "cases.json").read_text())
    cases = [Case(**case) for case in job["cases"]]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    curves = {case.name: curve(case, Path(job["root"]), folder, rank, job["steps"]) for case in cases}
    if rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))
    if job["resized"]:
        go_on(folder.parent / "resized", Path(job["root"]), rank, workers)
    dist.destroy_process_group()


def all_worlds(folder: Path) -> None:
    """Run the worlds that were written, the largest first."""
    with contextlib.suppress(ImportError):
        import resnet_dist.engines.zero  # noqa: F401 # once for all workers: DeepSpeed takes seconds
    for workers in sorted((int(world.name.removeprefix("world-")) for world in folder.glob("world-*")), reverse=True):
        world = folder / f"world-{workers}"
        job = json.loads((world / "cases.json").read_text())
        code = -signal.SIGKILL if job["resized"] and workers > 1 else 0
        found = run_forked(partial(work, world, workers), workers, CASE_TIMEOUT_S * len(job["cases"]))
        assert found == [code] * workers, (workers, found)


def run_worlds(
    cases: list[Case], folder: Path, steps: int, *, resized: bool = False
) -> dict[str, list[dict[str, float]]]:
    """The curves of `cases` and of their baselines, by the case's name; `resized`: with the run that is killed."""
    root = write_digits(folder / "digits")
    wanted = sorted({*cases, *(case.baseline for case in cases)}, key=lambda case: case.name)
    sizes = sorted({case.workers for case in wanted})
    for workers in sizes:
        world = folder / f"world-{workers}"
        world.mkdir()
        own = [asdict(case) for case in wanted if case.workers == workers]
        goes_on = resized and workers <= RESIZED.workers
        job = {"root": str(root), "steps": steps, "cases": own, "resized": goes_on}
        (world / "cases.json").write_text(json.dumps(job))
    done = run_script(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / f"world-{workers}" / "curves.json").read_text()) for workers in sizes]
    return {name: curve for curves in found for name, curve in curves.items()}


def differences(curve: list[dict[str, float]], other: list[dict[str, float]], precision: str) -> tuple[float, float]:
    """The largest relative difference of the losses (in float64 of gradient norms too): at step 1, over all steps."""
    keys = ("loss", "norm") if precision == "float64" else ("loss",)
    by_step = [
        max(abs(own[key] - theirs[key]) / abs(theirs[key]) for key in keys)
        for own, theirs in zip(curve, other, strict=True)
    ]
    return by_step[0], max(by_step)


# --- the tests

CASES = covering_array() + ROUNDED + VARIED


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def curves(worlds: Path) -> dict[str, list[dict[str, float]]]:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return run_worlds([*CASES, RESIZED], worlds, STEPS, resized=True)


def test_every_pair_of_values_meets() -> None:
    met = {pair for case in CASES for pair in itertools.combinations(asdict(case).items(), 2)}
    assert (("workers", 4), ("engine", "zero-2")) in met
    assert (("engine", "zero-1"), ("optimizer", "lars")) in met
    assert (("workers", 3), ("micro_batches", 3)) in met


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_has_the_curve_of_its_baseline(curves: dict[str, list[dict[str, float]]], case: Case) -> None:
    own, baseline = curves[case.name], curves[case.baseline.name]
    for key in ("ids", "lr"):
        assert [record[key] for record in own] == [record[key] for record in baseline]
    assert own[0]["weights"] == pytest.approx(baseline[0]["weights"], rel=1e-12)  # summed in another memory layout
    first, all_steps = differences(own, baseline, case.precision)
    print(f"{case.name}: {first:.1e} at step 1, {all_steps:.1e} over {STEPS} steps")
    band = ADAPTIVE_FLOAT32 if case.variant in ("lamb", "adamw") and case.precision == "float32" else None
    assert first < FIRST_STEP[case.precision]
    assert all_steps < (band or ALL_STEPS[case.precision])
    assert own[-1]["average"] == pytest.approx(baseline[-1]["average"], rel=band or ALL_STEPS[case.precision])


def test_an_evaluation_counts_every_image_once_on_any_number_of_workers(
    curves: dict[str, list[dict[str, float]]],
) -> None:
    cases = [case for case in CASES if case.precision == "float64" and case.workers > 1]
    assert {case.workers for case in cases} == {2, 3, 4}
    for case in cases:
        own, baseline = curves[case.name][-1], curves[case.baseline.name][-1]
        assert own["val num_samples"] == NUM_VAL
        for key in ("val num_samples", "val num_nonfinite", "val top1", "val top5"):
            assert own[key] == baseline[key], (case.name, key)
        assert own["val loss"] == pytest.approx(baseline["val loss"], rel=ALL_STEPS["float64"])


def test_precise_batch_norm_the_training_split_and_metrics_are_the_same_on_any_number_of_workers(
    curves: dict[str, list[dict[str, float]]],
) -> None:
    cases = [case for case in VARIED if case.variant == "evaluation"]
    assert {case.workers for case in cases} == {2, 3}
    for case in cases:
        own, baseline = curves[case.name], curves[case.baseline.name]
        for step, band in ((0, 1e-12), (-1, ALL_STEPS["float64"])):
            assert own[step]["val train_top1"] == baseline[step]["val train_top1"]
            for key in ("val loss", "val train_loss", "val margin"):
                assert own[step][key] == pytest.approx(baseline[step][key], rel=band), (case.name, key)


def test_what_is_recorded_of_each_layer_is_the_same_on_any_number_of_workers(
    curves: dict[str, list[dict[str, float]]],
) -> None:
    cases = [case for case in VARIED if case.variant == "nesterov" and case.engine == "ddp"]
    for case in cases:
        own, baseline = curves[case.name], curves[case.baseline.name]
        for step, band in ((1, 1e-12), (LAYERS_EVERY, ALL_STEPS["float64"]), (STEPS, ALL_STEPS["float64"])):
            keys = [key for key in baseline[step - 1] if " of " in key]
            assert len(keys) == 20 * 5  # of the convolutions and the classifier of ResNet-20
            for key in keys:
                assert own[step - 1][key] == pytest.approx(baseline[step - 1][key], rel=band), (case.name, step, key)


def test_how_a_run_is_evaluated_changes_nothing_of_its_training(curves: dict[str, list[dict[str, float]]]) -> None:
    for case in {case.baseline for case in VARIED if case.variant == "evaluation"}:
        plain = curves[dataclasses.replace(case, variant="").name]
        own = curves[case.name]
        keys = ("loss", "norm", "ids", "average")
        assert [[record.get(key) for key in keys] for record in own] == [[r.get(key) for key in keys] for r in plain]
        assert own[-1]["val loss"] != plain[-1]["val loss"]  # other statistics


def test_a_run_that_is_killed_goes_on_with_fewer_workers_in_the_middle_of_an_epoch(
    curves: dict[str, list[dict[str, float]]], worlds: Path
) -> None:
    records = read_metrics(worlds / "resized" / "metrics.jsonl")
    started = [record["step"] for record in records if record.get("event") == "started"]
    assert started == [0, CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY]
    keys = {"loss": "loss", "lr": "learning_rate", "norm": "gradient_norm", "ids": "sample_ids"}
    own = [{key: record[name] for key, name in keys.items()} for record in records if record["kind"] == "train"]
    baseline = curves[RESIZED.baseline.name]
    for key in ("ids", "lr"):
        assert [record[key] for record in own] == [record[key] for record in baseline]
    assert differences(own, baseline, "float64")[1] < ALL_STEPS["float64"]
    saved = restore.newest(worlds / "resized" / "checkpoints")
    assert saved is not None
    average = saved.ema()
    assert average is not None
    assert squares(average) == pytest.approx(baseline[-1]["average"], rel=ALL_STEPS["float64"])


def test_different_recipes_have_different_curves(curves: dict[str, list[dict[str, float]]]) -> None:
    """Otherwise the test above could not fail. Evaluations do not change what is trained."""
    baselines = {case.baseline for case in CASES if case.precision == "float64" and case.variant != "evaluation"}
    assert len(baselines) >= 3
    for one, other in itertools.combinations(sorted(baselines, key=lambda case: case.name), 2):
        assert differences(curves[one.name], curves[other.name], "float64")[1] > 1e-4, (one, other)


# --- the table


def print_table(cases: list[Case], curves: dict[str, list[dict[str, float]]]) -> None:
    print(f"{len(cases)} combinations (DDP in both precisions). Largest relative difference from one process:\n")
    print(f"| engine | precision | workers | combinations | {DIFFERENCES} |\n|---|---|---|---|---|---|")
    for precision, engine, workers in itertools.product(("float64", "float32"), VALUES["engine"], VALUES["workers"]):
        rows = [case for case in cases if (case.precision, case.engine, case.workers) == (precision, engine, workers)]
        if rows:
            found = [differences(curves[case.name], curves[case.baseline.name], precision) for case in rows]
            first, all_steps = (max(column) for column in zip(*found, strict=True))
            print(f"| {engine} | {precision} | {workers} | {len(rows)} | {first:.1e} | {all_steps:.1e} |")


def print_kernels(folder: Path) -> None:
    """In one process: what changes the order of sums, and nothing else, against the defaults."""
    torch.set_num_threads(1)
    root = write_digits(folder / "digits")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    print(f"| other kernels | precision | {DIFFERENCES} |\n|---|---|---|---|")
    for precision in ("float32", "float64"):
        case = Case(1, "ddp", 1, "sgd", "global", clipping=False, precision=precision)

        def run(speed: SpeedRecipe | None = None, num_threads: int = 1, case: Case = case) -> list[dict[str, float]]:
            return curve(case, root, folder, 0, STEPS_OF_TABLES, speed, num_threads)

        defaults = run()
        others = {
            "the same once more": run(),
            "`speed.channels_last: false`": run(SpeedRecipe(channels_last=False)),
            "`speed.compile: true`": run(SpeedRecipe(compile=True)),
            "`speed.sgd_kernel: foreach`": run(SpeedRecipe(sgd_kernel="foreach")),
            "2 threads": run(num_threads=2),
        }
        with torch.backends.mkldnn.flags(enabled=False):
            others["without oneDNN"] = run()
        for name, other in others.items():
            first, all_steps = differences(other, defaults, precision)
            print(f"| {name} | {precision} | {first:.1e} | {all_steps:.1e} |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:] == ["--kernels"]:
        with tempfile.TemporaryDirectory() as scratch:
            print_kernels(Path(scratch))
    elif sys.argv[1:] == ["--rounded"]:
        with tempfile.TemporaryDirectory() as scratch:
            found = run_worlds(ROUNDED, Path(scratch), STEPS_OF_TABLES)
        print(f"| rounded to | engine | workers | micro-batches | {DIFFERENCES} |\n|---|---|---|---|---|---|")
        for case in ROUNDED:
            first, all_steps = differences(found[case.name], found[case.baseline.name], case.precision)
            row = (case.precision, case.engine, case.workers, case.micro_batches, f"{first:.1e}", f"{all_steps:.1e}")
            print(f"| {' | '.join(map(str, row))} |")
    elif sys.argv[1:] == ["--full"]:
        with tempfile.TemporaryDirectory() as scratch:
            everything = every_case()
            everything += [
                dataclasses.replace(case, precision="float32") for case in everything if case.engine == "ddp"
            ]
            print_table(everything, run_worlds(everything, Path(scratch), STEPS_OF_TABLES))
    else:
        all_worlds(Path(sys.argv[1]))
