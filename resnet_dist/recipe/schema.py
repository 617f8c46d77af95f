"""The recipe: a frozen description of what is trained. It depends on neither torch nor the machine.

Field names are the keys of the YAML file; the comment at the end of a field's line is its meaning in docs/config.md.
`resnet_dist.recipe.rules` checks values and combinations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from resnet_dist.recipe.data_schema import AugmentationRecipe as AugmentationRecipe
from resnet_dist.recipe.data_schema import CacheRecipe as CacheRecipe
from resnet_dist.recipe.data_schema import DaliRecipe as DaliRecipe
from resnet_dist.recipe.data_schema import DataRecipe as DataRecipe
from resnet_dist.recipe.durations import Duration

Precision = Literal["float32", "tf32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True, kw_only=True)
class InitialisationRecipe:
    """How the weights of the convolutions of a built-in network are drawn.

    With n the kernel area times the input (`fan_in`) or output channels (`fan_out`), and m the same with the other:
    he: variance 2 / n; xavier: variance 2 / (n + m); normal: `std`. The classifier is N(0, 0.01) (Goyal et al. 2017).
    """

    name: Literal["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "normal"] = "he_normal"  # distribution
    mode: Literal["fan_in", "fan_out"] | None = None  # he: the layer's side that keeps its variance; default fan_out
    std: float | None = None  # normal: standard deviation; default 0.01


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The network: one of `resnet_dist.models.MODELS`, or a function `package.module:function`.

    The function is called as `function(num_classes=..., **arguments)` and returns a torch module. The keys that change
    the architecture and its initialisation are for built-in networks. resnet8 to resnet110 are for images of about 32
    pixels and have 6n + 2 layers; with `block: bottleneck` they have 9n + 2, and keep their names. `shortcut` says what
    a block adds to its branch: the input, with zeros for additional channels (`identity`), a 1x1 convolution where the
    shape changes (`projection`), or one in every block (`projection_all`). The default is `identity` for resnet8 to
    resnet110, and `projection` for the others.
    """

    name: str = "resnet50"  # a name in resnet_dist.models.MODELS, such as resnet50, or package.module:function
    num_classes: int = 1000  # number of outputs
    residual: bool = True  # false: a plain network, without shortcuts
    width: float = 1.0  # factor of all channels, which are rounded to whole numbers, at least 1
    block: Literal["basic", "bottleneck"] | None = None  # of all stages; default: the network's own
    shortcut: Literal["identity", "projection", "projection_all"] | None = None  # options A, B, C of He et al. 2015
    normalisation: Literal["batch", "none"] = "batch"  # none: convolutions with a bias, without batch norm
    activation_order: Literal["original", "pre"] = "original"  # pre: norm and ReLU before each convolution (He 2016)
    initialisation: InitialisationRecipe = field(default_factory=InitialisationRecipe)
    zero_gamma: bool = False  # start the last batch norm of each block at 0 (Goyal et al. 2017, section 5.1)
    weights: str | None = None  # file, checkpoint or run directory to start from; not its head if that has another size
    freeze: tuple[str, ...] = ()  # modules or parameters that are not trained, by name or first part of a name
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for package.module:function


@dataclass(frozen=True, kw_only=True)
class BatchRecipe:
    """The global batch: samples per optimizer step over all workers.

    `num_micro_batches: auto` starts with 1. When a worker runs out of memory, the run continues with the smallest
    number that fits and that the batch-norm span allows.
    """

    size: int  # samples per optimizer step over all workers
    num_micro_batches: int | Literal["auto"] = 1  # equal slices of the batch whose gradients are accumulated

    @property
    def parts(self) -> int:
        """The number of micro-batches; 1 for `auto`, which the launcher resolves before a worker starts."""
        return 1 if self.num_micro_batches == "auto" else self.num_micro_batches


