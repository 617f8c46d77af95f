"""Residual and plain networks (He et al. 2015, arXiv 1512.03385), described by an `Architecture`.

ResNet, ResNeXt and Wide ResNet have torchvision's module names, ResNet-D has timm's: state dicts can be loaded strictly
in both directions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_dist.recipe.architectures import Architecture, whole


class Block(nn.Module):
    """relu(branch(x) + shortcut(x)), or relu(branch(x)) in a plain network.

    The branch is a chain of convolutions `conv1`, `conv2`, ..., each followed by a norm `bn1`, `bn2`, ..., with a ReLU
    between two of these pairs. `downsample` is the shortcut; None is the identity.
    """

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module
    conv3: nn.Module  # of a bottleneck
    bn3: nn.Module

    def __init__(
        self, convolutions: list[nn.Conv2d], norms: list[nn.Module], downsample: nn.Module | None, *, residual: bool
    ) -> None:
        """Register the modules in torchvision's order, which is that of the parameters."""
        super().__init__()
        self.num_layers = len(convolutions)
        for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True), start=1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", norm)
        self.relu = nn.ReLU()
        self.residual = residual
        self.downsample = downsample
        self.stochastic_depth: nn.Module | None = None  # applied to the branch: `resnet_dist.models.masks` sets it

    def layer(self, number: int) -> tuple[nn.Module, nn.Module]:
        """Convolution and norm number `number`, from 1."""
        return getattr(self, f"conv{number}"), getattr(self, f"bn{number}")

    @property
    def last_norm(self) -> nn.Module:
        """The last norm of the branch: a batch norm with a weight of 0 makes the block start as its shortcut."""
        return self.layer(self.num_layers)[1]

    def branch(self, x: Tensor) -> Tensor:
        """The block without its shortcut and without the last ReLU."""
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(self.relu(x)))
        return self.bn3(self.conv3(self.relu(x))) if self.num_layers == 3 else x

    def forward(self, x: Tensor) -> Tensor:
        """x  floating [batch, in_channels, h, w] -> [batch, out_channels, h / stride, w / stride]."""
        if not self.residual:
            return self.relu(self.branch(x))  # type: ignore[no-any-return]
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.branch(x)
        if self.stochastic_depth is not None:
            x = self.stochastic_depth(x)
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


