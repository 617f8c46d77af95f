"""Precise batch norm: the mean and variance of batch norm over many batches, for an evaluation.

The running statistics are moving averages over steps whose weights differ. Wu and Johnson 2021 ("Rethinking 'Batch' in
BatchNorm", arXiv 2105.07576, section 3) compute the statistics with fixed weights instead: N batches are normalised as
in training, by the statistics of their spans, and

    mean = E[x],  variance = Var[x]        over all samples of the N batches

Differences from their code (fvcore's `update_bn_stats`): the variance is that of all values, not the mean of the
variances of the batches; modules other than batch norm are in evaluation mode, so that dropout does not change the
statistics; and the batches are those of the last N steps, so that the result is a function of the step alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import RecipeError
from resnet_dist.models.batch_norm import SpanBatchNorm
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.training.evaluate import Autocast, evaluation_mode, forward


class PreciseBatchNorm:
    """Statistics of batch norm over the batches of the last `num_steps` steps, with fixed weights."""

    def __init__(
        self,
        model: nn.Module,
        statistics: RunningStatistics,
        micro_batches_from: Callable[[int], Generator[MicroBatch, None, None]],
        num_steps: int,
        num_micro_batches: int,
        autocast: Autocast | None = None,
    ) -> None:
        """`micro_batches_from` yields this worker's micro-batches of all steps from a given one (0 is the first).

        Raises RecipeError if no batch norm of `model` has running statistics that change in training.
        """
        self._model, self._statistics, self._autocast = model, statistics, autocast
        self._micro_batches_from, self._num_micro_batches = micro_batches_from, num_micro_batches
        self._num_steps = num_steps
        if not any(layer.training for layer in statistics.layers):
            found = f"found {num_steps}, and no batch norm of the model has running statistics that are not frozen"
            raise RecipeError("evaluate.precise_batch_norm", found, "0, or a model with such a batch norm")

    @torch.no_grad()
    def statistics(self, step: int, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Mean and variance by name of the buffer, after `step` completed steps. A collective.

        `weights` are used instead of the model's parameters of these names. The batches are those of all steps if there
        were fewer than `num_steps`. Frozen batch norms keep their statistics and are left out. The model, and what
        training has collected of it, do not change.
        """
        first = max(step - self._num_steps, 0)
        count = (step - first) * self._num_micro_batches
        layers = [module for module in self._model.modules() if isinstance(module, SpanBatchNorm) and module.training]
        with (
            self._statistics.measuring(),
            evaluation_mode(self._model),
            closing(self._micro_batches_from(first)) as micro_batches,
        ):
            for layer in layers:
                layer.training = True
            for batch in itertools.islice(micro_batches, count):
                forward(self._model, batch.images, self._autocast, weights)
            return self._statistics.pooled(dist.all_reduce if dist.is_initialized() else lambda tensor: None)


def on_device(
    batches_from: Callable[[int], Generator[HostBatch, None, None]],
    to_device: Callable[[HostBatch], MicroBatch],
    beating: Callable[[Iterator[HostBatch]], Iterator[HostBatch]],
) -> Callable[[int], Generator[MicroBatch, None, None]]:
    """The micro-batches of `batches_from`, each moved to the device when it is requested, with signs of life."""

    def micro_batches_from(step: int) -> Generator[MicroBatch, None, None]:
        with closing(batches_from(step)) as batches:
            yield from map(to_device, beating(batches))

    return micro_batches_from