@dataclass(frozen=True, kw_only=True)
class BatchNormRecipe:
    """The number of samples over which batch norm computes its statistics, and its constants.

    `span: auto` selects the divisor of batch.size / num_micro_batches nearest to 64 from 32 to 128, or `global` if
    there is none; the number of workers does not matter. Layers keep their own momentum and epsilon unless they are
    given; the built-in networks have 0.1 and 1e-5. A resumed run keeps the values that it started with unless the
    config gives them.
    """

    span: int | Literal["auto", "global", "worker"] = "auto"  # samples; global: the batch; worker: a worker's part
    momentum: float | None = None  # weight of the newest step in the running statistics (torch's convention)
    epsilon: float | None = None  # added to the variance

    @property
    def fixed_span(self) -> int | Literal["global", "worker"]:
        """The span, after `resnet_dist.recipe.rules.settled` has replaced `auto`.

        It leaves `auto` for a network without batch norm: then `worker`, with which nothing is exchanged.
        """
        return "worker" if self.span == "auto" else self.span


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """The optimizer: `sgd`, `lars`, `lamb`, `adamw` or `package.module:function`.

    The function is called as `function(groups, momentum=..., weight_decay=..., **arguments)`.
    """

    name: str = "sgd"  # sgd, lars, lamb, adamw or package.module:function
    momentum: float = 0.9  # sgd, lars: decay of the momentum buffer per step
    nesterov: bool = False  # Nesterov momentum; sgd and lars
    betas: tuple[float, float] | None = None  # lamb, adamw: decay of the two moments; default [0.9, 0.999]
    weight_decay: float = 0.0  # only on the weights of convolutions and linear layers; L2 penalty in sgd and lars
    decoupled_weight_decay: bool = False  # sgd: shrink the weights by lr * weight_decay, outside of the momentum
    gradient_clipping: float | None = None  # largest L2 norm of the whole gradient (Pascanu et al. 2013)
    trust_coefficient: float | None = None  # LARS: eta of the trust ratio; default 0.001
    epsilon: float | None = None  # added to a denominator; default 0 (lars), 1e-6 (lamb), 1e-8 (adamw)
    lr_in_momentum: bool | None = None  # LARS: whether the LR enters the momentum buffer; default true
    lr_factors: Mapping[str, float] = field(default_factory=dict)  # factor of the LR by module, e.g. {fc: 10}
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for package.module:function

    @property
    def num_states(self) -> int:
        """Numbers of state per weight: momentum, or two moments. A user's optimizer may have more."""
        return 2 if self.name in ("lamb", "adamw") else int(self.momentum != 0)


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The learning rate as a function of the step: linear warm-up, then decay.

    Give either `peak_lr` or `base_lr`, the LR for a batch of 256: peak LR = base LR × batch.size / 256 (linear
    scaling, Goyal et al. 2017); `scaling: none` takes `base_lr` as it is, and `scaling: table` takes the peak LR from
    the published runs of `launcher plan --batch`, with neither key. `decay` may be `package.module:function`: it is
    called with the progress in [0, 1) after warm-up and returns a factor in [0, 1], where 0 is `end_lr` and 1 the peak
    LR. `trapezoid` is constant, then linear to `end_lr` over the last `decay_length`.
    """

    peak_lr: float | None = None  # LR at the end of warm-up
    base_lr: float | None = None  # LR for a batch of 256, scaled with the batch
    scaling: Literal["linear", "none", "table"] = "linear"  # how the peak LR follows from the batch
    warmup: Duration = field(default_factory=lambda: Duration(Fraction(0), "steps"))  # length of the linear warm-up
    warmup_start_lr: float = 0.0  # LR before the first step of warm-up
    decay: str = "cosine"  # constant, cosine, polynomial, exponential, trapezoid, step or package.module:function
    power: float | None = None  # polynomial: exponent; default 2
    end_lr: float = 0.0  # LR at the end of the run; not for constant and step; exponential needs it
    decay_length: Duration | None = None  # trapezoid: length of the linear decay at the end; default 20 %
    milestones: tuple[Duration, ...] = ()  # step: times at which the LR is multiplied by gamma
    gamma: float | None = None  # step: factor at each milestone; default 0.1


@dataclass(frozen=True, kw_only=True)
class RegularizationRecipe:
    """Regularization other than weight decay.

    All random choices are functions of the seed and the sample's position in the stream, so neither the number of
    workers nor a restart changes them.
    """

    label_smoothing: float = 0.0  # probability spread evenly over all classes (Szegedy et al. 2016, section 7)
    l1: float = 0.0  # factor of the sum of absolute weights of convolutions and linear layers, added to the loss
    dropout: float = 0.0  # probability of leaving out an input of the classifier (Srivastava et al. 2014)
    stochastic_depth: float = 0.0  # probability p of skipping the last of L blocks; l / L x p for block l (Huang 2016)
    mixup: float = 0.0  # alpha of the Beta distribution of mixup (Zhang et al. 2018), which mixes pairs; 0: off
    cutmix: float = 0.0  # alpha of CutMix (Yun et al. 2019); with mixup, half of the pairs each; 0: off
    random_erasing: float = 0.0  # probability of erasing a rectangle of an image (Zhong et al. 2020)

    @property
    def mixes_pairs(self) -> bool:
        """Whether the images at the positions (2k, 2k + 1) of the stream are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """The loss: `cross_entropy`, `bce` (binary cross-entropy of each class, averaged over classes) or a function.

    `package.module:function` is called as `function(logits, targets, **arguments)` and returns the sum over the samples
    (0-d). Targets are int64 [n], or floating [n, classes] under mixup or CutMix. A mixed image has the mean weight of
    its classes, in their parts of it.
    """

    name: str = "cross_entropy"  # cross_entropy, bce or package.module:function
    class_weights: Literal["none", "balanced"] = "none"  # balanced: inverse to the number of training images of a class
    target_threshold: float | None = None  # bce: targets above it become 1, others 0 (timm's A3: 0.2)
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for package.module:function


