"""DeepSpeed's ZeRO, stages 0 to 2, with the loss curve of plain data parallelism.

Everything of DeepSpeed is in this file. What it would do on its own, it is told not to: averaging over workers instead
of samples, clipping to 1.0, dropping a step whose gradient is not finite, its own autocast, its own checkpoints.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.engines.clipping import clip_scale
from resnet_dist.engines.missing_gradients import MissingGradients
from resnet_dist.engines.partition import (
    Partition,
    PartitionedLars,
    PartitionError,
    check_covered,
    for_partitions,
    partition_table,
)
from resnet_dist.engines.partitioned_state import FlatGroup, check_states, gather_state, own_part, scatter_state
from resnet_dist.engines.protocol import MicroBatch, OptimizerPart, OptimizerState
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.errors import MissingPackage, RecipeError
from resnet_dist.models.loss import num_correct
from resnet_dist.optim.lars import squared_norms
from resnet_dist.telemetry.step_totals import StepSums

STAGES = (0, 1, 2)
BUCKET_SIZE_BYTES = 25 * 2**20  # as torch's DistributedDataParallel
_NEVER = 10**9  # steps
_TRIED = "0.19.8"
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class ZeroEngine:
    """DeepSpeed ZeRO: optimizer state (stage 1) and gradients (2) cut over the workers; at stage 0 all are whole.

    Parameters stay whole on every worker, in float32, so `module` is the model at every stage. Build the engine when
    `module` has its weights: the workers' partitions are copies. A process group must be up, of one process too.

    Of gradients, the sum over all samples divided by `batch_size` is exchanged in `gradient_dtype`, in buckets of
    `bucket_size_bytes`, at stage 2 after every micro-batch. `Lars` works on partitions as on whole parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_sum: Callable[[Tensor, Tensor], Tensor],
        *,
        batch_size: int,
        num_micro_batches: int,
        autocast_dtype: torch.dtype | None = None,
        stage: int,
        bucket_size_bytes: int = BUCKET_SIZE_BYTES,
        gradient_clipping: float | None = None,
        gradient_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wrap `module` and take over `optimizer`; a collective.

        Raises MissingPackage without DeepSpeed, RecipeError for an optimizer that cannot be cut and for a DeepSpeed
        that keeps its partitions in another way, RuntimeError without a process group.
        """
        assert stage in STAGES
        assert all(parameter.dtype is torch.float32 for parameter in module.parameters())
        if not dist.is_initialized():
            raise RuntimeError(
                "ZeRO needs a process group, of one process too: call torch.distributed.init_process_group first"
            )
        self._module = module
        self._loss_sum = loss_sum
        self._batch_size = batch_size
        self._num_micro_batches = num_micro_batches
        self._stage = stage
        self._gradient_clipping = gradient_clipping
        self._device = next(module.parameters()).device
        self._optimizer = optimizer if stage == 0 else for_partitions(optimizer, warn=dist.get_rank() == 0)
        self._states_checked = False
        self._missing = MissingGradients(module)
        parameters = [list(group["params"]) for group in self._optimizer.param_groups]
        for parameter in module.parameters():
            # from channels-last, which DeepSpeed cannot broadcast; contiguous() leaves 1 × 1 kernels as they are
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

        deepspeed = _import_deepspeed(self._device)
        config = _config(stage, bucket_size_bytes // 4, gradient_dtype)
        _forget_world_of_before(deepspeed)
        with _environment(LOCAL_RANK=_local_rank(self._device)):
            self._engine, *_ = deepspeed.initialize(
                model=_Forward(module, autocast_dtype),
                optimizer=self._optimizer,
                config=config,
                dist_init_required=False,
            )
        self._groups: list[FlatGroup] = []
        if stage > 0:
            self._groups = self._bind(parameters, deepspeed.__version__)

    @property
    def module(self) -> nn.Module:
        """The model, its parameters up to date with the last step."""
        return self._module

    def step(self, micro_batches: Iterable[MicroBatch], learning_rate: float) -> StepSums:
        """One optimizer step; ValueError where the number of micro-batches is not the engine's."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.float64, device=self._device)
        number = 0
        for number, batch in enumerate(micro_batches, start=1):
            self._engine.set_gradient_accumulation_boundary(number == self._num_micro_batches)
            logits = self._engine(batch.images)
            loss_sum = self._loss_sum(logits, batch.labels)
            scaled = self._missing.join(loss_sum / self._batch_size)
            if self._stage == 2 and dist.get_world_size() > 1:
                self._missing.check_unchanged()
            self._engine.backward(scaled, scale_wrt_gas=False)
            loss += loss_sum.detach()
            correct += num_correct(logits.detach(), batch.labels)
        if number != self._num_micro_batches:
            raise ValueError(f"a step has {self._num_micro_batches} micro-batches, got {number}")
        if self._stage == 0:
            self._missing.fill()  # where activation checkpointing hides which parameters are used
        gradient_squared = self._clip()
        self._engine.step()
        if not self._states_checked:
            check_states(self._groups, self._optimizer)
            self._states_checked = True
        return StepSums(loss, correct, gradient_squared)

    def optimizer_state(self) -> OptimizerState:
        """The whole optimizer state by parameter name, on the CPU: copies, on every worker. A collective."""
        if self._stage > 0:
            state = gather_state(self._groups, self._optimizer, _all_gather)
            return {name: state[name] for name, _ in self._module.named_parameters() if name in state}
        return {
            name: {key: value.clone() for key, value in entries.items()}
            for name, entries in state_by_name(self._module, self._optimizer).items()
        }

    def optimizer_part(self) -> OptimizerPart | None:
        """What this worker's partitions hold, live; None at stage 0 and on one worker, where they are whole."""
        if self._stage == 0 or dist.get_world_size() == 1:
            return None
        return own_part(self._groups, self._optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Take up a state of any engine and number of workers; ValueError if its names or shapes do not fit."""
        if self._stage > 0:
            scatter_state(self._groups, self._optimizer, state)
        else:
            load_state_by_name(self._module, self._optimizer, state)

    @property
    def skips_overflows(self) -> bool:
        """Never: there is no loss scaler."""
        return False

    def scaler_state(self) -> Mapping[str, float]:
        """Empty: float16, which needs a loss scale, is for engine ddp."""
        return {}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Leaves everything as it is: there is no scaler that could take up `state`."""

    @torch.no_grad()
    def _clip(self) -> Tensor:
        """Clip the gradient where that is asked for; returns this worker's part of its squared norm before."""
        if self._stage == 0:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            gradients = [parameter.grad for parameter in parameters]
        else:  # of this worker's partitions, and zeros where they are padded
            gradients = [part for parts in self._engine.optimizer.averaged_gradients.values() for part in parts]
        own = squared_norms(gradients).sum()
        if self._gradient_clipping is not None:
            whole = own.clone()
            if self._stage > 0:
                dist.all_reduce(whole)
            torch._foreach_mul_(gradients, clip_scale(whole, self._gradient_clipping).to(gradients[0].dtype))
        if self._stage == 0 and dist.get_rank() != 0:
            return torch.zeros_like(own)  # every worker has all of the gradient; it counts once
        return own

    def _bind(self, parameters: list[list[Tensor]], version: str) -> list[FlatGroup]:
        """The table of each group, checked against what DeepSpeed has laid out. Fails on all workers or on none."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        groups: list[FlatGroup] = []
        problem = ""
        try:
            _check_attributes(self._engine.optimizer)
            for number, group in enumerate(group for group in parameters if group):
                trained = [parameter for parameter in group if parameter.requires_grad]
                groups.append(_flat_group(self._engine.optimizer, number, trained, names))
        except PartitionError as error:
            problem = str(error)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (problem, [group.table for group in groups]))
        problem = next((problem for problem, _ in found if problem), "")
        try:
            for tables in zip(*(tables for _, tables in found), strict=True) if not problem else ():
                check_covered(tables)
        except PartitionError as error:
            problem = str(error)
        if problem:
            raise RecipeError(
                "engine.name",
                f"DeepSpeed {version} does not lay out its partitions as expected: {problem}",
                f"DeepSpeed {_TRIED}, with which this was tried; or engine ddp",
            )
        if isinstance(self._optimizer, PartitionedLars):
            for bound in groups:
                self._optimizer.bind(bound.flat, Partition(bound.table, dist.all_reduce))
        return groups


class _Forward(nn.Module):
    """The model's forward pass under autocast: within it, DeepSpeed leaves an autocast of ours alone."""

    def __init__(self, module: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.autocast_dtype = autocast_dtype

    def forward(self, images: Tensor) -> Tensor:
        enabled = self.autocast_dtype is not None
        with torch.autocast(images.device.type, dtype=self.autocast_dtype, enabled=enabled):
            return self.module(images)  # type: ignore[no-any-return]


def _config(stage: int, bucket_size: int, gradient_dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration, with every default that could bend the curve. `bucket_size` is in elements."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "round_robin_gradients": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket_size,
        "allgather_bucket_size": bucket_size + bucket_size % 2,  # DeepSpeed asks for an even one
    }
    # Newer than the oldest DeepSpeed that is allowed, which refuses what it does not know. Without a norm of its own
    # it does not drop the steps whose gradient is not finite: they must show in the loss, as they do with DDP.
    newer = {"compute_grad_norm": False, "parameter_alignment": False} if stage > 0 else {}
    zero |= {key: value for key, value in newer.items() if key in DeepSpeedZeroConfig.model_fields}
    world_size = dist.get_world_size()
    return {
        # only the product of these is checked; the engine counts micro-batches itself
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # its default is 1.0
        "gradient_allreduce_op": "sum",  # the loss is divided by the batch size already
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": _DTYPE_NAMES[gradient_dtype],
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
    }


def _check_attributes(zero: Any) -> None:
    needed = (
        "averaged_gradients",
        "partition_size",
        "round_robin_bit16_groups",
        "round_robin_bit16_offsets",
        "single_partition_of_fp32_groups",
    )
    missing = [name for name in needed if not hasattr(zero, name)]
    if missing:
        raise PartitionError(f"its optimizer has no {', '.join(missing)}")


def _flat_group(zero: Any, number: int, parameters: list[Tensor], names: dict[int, str]) -> FlatGroup:
    """Group `number` and its table, which must find every parameter's weights in the partition."""
    flat: Tensor = zero.single_partition_of_fp32_groups[number]
    in_order: list[Tensor] = list(zero.round_robin_bit16_groups[number])
    if {id(parameter) for parameter in in_order} != {id(parameter) for parameter in parameters}:
        raise PartitionError(f"group {number} has other parameters than it was given")
    numels = [parameter.numel() for parameter in in_order]
    offsets = [int(offset) for offset in zero.round_robin_bit16_offsets[number]]
    table = partition_table(numels, offsets, int(zero.partition_size[number]), dist.get_rank())
    if flat.numel() != table.partition_size:
        raise PartitionError(f"the partition of group {number} has {flat.numel()} elements, not {table.partition_size}")
    for piece in table.pieces:
        own = in_order[piece.parameter].detach().flatten()[piece.in_parameter]
        if not torch.equal(flat.detach()[piece.in_partition], own):
            raise PartitionError(f"the weights of {names[id(in_order[piece.parameter])]} are elsewhere")
    return FlatGroup(tuple(names[id(parameter)] for parameter in in_order), tuple(in_order), flat, table)


def _all_gather(part: Tensor) -> Tensor:
    """The workers' parts, one after another."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, for `device`."""
    # newer torch warns of the name by which DeepSpeed calls it at every step
    old_name = r"`torch\.distributed\.all_gather_into_tensor` is deprecated"
    warnings.filterwarnings("ignore", message=old_name, category=FutureWarning)
    with _environment(**({"DS_ACCELERATOR": "cpu"} if device.type == "cpu" else {})):
        try:
            import deepspeed
        except ImportError as error:
            install = "pip install 'resnet-launcher[deepspeed]'"
            raise MissingPackage("engine.name", "DeepSpeed", install) from error
        found = deepspeed.accelerator.get_accelerator().device_name()
    if found != device.type:
        raise RuntimeError(f"DeepSpeed was imported for {found} before; in this process it cannot train on {device}")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # or it compiles one that nothing here uses, for half a minute
    return deepspeed


def _local_rank(device: torch.device) -> str:
    """What DeepSpeed must read for it: it takes it for the number of the GPU, also where each worker sees but one."""
    return os.environ.get("LOCAL_RANK", "0") if device.index is None else str(device.index)


def _forget_world_of_before(deepspeed: Any) -> None:
    # DeepSpeed keeps its process group for good, even one that has been destroyed
    deepspeed.utils.groups._WORLD_GROUP = None
    deepspeed.comm.comm.cdb = None


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that are needed for a moment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
