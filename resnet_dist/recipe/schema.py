"""What is trained: a frozen description that knows neither torch nor the place where it runs.

Every value of a recipe changes the loss curve or the data it sees; where and how a run is carried out is the
launcher's business. Field names are the keys of the YAML file. `resnet_dist.recipe.rules` says which combinations
make sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from resnet_dist.recipe.durations import Duration

Precision = Literal["float32", "tf32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The network. `name` is one of `resnet_dist.models.MODELS`, or `package.module:function`.

    A user's function is called as `function(num_classes=..., **arguments)` and returns a torch module.
    """

    name: str = "resnet50"
    num_classes: int = 1000
    zero_gamma: bool = False  # the last batch norm of each block starts at 0 (Goyal et al. 2017, section 5.1)
    weights: str | None = None  # a state dict to start from; a head of another size is left at its initialisation
    arguments: Mapping[str, Any] = field(default_factory=dict)  # for a user's function


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The images. `source`: `imagefolder` (root/train/CLASS/*.jpg, root/val/CLASS/*.jpg) or `package.module:function`.

    A user's function is called as `function(root=..., split="train" | "val")` and returns a `resnet_dist.data.Index`.
    """

    root: str
    source: str = "imagefolder"
    decoder: Literal["auto", "dali", "torchvision"] = "auto"  # auto: DALI where there is a GPU, torchvision on a CPU
    resolution: int = 224  # pixels, height and width
    crop_area: tuple[float, float] = (0.08, 1.0)  # fraction of the image's area, drawn uniformly
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, drawn log-uniformly
    flip: bool = True  # mirror every other sample; off where left and right differ in meaning
    evaluation_crop: float = 0.875  # side of the central square / the image's shorter side (224 / 256)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet's channels, in 0..1 (torchvision)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    on_error: Literal["fail"] = "fail"  # a broken image ends the run, named
    num_samples: int | None = None  # of the training split, where `plan` runs without the data; verified where it is
    prefetch: int = 2  # micro-batches decoded ahead


@dataclass(frozen=True, kw_only=True)
class BatchRecipe:
    """The global batch: samples per optimizer step over all workers.

    `num_micro_batches: auto` begins with 1; when a worker runs out of memory, the run goes on with the smallest number
    that fits and that batch norm's span allows.
    """

    size: int
    num_micro_batches: int | Literal["auto"] = 1

    @property
    def parts(self) -> int:
        """The number of micro-batches as a number; 1 for `auto`, which the launcher resolves before a worker starts."""
        return 1 if self.num_micro_batches == "auto" else self.num_micro_batches


@dataclass(frozen=True, kw_only=True)
class BatchNormRecipe:
    """Over how many samples batch norm computes its statistics.

    `auto` is the divisor of batch.size / num_micro_batches nearest 64 that lies between 32 and 128, and `global` where
    there is none; the number of workers takes no part in it. Where momentum or epsilon is not given, each layer keeps
    its own: the built-in networks have 0.1 and 1e-5. A run goes on with the values that it began with, where the config
    does not give them.
    """

    span: int | Literal["auto", "global", "worker"] = "auto"  # samples; global: the whole batch; worker: a share
    momentum: float | None = None  # weight of the newest step in the running statistics (torch's convention)
    epsilon: float | None = None

    @property
    def fixed_span(self) -> int | Literal["global", "worker"]:
        """The span that is computed with. `resnet_dist.recipe.rules.settled` replaces `auto` before that."""
        assert self.span != "auto"
        return self.span


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """`name` is `sgd`, `lars` or `package.module:function`.

    A user's function is called as `function(groups, momentum=..., weight_decay=..., **arguments)`.
    """

    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0  # L2, on the weights of convolutions and linear layers only
    gradient_clipping: float | None = None  # largest L2 norm of the whole gradient (Pascanu et al. 2013)
    trust_coefficient: float | None = None  # LARS: eta; 0.001 where it is not given
    epsilon: float | None = None  # LARS: added to the trust ratio's denominator; 0 where it is not given
    convention: Literal["lr_inside", "lr_outside"] | None = None  # LARS: lr_inside where it is not given
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The learning rate as a function of the step: linear warm-up, then decay.

    Give `peak_lr`, or `base_lr` (for a batch of 256) and have it scaled: peak = base × B / 256 (linear scaling,
    Goyal et al. 2017). `decay` may be `package.module:function`, called with the progress in [0, 1) after warm-up and
    returning the factor in [0, 1] between `end_lr` (0) and the peak (1).
    """

    peak_lr: float | None = None
    base_lr: float | None = None
    warmup: Duration = field(default_factory=lambda: Duration(Fraction(0), "steps"))
    warmup_start_lr: float = 0.0
    decay: str = "cosine"  # constant | cosine | polynomial | step | package.module:function
    power: float | None = None  # polynomial: 2 where it is not given
    end_lr: float = 0.0
    milestones: tuple[Duration, ...] = ()  # step: where the LR is multiplied by gamma
    gamma: float | None = None  # step: 0.1 where it is not given


@dataclass(frozen=True, kw_only=True)
class RegularizationRecipe:
    """What keeps a model from fitting the training set too well, beside weight decay."""

    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EmaRecipe:
    """An exponential moving average of the weights: evaluation uses it, training does not know of it.

    It begins as a copy of the weights and forgets them within a few 1 / (1 - decay) of its updates. Batch norm's
    running statistics are averaged as well, as in timm's ModelEmaV2.
    """

    decay: float | None = None  # what stays of the average at each update, e.g. 0.9999; not given: there is none
    every_steps: int = 1  # between two updates


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """What turns a batch into an optimizer step: `ddp`, `zero` (DeepSpeed) or `package.module:function`.

    A user's function is called as `function(module, optimizer, loss_sum, batch_size=..., num_micro_batches=...,
    **arguments)` and returns a `resnet_dist.engines.protocol.Engine`; `resnet_dist.testing` checks one.
    """

    name: str = "ddp"
    stage: int | None = None  # zero: 0 nothing is partitioned, 1 optimizer state, 2 gradients too; 2 where not given
    bucket_mb: float = 25.0  # MiB of gradients that are exchanged at once (torch's default)
    gradient_dtype: Literal["float32", "bfloat16"] | None = None  # of the exchange; not given: the parameters' own
    arguments: Mapping[str, Any] = field(default_factory=dict)  # for a user's function


@dataclass(frozen=True, kw_only=True)
class SpeedRecipe:
    """How fast a step is. None of it changes what is computed; the order of sums, and so rounding, it may.

    docs/performance.md has what each is worth; `true` or `auto` means: wherever it can be used.
    """

    channels_last: bool = True  # memory layout of images and weights: what cuDNN and oneDNN compute in
    compile: bool = False  # torch.compile the model: fused element-wise kernels, a minute or more at the start
    cuda_graph: bool = False  # replay forward and backward as one CUDA graph: for shares of a few dozen images
    optimizer: Literal["auto", "foreach", "fused", "loop"] = "auto"  # SGD's kernels; LARS is foreach
    bucket_views: bool = True  # gradients live in the buckets that are exchanged: one copy less
    static_graph: bool = False  # DDP: the same parameters get gradients in every step
    copy_stream: bool = True  # GPU: copy the next images while this step computes, from pinned memory
    cudnn_benchmark: bool = True  # GPU: let cuDNN try its algorithms once; off under `deterministic: true`
    cpu_affinity: bool = False  # CPUs of its own for each worker, where no other run shares the node


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """When the model is evaluated on the val split; the end of the run always evaluates."""

    every: Duration = field(default_factory=lambda: Duration(Fraction(1), "epochs"))
    batch_size: int = 64  # samples per forward pass on one worker; changes no result


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run, whole, but for where it runs."""

    data: DataRecipe
    batch: BatchRecipe
    duration: Duration
    schedule: ScheduleRecipe
    seed: int = 0
    model: ModelRecipe = field(default_factory=ModelRecipe)
    batch_norm: BatchNormRecipe = field(default_factory=BatchNormRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    regularization: RegularizationRecipe = field(default_factory=RegularizationRecipe)
    ema: EmaRecipe = field(default_factory=EmaRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    speed: SpeedRecipe = field(default_factory=SpeedRecipe)
    precision: Precision = "float32"
    deterministic: bool = False  # the same bits on a GPU at every run, at a price in speed; a CPU always is


# What a recorded recipe that lacks a key meant by it, by dotted key. A checkpoint or config.yaml of an earlier version
# lacks the keys that later versions added; such a key takes its present default, unless a line here says otherwise.
# Whoever adds a key whose default changes what earlier versions did adds a line. A default that changes needs another
# way, since earlier versions recorded the old value: see `launcher.run.recorded.LEFT_TO_THE_RUN`.
MEANT_BY_ABSENCE: Mapping[str, Any] = {}