class PreActivationBlock(Block):
    """branch(x) + shortcut(x), where a norm and a ReLU precede each convolution (He et al. 2016, arXiv 1603.05027).

    A shortcut that is not the identity shares the first norm and ReLU with the branch, as in the authors' code
    (github.com/facebookarchive/fb.resnet.torch, models/preresnet.lua, "both_preact"). The first block of a network has
    no `bn1` and ReLU, because those of the stem come right before it (the paper's appendix).
    """

    def __init__(
        self,
        convolutions: list[nn.Conv2d],
        norms: list[nn.Module],
        downsample: nn.Module | None,
        *,
        residual: bool,
        first: bool = False,
    ) -> None:
        """See `Block`. `first`: the input has just been normalised and activated."""
        super().__init__(convolutions, norms, downsample, residual=residual)
        self.first = first
        if first:
            self.bn1 = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        """The block without its shortcut, from its first convolution on."""
        x = self.conv1(x)
        x = self.conv2(self.relu(self.bn2(x)))
        return self.conv3(self.relu(self.bn3(x))) if self.num_layers == 3 else x

    def forward(self, x: Tensor) -> Tensor:
        """x  floating [batch, in_channels, h, w] -> [batch, out_channels, h / stride, w / stride]."""
        activated = x if self.first else self.relu(self.bn1(x))
        y = self.branch(activated)
        if not self.residual:
            return y
        if self.stochastic_depth is not None:
            y = self.stochastic_depth(y)
        return y + (x if self.downsample is None else self.downsample(activated))


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): every `stride`-th pixel, and additional channels of zeros."""

    def __init__(self, stride: int, new_channels: int) -> None:
        """`new_channels` is the number of additional channels."""
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """x  [batch, channels, height, width] -> [batch, channels + new_channels, height / stride, width / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResNet(nn.Module):
    """The network of an `Architecture`."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        channels = whole(architecture.planes[0])
        self.conv1 = _stem(architecture, channels)
        self.bn1 = _norm(architecture, channels)
        self.relu = nn.ReLU()
        self.maxpool = None if architecture.stem == "small" else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.num_stages = len(architecture.depths)
        for stage in range(self.num_stages):
            self.add_module(f"layer{stage + 1}", _stage(architecture, stage, channels))
            channels = architecture.out_channels(stage)
        self.norm = _norm(architecture, channels) if architecture.pre_activation else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout: nn.Module | None = None  # before the classifier: `resnet_dist.models.masks` sets it
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images  floating [batch, 3, height, width], normalised -> logits [batch, num_classes]."""
        x = self.relu(self.bn1(self.conv1(images)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        if self.norm is not None:
            x = self.relu(self.norm(x))
        x = self.avgpool(x).flatten(1)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.fc(x)  # type: ignore[no-any-return]


def _convolution(
    architecture: Architecture, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A square convolution that keeps the image's size at stride 1; without a bias if there are batch norms."""
    bias = not architecture.batch_norm
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def _norm(architecture: Architecture, channels: int) -> nn.Module:
    """A batch norm, or nothing in its place."""
    return nn.BatchNorm2d(channels) if architecture.batch_norm else nn.Identity()


def _stem(architecture: Architecture, channels: int) -> nn.Module:
    if architecture.stem == "small":
        return _convolution(architecture, 3, channels, 3)
    if architecture.stem == "imagenet":
        return _convolution(architecture, 3, channels, 7, stride=2)
    half = whole(architecture.planes[0] / 2)
    return nn.Sequential(
        _convolution(architecture, 3, half, 3, stride=2),
        _norm(architecture, half),
        nn.ReLU(),
        _convolution(architecture, half, half, 3),
        _norm(architecture, half),
        nn.ReLU(),
        _convolution(architecture, half, channels, 3),
    )


def _stage(architecture: Architecture, stage: int, in_channels: int) -> nn.Sequential:
    out_channels = architecture.out_channels(stage)
    blocks = []
    for number in range(architecture.depths[stage]):
        stride = 2 if stage > 0 and number == 0 else 1
        first = stage == 0 and number == 0
        downsample = _shortcut(architecture, in_channels, out_channels, stride)
        blocks.append(_block(architecture, stage, in_channels, stride, downsample, first=first))
        in_channels = out_channels
    return nn.Sequential(*blocks)


def _block(
    architecture: Architecture,
    stage: int,
    in_channels: int,
    stride: int,
    downsample: nn.Module | None,
    *,
    first: bool,
) -> Block:
    out_channels, inner = architecture.out_channels(stage), architecture.inner(stage)
    if architecture.block == "basic":
        sizes = [in_channels, out_channels, out_channels]
        convolutions = [
            _convolution(architecture, in_channels, out_channels, 3, stride),
            _convolution(architecture, out_channels, out_channels, 3),
        ]
    else:
        sizes = [in_channels, inner, inner, out_channels]
        convolutions = [
            _convolution(architecture, in_channels, inner, 1),
            _convolution(architecture, inner, inner, 3, stride, architecture.groups),
            _convolution(architecture, inner, out_channels, 1),
        ]
    if not architecture.pre_activation:
        norms = [_norm(architecture, channels) for channels in sizes[1:]]
        return Block(convolutions, norms, downsample, residual=architecture.residual)
    norms = [_norm(architecture, channels) for channels in sizes[:-1]]
    return PreActivationBlock(convolutions, norms, downsample, residual=architecture.residual, first=first)


def _shortcut(architecture: Architecture, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    changes_shape = stride != 1 or in_channels != out_channels
    if not architecture.residual or not (changes_shape or architecture.shortcut == "projection_all"):
        return None
    pool: list[nn.Module] = []
    if architecture.pooled_shortcut:
        pooled = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        pool, stride = [nn.Identity() if stride == 1 else pooled], 1
    if architecture.shortcut == "identity":
        padded = PaddedShortcut(stride, out_channels - in_channels)
        return nn.Sequential(*pool, padded) if pool else padded
    convolution = _convolution(architecture, in_channels, out_channels, 1, stride)
    # a norm would come after the convolution: with pre-activation it precedes it
    norms = [] if architecture.pre_activation else [_norm(architecture, out_channels)]
    return nn.Sequential(*pool, convolution, *norms)
