"""What a trainer consists of: its components, its timetable, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.data.ledger import Ledger
from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.recipe.durations import Duration, Every
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.recipe.schema import Recipe
from resnet_dist.stop_request import Supervisor
from resnet_dist.telemetry.bottleneck import StepBottleneck, StepTimes
from resnet_dist.telemetry.layers import Layers, NoLayers
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.telemetry.profiler import StepProfiler
from resnet_dist.telemetry.stages import NoStages, Stages
from resnet_dist.telemetry.step_totals import StepExchange
from resnet_dist.training.bad_images import BadImages
from resnet_dist.training.beside import InTurn
from resnet_dist.training.evaluate import Evaluation

PASS_COST = 0.4  # of a forward pass, in steps: a third of the arithmetic, but the same images to decode


@dataclass(frozen=True)
class Timetable:
    """The events of a run, as functions of the step."""

    total_steps: int
    batch_size: int
    num_samples: int  # of the training split
    evaluate: Every
    checkpoint: Every
    log_every: int  # steps
    resolutions: Resolutions | None = None  # of the training images; None: always the same
    evaluation_steps: float = 0.0  # what an evaluation costs, in steps at the first resolution: an estimate

    def epoch(self, step: int) -> float:
        """The position in the training data after `step` completed steps."""
        return step * self.batch_size / self.num_samples


def timetable_of(
    recipe: Recipe, num_samples: tuple[int, int], *, checkpoint_every: Duration, log_every: int
) -> Timetable:
    """The events of a run. `num_samples` are those of the training split and of the val split."""
    num_train, num_val = num_samples
    size = {"batch_size": recipe.batch.size, "num_samples": num_train}
    evaluation_steps = 0.0
    if not recipe.evaluate.beside:
        larger = (recipe.evaluation_data.resolution / recipe.data.resolution) ** 2
        images = num_val + num_train * recipe.evaluate.train
        evaluation_steps = PASS_COST * (larger * images / recipe.batch.size + recipe.evaluate.precise_batch_norm)
    return Timetable(
        total_steps=recipe.duration.steps(**size),
        **size,
        evaluate=Every(recipe.evaluate.every.samples(**size), recipe.batch.size),
        checkpoint=Every(checkpoint_every.samples(**size), recipe.batch.size),
        log_every=log_every,
        resolutions=Resolutions.of(recipe.data, **size),
        evaluation_steps=evaluation_steps,
    )


@dataclass(frozen=True)
class LoopTimes:
    """Seconds of a call of `fit`, split into what the loop has waited for."""

    training_s: float
    evaluation_s: float
    saving_s: float  # for which checkpoints have stopped the training
    waiting_s: float = 0.0  # of evaluation_s: at the end, for evaluations beside training


@dataclass(frozen=True)
class Outcome:
    """The end of a call of `fit`: all steps done, or stopped on request with a checkpoint saved."""

    step: int
    finished: bool
    evaluation: Evaluation | None  # of the last step, if it was evaluated
    reached: bool | None = None  # whether a finished run has reached its target; None without one
    times: LoopTimes | None = field(default=None, compare=False)


class Checkpoints(Protocol):
    """Saves the run's state and records its own events."""

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        """Save `step` completed steps; with `wait`, return once the checkpoint is on the disk. A collective."""
        ...

    def poll(self) -> object:
        """Record the saves that have ended since the last call. Raises StorageError after too many failures."""
        ...

    def close(self, *, patient: bool) -> None:
        """Wait for pending writes; if not `patient`, only for those to this machine's disk."""
        ...


@dataclass(frozen=True)
class TrainerParts:
    """The components that a trainer drives."""

    engine: Engine
    learning_rate: Callable[[int], float]
    batches_from: Callable[[int], Generator[HostBatch, None, None]]  # first step -> micro-batches of all further steps
    to_device: Callable[[HostBatch], MicroBatch]
    evaluate: Callable[[int], Evaluation]  # after that many completed steps
    exchange: StepExchange
    checkpoints: Checkpoints
    sink: Sink
    supervisor: Supervisor
    # step, metrics -> what a checkpoint of them would contain, live tensors on any worker; None: nothing is kept
    content: Callable[[int, Mapping[str, float]], CheckpointContent] | None = None
    beside: InTurn = field(default_factory=InTurn)  # evaluates checkpoints while training goes on, or not
    seed: Callable[[int], None] = lambda step: None  # seeds torch's generators before a step (0 is the first)
    average: Callable[[int], None] = lambda step: None  # updates the moving average of the weights after a step
    ledger: Ledger | None = None  # None: the samples are not checked
    bad: BadImages | None = None  # None: a broken image ends the run
    liveness: Liveness = field(default_factory=Liveness)
    stages: Stages = field(default_factory=NoStages)  # of the start, which ends with the first step
    layers: Layers = field(default_factory=NoLayers)
    prepare: Callable[[], None] = lambda: None  # called before the first image is decoded
    release: Callable[[], None] = lambda: None  # called at the end, also after an error
    profiler: StepProfiler | None = None
    classify: Callable[[list[StepTimes]], StepBottleneck | None] = lambda windows: None  # at the end of the run
    # those of some records that metrics.jsonl does not have yet, on rank 0
    unwritten: Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]] = lambda records: records
    translate_oom: Callable[[BaseException], Exception | None] = lambda error: None  # None: not out of memory
