"""The training steps that are compared: ours, minimal loops, and those of other projects.

All use the same images. Each is a class whose instances are called with a number of steps. The steps of other projects
are written for this comparison, after their scripts; no code is copied.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.build import whole_model
from resnet_dist.data.loader import HostBatch, normalise
from resnet_dist.engines.ddp import DdpEngine, DdpSettings, LossSum
from resnet_dist.engines.factory import autocast_dtype, build_engine
from resnet_dist.engines.protocol import Engine
from resnet_dist.models import build_model
from resnet_dist.models.loss import cross_entropy_sum
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.optim import build_optimizer, sgd_kernels
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.durations import Duration, Every
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EngineRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Precision,
    Recipe,
    ScheduleRecipe,
    SpeedRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.telemetry.metrics_file import NoSink
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training.device import ToDevice
from resnet_dist.training.evaluate import Evaluation
from resnet_dist.training.masks import add_masks, drawing
from resnet_dist.training.parts import Timetable, TrainerParts
from resnet_dist.training.trainer import Trainer

LEARNING_RATE = 1e-3  # small, so that the loss stays finite with random labels
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
_DATA = DataRecipe(root="synthetic")
_NEVER = Every(Fraction(10**12), 1)  # samples
_LOG_EVERY = 10  # steps; the default of a config's log.every_steps


@dataclass(frozen=True)
class Setting:
    """The settings of all peers of a comparison. `batch` is the number of images per step on one worker."""

    batch: int
    resolution: int
    model: str = "resnet50"
    num_classes: int = 1000
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def recipe(self, world_size: int = 1, **changes: Any) -> Recipe:
        """The settings as a recipe; `changes` are fields of Recipe."""
        whole = Recipe(
            data=replace(_DATA, resolution=self.resolution),
            batch=BatchRecipe(size=self.batch * world_size),
            duration=Duration(Fraction(10**9), "steps"),
            schedule=ScheduleRecipe(peak_lr=LEARNING_RATE, decay="constant"),
            model=ModelRecipe(name=self.model, num_classes=self.num_classes),
            batch_norm=BatchNormRecipe(span="worker"),
            optimizer=OptimizerRecipe(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
            precision=self.precision,
            speed=SpeedRecipe(channels_last=self.channels_last, compile=self.compile),
        )
        return replace(whole, **changes)

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None if it is off."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.precision)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        dtype = self.autocast_dtype
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def prepared(self, model: nn.Module) -> nn.Module:
        """`model` on the device, in the memory layout, and compiled if `compile`."""
        model = model.to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.compile(model, dynamic=False) if self.compile else model  # type: ignore[return-value]

    def our_model(self) -> nn.Module:
        """The network with torch's batch norm and our initial weights."""
        return build_model(ModelRecipe(name=self.model, num_classes=self.num_classes), seed=0)


def synthetic(setting: Setting, number: int = 2, *, on_device: bool = True, rank: int = 0) -> list[HostBatch]:
    """Batches of noise in the format of a decoder; on a GPU `on_device` puts the images there, as DALI does."""
    generator = torch.Generator().manual_seed(rank)
    batches = []
    for start in range(0, number * setting.batch, setting.batch):
        shape = (setting.batch, setting.resolution, setting.resolution, 3)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        labels = torch.randint(setting.num_classes, (setting.batch,), generator=generator)
        positions = torch.arange(start, start + setting.batch)
        batches.append(HostBatch(images.to(setting.device) if on_device else images, labels, positions, start))
    return batches


