"""Dropout and stochastic depth whose random choices are functions of the seed and the sample's position in the stream.

torch's own layers draw from the generator of the worker, so that their masks change with the number of workers, the
micro-batches and a restart. Here the factors of all layers are drawn before each micro-batch, on its device and without
waiting for it; the layers only multiply. In evaluation mode they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resnet_dist.models.resnet import Block, ResNet

# SplitMix64, as in `resnet_dist.data.random_bits`, in signed arithmetic: torch has none for unsigned numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHIFTS = (30, 27, 31)


class Draws:
    """The factors of the current micro-batch's samples for layers of one kind: 0, or 1 / (1 - rate).

    factors   float64 or float32 [samples, columns]; always the same tensor while the number of samples is the same, as
              CUDA graphs require
    """

    def __init__(self, stream: int, rates: Sequence[float], dtype: torch.dtype, device: torch.device) -> None:
        """`stream` is the state of `random_bits.stream`; `rates` are the probabilities of 0 by column."""
        self._stream = stream - 2**64 if stream >= 2**63 else stream
        self._rates = torch.tensor(rates, dtype=torch.float64, device=device)
        self.factors = torch.empty((0, len(rates)), dtype=dtype, device=device)

    @torch.no_grad()
    def draw(self, positions: Tensor) -> None:
        """Draw the factors of the samples at `positions`, int64 [samples], in the stream."""
        kept = uniform(self._stream, positions, len(self._rates)) >= self._rates
        factors = (kept / (1 - self._rates)).to(self.factors.dtype)
        if factors.shape == self.factors.shape:
            self.factors.copy_(factors)
        else:
            self.factors = factors


class Mask(nn.Module):
    """Multiplies in training by the factors of its `draws`; in evaluation it returns its input."""

    def __init__(self, draws: Draws, column: int | None = None) -> None:
        """`column`: of the factor of a whole sample; None: each unit of the input [samples, units] has its own."""
        super().__init__()
        self.draws, self.column = draws, column

    def forward(self, x: Tensor) -> Tensor:
        """Return x [samples, ...], masked. Raises RuntimeError if the factors are of another number of samples."""
        if not self.training:
            return x
        factors = self.draws.factors
        if len(factors) != len(x):
            problem = f"{len(x)} samples reach a mask that was drawn for {len(factors)}"
            raise RuntimeError(f"{problem}: a micro-batch must be computed before the next one is requested")
        if self.column is not None:
            factors = factors[:, self.column].view(-1, *[1] * (x.dim() - 1))
        return (x * factors).to(x.dtype)  # 1 / (1 - rate) is not rounded to the 8 bits of bfloat16


class SampleMasks:
    """All random masks of a network. Call it with the positions of each micro-batch before its forward pass."""

    def __init__(self, all_draws: Sequence[Draws], device: torch.device) -> None:
        self._all_draws, self._device = all_draws, device

    def __call__(self, positions: Tensor) -> None:
        """Draw for the samples at `positions`, int64 [samples], on any device. The host does not wait."""
        if self._device.type == "cuda" and not positions.is_cuda:
            positions = positions.pin_memory()
        positions = positions.to(self._device, non_blocking=True)
        for draws in self._all_draws:
            draws.draw(positions)


def add_dropout(model: ResNet, rate: float, stream: int) -> Draws:
    """Leave out each input of the classifier with probability `rate`, and scale the others by 1 / (1 - rate).

    Source: Srivastava et al. 2014 (JMLR 15), section 4; scaled in training as by torch.nn.Dropout. Call it when the
    model is on its device.
    """
    weight = model.fc.weight
    draws = Draws(stream, [rate] * model.fc.in_features, _dtype(weight), weight.device)
    model.dropout = Mask(draws)
    return draws


def add_stochastic_depth(model: ResNet, rate: float, stream: int) -> Draws:
    """Skip the branch of block l of L with probability l / L x rate, for each sample by itself.

    Source: Huang et al. 2016 (arXiv 1603.09382), equation 4, in which `rate` is 1 - p_L. They skip a block for a whole
    mini-batch and scale in evaluation; torchvision.ops.StochasticDepth ("row") and timm's DropPath do as this function:
    for each sample, with a factor 1 / (1 - probability) in training. timm's linear rule starts at 0 for the first
    block. Call it when the model is on its device.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block) and module.residual]
    weight = model.fc.weight
    rates = [rate * number / len(blocks) for number in range(1, len(blocks) + 1)]
    draws = Draws(stream, rates, _dtype(weight), weight.device)
    for column, block in enumerate(blocks):
        block.stochastic_depth = Mask(draws, column)
    return draws


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def uniform(stream: int, positions: Tensor, num: int) -> Tensor:
    """`num` numbers for each position: float64 [n, num] in [0, 1), those of `resnet_dist.data.random_bits.uniform`.

    `stream` is the state of its stream as a signed number; positions are int64 [n]. The result is on their device.
    """
    states = _element(torch.full_like(positions, stream), positions)
    words = _element(states[:, None], torch.arange(num, device=positions.device)[None, :])
    return _shifted(words, 11).double() * 2.0**-53


def _element(states: Tensor, counters: Tensor) -> Tensor:
    """As `random_bits.element`, for int64: sums and products wrap around."""
    word = states + (counters + 1) * _GOLDEN
    word = (word ^ _shifted(word, _SHIFTS[0])) * _FACTORS[0]
    word = (word ^ _shifted(word, _SHIFTS[1])) * _FACTORS[1]
    return word ^ _shifted(word, _SHIFTS[2])


def _shifted(word: Tensor, bits: int) -> Tensor:
    """`word`, shifted to the right by `bits`, with zeros from the left also if it is negative."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
