"""From a recipe to the finished parts of one training process: the one place that knows all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from resnet_dist import rules
from resnet_dist.checkpoint import restore, save
from resnet_dist.data import (
    HostBatch,
    Index,
    Stream,
    check_labels,
    check_same_classes,
    decoder_for,
    evaluation_batches,
    index_of,
    is_current,
    normalise,
    training_batches,
)
from resnet_dist.durations import Duration, Every
from resnet_dist.engines.ddp import DdpEngine
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import DataError, TrainingError
from resnet_dist.evaluate import Evaluation, evaluate
from resnet_dist.loss import cross_entropy_sum
from resnet_dist.metrics import StepExchange
from resnet_dist.models import build_model
from resnet_dist.models.batch_norm import RunningStatistics, use_spans
from resnet_dist.models.spans import Spans
from resnet_dist.optim import build_optimizer, build_schedule
from resnet_dist.recipe import Recipe
from resnet_dist.shares import BatchLayout
from resnet_dist.sink import Sink
from resnet_dist.supervisor import Supervisor
from resnet_dist.trainer import Parts, Timetable, Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """This process among all: one rank, one device."""

    rank: int
    world_size: int
    device: torch.device
    num_threads: int  # for decoding, and for torch on a CPU


@dataclass(frozen=True)
class Bookkeeping:
    """What a run keeps and when; changes no result."""

    checkpoints: Path  # folder
    index: Path  # folder of the saved indices
    checkpoint_every: Duration
    keep: int
    log_every: int  # steps


def build(
    recipe: Recipe,
    worker: Worker,
    bookkeeping: Bookkeeping,
    sink: Sink,
    supervisor: Supervisor,
    resume: Path | None = None,
) -> Trainer:
    """Everything that `worker` needs to train `recipe`, from its start or from the checkpoint `resume`.

    With more than one worker the process group must be up: this is a collective. Raises RecipeError, DataError or
    CheckpointError, the same on every worker where rank 0 finds them.
    """
    rules.check(recipe, worker.world_size)
    _set_up_torch(recipe, worker)
    train, val = shared_indices(recipe, worker, bookkeeping.index)
    rules.check(recipe, worker.world_size, len(train))
    batch = recipe.batch
    layout = BatchLayout(batch.size, batch.num_micro_batches, worker.world_size)

    model = whole_model(recipe, Spans(layout, worker.rank, recipe.batch_norm.span), worker.device)
    checkpoint = None if resume is None else restore.load(resume)
    if checkpoint is not None:
        _check_data(checkpoint, train)
        model.load_state_dict(checkpoint.model())
    exchange = StepExchange(RunningStatistics(model), worker.device, batch.size)
    engine = DdpEngine(
        model,
        build_optimizer(recipe.optimizer, model),
        partial(cross_entropy_sum, label_smoothing=recipe.regularization.label_smoothing),
        batch_size=batch.size,
        num_micro_batches=batch.num_micro_batches,
        autocast_dtype=autocast_dtype(recipe),
    )
    if checkpoint is not None:
        engine.load_optimizer_state(checkpoint.optimizer())

    timetable = timetable_of(recipe, len(train), bookkeeping)
    learning_rate = build_schedule(
        recipe.schedule, batch_size=batch.size, num_samples=len(train), total_steps=timetable.total_steps
    )
    to_device = partial(_to_device, recipe=recipe, device=worker.device)

    def batches_from(first_step: int) -> Generator[HostBatch, None, None]:
        decoder = decoder_for(
            recipe.data,
            device=worker.device,
            num_threads=worker.num_threads,
            max_batch_size=len(layout.share(0, worker.rank).own),
        )
        stream = Stream(len(train), recipe.seed)
        num_steps = timetable.total_steps - first_step
        yield from training_batches(
            train, stream, layout, worker.rank, recipe.data, recipe.seed, decoder, first_step, num_steps
        )

    def save_step(step: int) -> str:
        optimizer_state = engine.optimizer_state()
        if worker.rank != 0:
            return ""
        state = {
            "samples": step * batch.size,
            "data": train.fingerprint(),
            "recipe": described(recipe),
            "torch": torch.__version__,
            "world_size": worker.world_size,
        }
        model_state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        return str(save.save(bookkeeping.checkpoints, step, model_state, optimizer_state, state, bookkeeping.keep))

    parts = Parts(
        engine=engine,
        learning_rate=learning_rate,
        batches_from=batches_from,
        to_device=to_device,
        evaluate=evaluator(recipe, worker, model, val),
        exchange=exchange,
        save=save_step,
        sink=sink,
        supervisor=supervisor,
    )
    return Trainer(parts, timetable, batch.num_micro_batches, 0 if checkpoint is None else checkpoint.step)


def whole_model(recipe: Recipe, spans: Spans, device: torch.device) -> nn.Module:
    """The model on its device, batch norm over spans, in channels-last memory on a GPU."""
    model = build_model(recipe.model, recipe.seed)
    model = use_spans(model, spans, momentum=recipe.batch_norm.momentum, epsilon=recipe.batch_norm.epsilon)
    model.to(device=device, dtype=torch.float64 if recipe.precision == "float64" else torch.float32)
    return model.to(memory_format=torch.channels_last)


def evaluator(recipe: Recipe, worker: Worker, model: nn.Module, val: Index) -> Callable[[], Evaluation]:
    """A function that evaluates `model` on the val split; a collective."""
    to_device = partial(_to_device, recipe=recipe, device=worker.device)
    dtype = autocast_dtype(recipe)
    autocast = None if dtype is None else partial(torch.autocast, worker.device.type, dtype=dtype)

    def run() -> Evaluation:
        size = recipe.evaluate.batch_size
        decoder = decoder_for(recipe.data, device=worker.device, num_threads=worker.num_threads, max_batch_size=size)
        batches = evaluation_batches(val, worker.world_size, worker.rank, size, recipe.data, decoder)
        return evaluate(model, map(to_device, batches), len(val), worker.device, autocast)

    return run


def timetable_of(recipe: Recipe, num_samples: int, bookkeeping: Bookkeeping) -> Timetable:
    """When the run does what. `num_samples` is the training split's size."""
    size = {"batch_size": recipe.batch.size, "num_samples": num_samples}
    return Timetable(
        total_steps=recipe.duration.steps(**size),
        **size,
        evaluate=Every(recipe.evaluate.every.samples(**size), recipe.batch.size),
        checkpoint=Every(bookkeeping.checkpoint_every.samples(**size), recipe.batch.size),
        log_every=bookkeeping.log_every,
    )