class OurTrainer:
    """The real Trainer with all that a run has except files: exchange, timer, liveness, classification, requests.

    batches  a list is repeated, an iterator must be endless
    spans    of batch norm, in place of the recipe's
    wrapped  DDP wraps the model even on one worker
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        batches: list[HostBatch] | Iterator[HostBatch],
        *,
        spans: Spans | None = None,
        wrapped: bool = False,
    ) -> None:
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if spans is None:
            self.spans = spans = Spans(BatchLayout(recipe.batch.size, 1, world_size), rank, recipe.batch_norm.span)
        model = whole_model(recipe, spans, device)
        masks = add_masks(model, recipe)
        liveness = Liveness()
        liveness.watch(model, device, lambda: spans.waited_s)
        exchange = StepExchange(RunningStatistics(model), device, recipe.batch.size)
        loss_sum = partial(cross_entropy_sum, label_smoothing=recipe.regularization.label_smoothing)
        self.optimizer = build_optimizer(recipe.optimizer, model, sgd_kernels(recipe, device))
        self.engine = (_wrapped_engine if wrapped else build_engine)(recipe, model, self.optimizer, loss_sum)
        self._endless = itertools.cycle(batches) if isinstance(batches, list) else batches
        self._step, self._batch_size = 0, recipe.batch.size
        self.records: list[dict[str, Any]] = []
        self._parts = TrainerParts(
            engine=self.engine,
            learning_rate=lambda step: LEARNING_RATE,
            batches_from=lambda step: (batch for batch in self._endless),
            to_device=drawing(masks, ToDevice(recipe, device)),
            evaluate=lambda step: Evaluation(0.0, 0.0, 0.0, 1),
            exchange=exchange,
            checkpoints=_NoCheckpoints(),
            sink=NoSink(),
            supervisor=Unattended(),
            liveness=liveness,
        )

    def __call__(self, steps: int) -> None:
        """Train another `steps` steps."""
        first, self._step = self._step, self._step + steps
        size = self._batch_size
        timetable = Timetable(self._step, size, size * 1000, _NEVER, _NEVER, _LOG_EVERY)
        Trainer(self._parts, timetable, 1, first).fit()


def _wrapped_engine(recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, loss_sum: LossSum) -> Engine:
    """The engine of `recipe`, with DDP on one worker, too."""
    return DdpEngine(
        model,
        optimizer,
        loss_sum,
        batch_size=recipe.batch.size,
        num_micro_batches=recipe.batch.parts,
        autocast_dtype=autocast_dtype(recipe),
        settings=DdpSettings(
            compile_backend="inductor" if recipe.speed.compile else None,
            cuda_graph=recipe.speed.cuda_graph,
            wrap_alone=True,
        ),
    )


class _NoCheckpoints:
    def save(self, step: int, *, wait: bool, metrics: object) -> None: ...

    def poll(self) -> None: ...

    def close(self, *, patient: bool = True) -> None: ...


class _Loop:
    """What the peers have in common: endless batches, on the device, normalised like ours."""

    def __init__(self, setting: Setting, batches: list[HostBatch]) -> None:
        self.setting = setting
        self._endless = itertools.cycle(batches)
        self.last_loss = torch.zeros(())

    def __call__(self, steps: int) -> None:
        """Train another `steps` steps."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """One step."""
        raise NotImplementedError

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next images, float32 on the device, and labels."""
        batch, device = next(self._endless), self.setting.device
        images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        return normalise(images, _DATA.mean, _DATA.std, torch.float32), labels

    def scaler(self) -> Any:
        """torch's loss scaler, enabled for float16."""
        return torch.amp.GradScaler(self.setting.device.type, enabled=self.setting.precision == "float16")


