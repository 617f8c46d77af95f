"""DeepSpeed's ZeRO, stages 0 to 2, with the loss curve of plain data parallelism.

This is the only file that uses DeepSpeed. Its defaults that would change the curve are turned off: averaging over
workers instead of samples, clipping to 1.0, dropping steps whose gradient is not finite, its autocast, its checkpoints.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.engines.accumulate import accumulate
from resnet_dist.engines.clipping import clip
from resnet_dist.engines.ddp import LossSum
from resnet_dist.engines.missing_gradients import MissingGradients
from resnet_dist.engines.partition import (
    Partition,
    PartitionError,
    PartitionTable,
    check_covered,
    check_partitionable,
    partition_table,
)
from resnet_dist.engines.partitioned_state import FlatGroup, check_states, gather_state, own_part, scatter_state
from resnet_dist.engines.protocol import Engine, MicroBatch, OptimizerPart, OptimizerState
from resnet_dist.engines.state import load_state_by_name, state_by_name
from resnet_dist.errors import MissingPackage, RecipeError
from resnet_dist.models.loss import num_correct
from resnet_dist.optim.groups import write_learning_rate
from resnet_dist.optim.layerwise import LayerwiseOptimizer, last_trust_ratios, squared_norms
from resnet_dist.telemetry.step_totals import StepSums

STAGES = (0, 1, 2)
BUCKET_SIZE_BYTES = 25 * 2**20  # the default of torch's DistributedDataParallel
_NEVER = 10**9  # steps
_TESTED = "0.19.8"
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class ZeroEngine(Engine):
    """DeepSpeed ZeRO: optimizer state (stage 1) and gradients (stage 2) are sharded over the workers; at stage 0 none.

    Parameters stay whole on every worker, in float32, so `module` is the model at every stage. Build the engine after
    `module` has its weights: the workers' partitions are copies. Needs a process group, even with one process.

    Gradients, sums over all samples divided by `batch_size`, are exchanged in `gradient_dtype`, in buckets of
    `bucket_size_bytes`, at stage 2 after every micro-batch. `Lars` computes norms of whole parameters at every stage.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_sum: LossSum,
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

        Raises MissingPackage without DeepSpeed, RecipeError for an optimizer that does not work on shards and for a
        version of DeepSpeed with another layout of partitions, RuntimeError without a process group.
        """
        assert stage in STAGES
        assert all(parameter.dtype is torch.float32 for parameter in module.parameters())
        if not dist.is_initialized():
            raise RuntimeError(
                "ZeRO needs a process group, even with one process: call torch.distributed.init_process_group first"
            )
        self._module = module
        self._loss_sum = loss_sum
        self._batch_size = batch_size
        self._num_micro_batches = num_micro_batches
        self._stage = stage
        self._gradient_clipping = gradient_clipping
        self._device = next(module.parameters()).device
        self._optimizer = optimizer
        if stage > 0:
            check_partitionable(optimizer, warn=dist.get_rank() == 0)
        self._states_checked = False
        self._missing = MissingGradients(module)
        parameters = [list(group["params"]) for group in self._optimizer.param_groups]
        for parameter in module.parameters():
            # DeepSpeed cannot broadcast channels-last tensors; contiguous() would leave 1 × 1 kernels as they are
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

        deepspeed = _import_deepspeed(self._device)
        config = _config(stage, bucket_size_bytes // 4, gradient_dtype)
        # DeepSpeed keeps its process group, even after that was destroyed
        deepspeed.utils.groups._WORLD_GROUP = None
        deepspeed.comm.comm.cdb = None
        # DeepSpeed uses LOCAL_RANK as the number of the GPU, also if each worker sees only one GPU
        index = self._device.index
        with _environment(LOCAL_RANK=os.environ.get("LOCAL_RANK", "0") if index is None else str(index)):
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
        """Make one optimizer step. Raises ValueError for another number of micro-batches than the engine's."""
        write_learning_rate(self._optimizer, learning_rate)
        loss, correct = accumulate(micro_batches, self._num_micro_batches, self._device, self._run)
        if self._stage == 0:
            self._missing.fill()  # reentrant activation checkpointing hides which parameters are used
        squares, gradient_squared = self._clip()
        self._engine.step()
        if not self._states_checked:
            check_states(self._groups, self._optimizer)
            self._states_checked = True
        return StepSums(
            loss, correct, gradient_squared, trust_ratios=last_trust_ratios(self._optimizer), gradient_squares=squares
        )

    def _run(self, batch: MicroBatch, is_last: bool) -> tuple[Tensor, Tensor]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        logits = self._engine(batch.images)
        loss_sum = self._loss_sum(logits, batch.labels)
        scaled = self._missing.join(loss_sum / self._batch_size)
        if self._stage == 2 and dist.get_world_size() > 1:
            self._missing.check_unchanged()
        self._engine.backward(scaled, scale_wrt_gas=False)
        return loss_sum.detach(), num_correct(logits.detach(), batch.labels)

    def optimizer_state(self) -> OptimizerState:
        """Return the whole optimizer state by parameter name, copies, on every worker. A collective."""
        if self._stage > 0:
            state = gather_state(self._groups, self._optimizer, _all_gather)
            return {name: state[name] for name, _ in self._module.named_parameters() if name in state}
        return {
            name: {key: value.clone() for key, value in entries.items()}
            for name, entries in state_by_name(self._module, self._optimizer).items()
        }

    def optimizer_part(self) -> OptimizerPart | None:
        """Return this worker's part, live; None at stage 0 and on one worker, where the state is whole."""
        if self._stage == 0 or dist.get_world_size() == 1:
            return None
        return own_part(self._groups, self._optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Load a state of any engine and number of workers. Raises ValueError if its names or shapes do not fit."""
        if self._stage > 0:
            scatter_state(self._groups, self._optimizer, state)
        else:
            load_state_by_name(self._module, self._optimizer, state)

    @torch.no_grad()
    def _clip(self) -> tuple[Tensor | None, Tensor]:
        """Clip the gradient if requested.

        Returns squared norms before clipping: of each parameter's gradient, if it is whole on this worker, and this
        worker's summand of the whole gradient's.
        """
        if self._stage == 0:
            gradients = [parameter.grad for group in self._optimizer.param_groups for parameter in group["params"]]
        else:  # of this worker's partitions; zeros in the padding
            gradients = [part for parts in self._engine.optimizer.averaged_gradients.values() for part in parts]
        squares = squared_norms(gradients)
        own = squares.sum()
        if self._gradient_clipping is not None:
            whole = own.clone()
            if self._stage > 0:
                dist.all_reduce(whole)
            clip(gradients, whole, self._gradient_clipping)
        if self._stage > 0:
            return None, own
        return squares, own if dist.get_rank() == 0 else torch.zeros_like(own)  # all have the whole: it is counted once

    def _bind(self, parameters: list[list[Tensor]], version: str) -> list[FlatGroup]:
        """Return the groups with their tables, checked against DeepSpeed's layout. Raises on all workers or on none."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        trained = [[parameter for parameter in group if parameter.requires_grad] for group in parameters if group]
        groups: list[FlatGroup] = []
        problem = ""
        try:
            if not hasattr(self._engine.optimizer, "averaged_gradients"):  # read at each step
                raise PartitionError("its optimizer has no averaged_gradients")
            for number, group in enumerate(trained):
                groups.append(_flat_group(self._engine.optimizer, number, group, names))
        except (AttributeError, PartitionError) as error:
            problem = str(error)
        found: list[tuple[str, list[PartitionTable]]] = [("", [])] * dist.get_world_size()
        dist.all_gather_object(found, (problem, [group.table for group in groups]))
        try:
            for problem, _ in found:
                if problem:
                    raise PartitionError(problem)
            for tables in zip(*(tables for _, tables in found), strict=True):
                check_covered(tables)
        except PartitionError as error:
            raise RecipeError(
                "engine.name",
                f"DeepSpeed {version} does not lay out its partitions as expected: {error}",
                f"DeepSpeed {_TESTED}, which was tested; or engine ddp",
            ) from error
        if isinstance(self._optimizer, LayerwiseOptimizer):
            for bound in groups:
                self._optimizer.bind(bound.flat, Partition(bound.table, dist.all_reduce))
        return groups


class _Forward(nn.Module):
    """The model's forward pass under autocast: inside it, DeepSpeed does not change the autocast state."""

    def __init__(self, module: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.autocast_dtype = autocast_dtype

    def forward(self, images: Tensor) -> Tensor:
        enabled = self.autocast_dtype is not None
        with torch.autocast(images.device.type, dtype=self.autocast_dtype, enabled=enabled):
            return self.module(images)  # type: ignore[no-any-return]


def _config(stage: int, bucket_size: int, gradient_dtype: torch.dtype) -> dict[str, Any]:
    """Return DeepSpeed's configuration, with every default that could change the curve. `bucket_size`: elements."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "round_robin_gradients": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket_size,
        "allgather_bucket_size": bucket_size + bucket_size % 2,  # DeepSpeed requires an even number
    }
    # Options that the oldest allowed version does not know, and refuses. Without its own gradient norm, DeepSpeed
    # does not drop steps whose gradient is not finite: these must show in the loss, as with DDP.
    newer = {"compute_grad_norm": False, "parameter_alignment": False} if stage > 0 else {}
    zero |= {key: value for key, value in newer.items() if key in DeepSpeedZeroConfig.model_fields}
    world_size = dist.get_world_size()
    return {
        # DeepSpeed checks the product of these only; the engine counts micro-batches
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # off; the default is 1.0
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


def _flat_group(zero: Any, number: int, parameters: list[Tensor], names: dict[int, str]) -> FlatGroup:
    """Return group `number` with its table, after comparing the weights in the partition with the parameters."""
    flat: Tensor = zero.single_partition_of_fp32_groups[number]
    in_order: list[Tensor] = list(zero.round_robin_bit16_groups[number])
    if {id(parameter) for parameter in in_order} != {id(parameter) for parameter in parameters}:
        raise PartitionError(f"group {number} has other parameters than the optimizer's")
    numels = [parameter.numel() for parameter in in_order]
    offsets = [int(offset) for offset in zero.round_robin_bit16_offsets[number]]
    table = partition_table(numels, offsets, int(zero.partition_size[number]), dist.get_rank())
    if flat.numel() != table.partition_size:
        raise PartitionError(f"the partition of group {number} has {flat.numel()} elements, not {table.partition_size}")
    for shard in table.shards:
        own = in_order[shard.parameter].detach().flatten()[shard.in_parameter]
        if not torch.equal(flat.detach()[shard.in_partition], own):
            raise PartitionError(f"the weights of {names[id(in_order[shard.parameter])]} are at another place")
    return FlatGroup(tuple(names[id(parameter)] for parameter in in_order), tuple(in_order), flat, table)


def _all_gather(part: Tensor) -> Tensor:
    """Return the workers' parts, concatenated in the order of ranks."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for `device`, without its log output and warnings."""
    # newer torch warns of the deprecated name that DeepSpeed uses at every step
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
        raise RuntimeError(f"DeepSpeed was already imported for {found}; it cannot train on {device} in this process")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # otherwise it compiles an unused operator for half a minute
    return deepspeed


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables during the block."""
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