def autocast_dtype(recipe: Recipe) -> torch.dtype | None:
    """What autocast computes in, or None where it is off."""
    return torch.bfloat16 if recipe.precision == "bfloat16" else None


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: what a checkpoint says of itself, and what a resumed run is compared with."""
    return _plain(recipe)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def shared_indices(recipe: Recipe, worker: Worker, folder: Path) -> tuple[Index, Index]:
    """The indices of both splits: made once by rank 0, which saves them to `folder`; the others read them.

    An index saved by an earlier attempt is used as long as its folders have not changed. What rank 0 finds wrong is
    raised on every worker.
    """
    error: TrainingError | None = None
    if worker.rank == 0:
        try:
            for split in ("train", "val"):
                _index_once(recipe, split, folder)
        except TrainingError as caught:
            error = caught
    if worker.world_size > 1:
        found = [error]
        dist.broadcast_object_list(found, src=0)
        error = found[0]
    if error is not None:
        raise error
    train, val = (Index.load(folder / f"{split}.npz") for split in ("train", "val"))
    check_same_classes(recipe.data.root, train.classes, val.classes)
    for index in (train, val):
        check_labels(index, recipe.model.num_classes)
    return train, val


def _index_once(recipe: Recipe, split: Any, folder: Path) -> None:
    file = folder / f"{split}.npz"
    if file.exists():
        with contextlib.suppress(DataError):  # a damaged one is made anew
            saved = Index.load(file)
            if saved.root == recipe.data.root and is_current(saved):
                return
    folder.mkdir(parents=True, exist_ok=True)
    index_of(recipe.data, split).save(file)


def _check_data(checkpoint: restore.Checkpoint, train: Index) -> None:
    if checkpoint.state["data"] != train.fingerprint():
        raise DataError(
            train.root,
            f"the images are not those that {checkpoint.path} was trained on: files, labels or sizes have changed. "
            "Restore them, or start a run under another name",
        )


def _to_device(batch: HostBatch, *, recipe: Recipe, device: torch.device) -> MicroBatch:
    dtype = torch.float64 if recipe.precision == "float64" else torch.float32
    images = batch.images.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    return MicroBatch(normalise(images, recipe.data.mean, recipe.data.std, dtype), labels)


def _set_up_torch(recipe: Recipe, worker: Worker) -> None:
    if worker.device.type == "cpu":
        torch.set_num_threads(worker.num_threads)  # sums depend on it: the run's own number, not the machine's
        return
    torch.cuda.set_device(worker.device)
    precision = "tf32" if recipe.precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


__all__ = ["Bookkeeping", "Worker", "build", "shared_indices", "timetable_of", "whole_model"]