class MinimalLoop(_Loop):
    """A minimal loop: forward, loss, backward, step, without metrics or logging.

    The optimizer has the same parameter groups as ours; `wrap` is for DDP.
    """

    def __init__(
        self, setting: Setting, batches: list[HostBatch], wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    ) -> None:
        super().__init__(setting, batches)
        network = setting.our_model()
        self.module = network
        self._model = wrap(setting.prepared(network))
        recipe = OptimizerRecipe(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        kernels = sgd_kernels(setting.recipe(), setting.device)
        self.optimizer = build_optimizer(recipe, network, kernels)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        self._scaler = self.scaler()

    def step(self) -> None:
        """One step."""
        images, labels = self.batch()
        with self.setting.autocast():
            loss = F.cross_entropy(self._model(images), labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss.detach()


def plain_ddp(setting: Setting, batches: list[HostBatch]) -> MinimalLoop:
    """The minimal loop with torch's DistributedDataParallel and its defaults."""
    return MinimalLoop(setting, batches, DistributedDataParallel)


def lean_ddp(setting: Setting, batches: list[HostBatch]) -> MinimalLoop:
    """The minimal loop with DDP and our options: gradients are views of its buckets, and no buffers are sent."""
    options = {"gradient_as_bucket_view": True, "forward_sync_buffers": False}
    return MinimalLoop(setting, batches, partial(DistributedDataParallel, **options))


class TorchvisionLoop(_Loop):
    """After references/classification/train.py: its network, and accuracy and loss read at every step.

    Mixed precision is its `amp`; it does not compile, and uses torch's default memory layout.
    """

    def __init__(self, setting: Setting, batches: list[HostBatch]) -> None:
        super().__init__(replace(setting, channels_last=False, compile=False), batches)
        network = torchvision.models.get_model(setting.model, num_classes=setting.num_classes)
        self._model = self.setting.prepared(network)
        self.optimizer = torch.optim.SGD(
            self._model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self._criterion = nn.CrossEntropyLoss()
        self._scaler = self.scaler()
        self.seen: list[float] = [0.0, 0.0, 0.0]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Contiguous images, as from the workers of its loader."""
        images, labels = super().batch()
        return images.contiguous(), labels

    def step(self) -> None:
        """One step."""
        images, labels = self.batch()
        with self.setting.autocast():
            output = self._model(images)
            loss = self._criterion(output, labels)
        self.optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        with torch.inference_mode():
            top5 = output.topk(min(5, output.shape[1]), dim=1).indices == labels[:, None]
            values = (loss, top5[:, :1].sum() * 100 / len(labels), top5.sum() * 100 / len(labels))
            self.seen = [old + value.item() for old, value in zip(self.seen, values, strict=True)]
        self.last_loss = loss.detach()


class TimmLoop(_Loop):
    """After timm's train.py and benchmark.py, with timm's network, optimizer, loss and scaler.

    Its loss is read every 50 steps, its log interval. `setting` selects AMP, channels-last and compilation.
    """

    def __init__(self, setting: Setting, batches: list[HostBatch]) -> None:
        super().__init__(setting, batches)
        import timm
        import timm.optim
        import timm.utils

        network = timm.create_model(setting.model, num_classes=setting.num_classes)
        self.optimizer = timm.optim.create_optimizer_v2(
            network, opt="sgd", lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self._model = setting.prepared(network)
        self._criterion = nn.CrossEntropyLoss()
        self._scale = timm.utils.NativeScaler() if setting.precision == "float16" else None
        self._average = timm.utils.AverageMeter()
        self._number = 0

    def step(self) -> None:
        """One step."""
        images, labels = self.batch()
        with self.setting.autocast():
            loss = self._criterion(self._model(images), labels)
        if self._scale is None:
            loss.backward()
            self.optimizer.step()
        else:
            self._scale(loss, self.optimizer, parameters=self._model.parameters())
        self.optimizer.zero_grad()
        self._number += 1
        if self._number % 50 == 0:
            self._average.update(loss.item(), len(labels))
        self.last_loss = loss.detach()


def why_not_timm() -> str | None:
    """Why timm cannot be measured here; None if it can."""
    return None if importlib.util.find_spec("timm") else "timm is not installed (pip install timm)"


class PlainDeepspeed(_Loop):
    """`deepspeed.initialize` with a network and torch's SGD. Two settings are not its defaults: clipping is off, and
    buckets have the size of ours, as its 2 GB per worker would not fit on a small machine.
    """

    def __init__(self, setting: Setting, batches: list[HostBatch], stage: int, bucket_mb: float = 25.0) -> None:
        super().__init__(replace(setting, channels_last=False), batches)
        import deepspeed

        network = self.setting.prepared(setting.our_model())
        optimizer = torch.optim.SGD(
            network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        num_elements = int(bucket_mb * 2**20) // 4
        config = {
            "train_micro_batch_size_per_gpu": setting.batch,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": num_elements,
                "allgather_bucket_size": num_elements + num_elements % 2,
            },
            "steps_per_print": 10**9,
        }
        self._engine, *_ = deepspeed.initialize(
            model=network, optimizer=optimizer, config=config, dist_init_required=False
        )

    def step(self) -> None:
        """One step."""
        images, labels = self.batch()
        loss = F.cross_entropy(self._engine(images), labels)
        self._engine.backward(loss)
        self._engine.step()
        self.last_loss = loss.detach()


def with_engine(recipe: Recipe, name: str, stage: int | None = None) -> Recipe:
    """`recipe` with another engine."""
    return replace(recipe, engine=EngineRecipe(name=name, stage=stage))


__all__ = [
    "MinimalLoop",
    "OurTrainer",
    "PlainDeepspeed",
    "Setting",
    "TimmLoop",
    "TorchvisionLoop",
    "autocast_dtype",
    "plain_ddp",
    "synthetic",
    "why_not_timm",
    "with_engine",
]