@dataclass(frozen=True, kw_only=True)
class EmaRecipe:
    """An exponential moving average of the weights, for evaluation only.

    It starts as a copy of the weights, whose influence vanishes within a few 1 / (1 - decay) updates. Batch norm's
    running statistics are averaged as well, as in timm's ModelEmaV2.
    """

    decay: float | None = None  # weight of the average at each update, for example 0.9999; default: no average
    every_steps: int = 1  # steps between two updates


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """The engine, which turns a batch into an optimizer step: `ddp`, `zero` (DeepSpeed) or `package.module:function`.

    The function is called as `function(module, optimizer, loss_sum, batch_size=..., num_micro_batches=...,
    **arguments)` and returns a `resnet_dist.engines.protocol.Engine`; `resnet_dist.testing` checks one.
    """

    name: str = "ddp"  # ddp, zero or package.module:function
    stage: int | None = None  # zero: 0 nothing is partitioned, 1 optimizer state, 2 gradients too; default 2
    bucket_mb: float = 25.0  # MiB of gradients that are exchanged at once (torch's default)
    gradient_dtype: Literal["float32", "bfloat16"] | None = None  # of the exchange; default: that of the parameters
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for package.module:function


@dataclass(frozen=True, kw_only=True)
class SpeedRecipe:
    """Keys that change the speed of a step, and at most its rounding. docs/performance.md has the measured effects.

    Keys that say experimental have not been run on a GPU.
    """

    channels_last: bool = True  # memory layout of images and weights: the layout in which cuDNN and oneDNN compute
    compile: bool = False  # torch.compile the model: fuses element-wise kernels, takes a minute; GPU: experimental
    cuda_graph: bool = False  # GPU, experimental: replay a step as one CUDA graph; for a few dozen images per worker
    sgd_kernel: Literal["auto", "foreach", "fused", "loop"] = "auto"  # auto: fused on a CPU, foreach on a GPU
    copy_stream: bool = True  # GPU: copy the next images from pinned memory while this step computes
    cudnn_benchmark: bool = True  # GPU: let cuDNN time its algorithms once; off under `deterministic: true`


EXPERIMENTAL = ("compile", "cuda_graph")  # keys of `speed` that no GPU has run: off by default


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """When the model is evaluated on the val split. The end of the run always evaluates."""

    every: Duration = field(default_factory=lambda: Duration(Fraction(1), "epochs"))  # time between two evaluations
    batch_size: int = 64  # samples per forward pass on one worker; changes no result
    resolution: int | None = None  # height and width of the network's input in evaluation; default: data.resolution
    train: bool = False  # also evaluate on the training split, with central crops: shows overfitting
    precise_batch_norm: int = 0  # steps whose batches give batch norm's statistics; 0: running statistics
    beside: bool = False  # evaluate checkpoints in a process of its own, on other resources, while training goes on
    metrics: tuple[str, ...] = ()  # more metrics: package.module:function, called with (logits, labels), returns [n]


@dataclass(frozen=True, kw_only=True)
class StopAtRecipe:
    """Ends the run at the first evaluation that reaches a target."""

    top1: float | None = None  # least top-1 accuracy on the val split, such as 75.9 %
    loss: float | None = None  # largest loss on the val split


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a training run, except where and how it is carried out."""

    data: DataRecipe
    batch: BatchRecipe
    duration: Duration  # length of the training
    schedule: ScheduleRecipe
    seed: int = 0  # of the initial weights, the order of the samples, and all random changes of images and labels
    model: ModelRecipe = field(default_factory=ModelRecipe)
    batch_norm: BatchNormRecipe = field(default_factory=BatchNormRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    regularization: RegularizationRecipe = field(default_factory=RegularizationRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    ema: EmaRecipe = field(default_factory=EmaRecipe)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)
    stop_at: StopAtRecipe = field(default_factory=StopAtRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    speed: SpeedRecipe = field(default_factory=SpeedRecipe)
    precision: Precision = "float32"  # bfloat16, float16: autocast with float32 weights; tf32: GPU; float64: everything
    deterministic: bool = False  # GPU: the same bits in every run, at lower speed; on a CPU they always are

    @property
    def evaluation_data(self) -> DataRecipe:
        """The images of an evaluation: those of `data`, at the resolution of `evaluate`."""
        resolution = self.evaluate.resolution
        return self.data if resolution is None else dataclasses.replace(self.data, resolution=resolution)


# Values of keys that a recorded recipe (in a checkpoint or config.yaml of an earlier version) lacks, by dotted key. A
# key without a line here has its present default. A new key whose default changes earlier behaviour needs a line. A
# changed default needs another way, since earlier versions recorded the old one: `launcher.run.recorded`.
MEANT_BY_ABSENCE: Mapping[str, Any] = {}


def plain(value: Any) -> Any:
    """`value` in JSON's and YAML's own types: dataclasses become dicts, tuples lists, and durations text.

    Objects with a method `plain` are replaced by its result.
    """
    if isinstance(value, Duration):
        return str(value)
    if hasattr(value, "plain"):
        return value.plain()
    if dataclasses.is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
