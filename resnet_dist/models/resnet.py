"""Residual networks (He et al. 2015, arXiv 1512.03385): the ImageNet family and the one for 32-pixel images.

The ImageNet networks have torchvision's module names: state dicts can be loaded strictly in both directions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution that keeps the image's size at stride 1. No bias: a batch norm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)). `expansion` is the block's output channels / its `width`.

    Subclasses register their modules in torchvision's order, which is that of the parameters.
    """

    expansion = 1
    downsample: nn.Module | None  # the shortcut if the block changes the shape; None: identity
    relu: nn.ReLU
    last_norm_name: str  # attribute of the branch's last batch norm

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The last batch norm of the branch: with a weight of 0 the block starts as its shortcut."""
        return getattr(self, self.last_norm_name)  # type: ignore[no-any-return]

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch, without the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x  floating [batch, in_channels, h, w] -> [batch, width * expansion, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.branch(x) + shortcut)  # type: ignore[no-any-return]


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (figure 5, left)."""

    last_norm_name = "bn2"

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        """See `ResidualBlock`."""
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def branch(self, x: Tensor) -> Tensor:
        """3x3, 3x3."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))  # type: ignore[no-any-return]


class Bottleneck(ResidualBlock):
    """1x1 down to `width`, 3x3, 1x1 up to 4 `width` (figure 5, right).

    The stride is on the 3x3, not on the first 1x1 as in the paper: "v1.5", as in Goyal et al. 2017 and torchvision.
    """

    expansion = 4
    last_norm_name = "bn3"

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        """See `ResidualBlock`."""
        super().__init__()
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def branch(self, x: Tensor) -> Tensor:
        """1x1, 3x3, 1x1."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The ImageNet family (table 1): a 7x7 stem and max-pooling, four stages, average pooling, one linear layer."""

    def __init__(self, block: type[ResidualBlock], depths: tuple[int, int, int, int], num_classes: int) -> None:
        """`depths` are the numbers of blocks of the four stages."""
        super().__init__()
        self.conv1 = convolution(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, depths[0], 64, 64, stride=1)
        self.layer2 = _stage(block, depths[1], 64 * block.expansion, 128, stride=2)
        self.layer3 = _stage(block, depths[2], 128 * block.expansion, 256, stride=2)
        self.layer4 = _stage(block, depths[3], 256 * block.expansion, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images  floating [batch, 3, height, width], normalised -> logits [batch, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(block: type[ResidualBlock], depth: int, in_channels: int, width: int, stride: int) -> nn.Sequential:
    """Blocks of one width. If the first changes the shape, its shortcut is a projection (option B)."""
    out_channels = width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    first = block(in_channels, width, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, width, 1, None) for _ in range(depth - 1)))


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): every `stride`-th pixel, and additional channels of zeros."""

    def __init__(self, stride: int, new_channels: int) -> None:
        """`new_channels` is the number of additional channels."""
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """x  [batch, channels, height, width] -> [batch, channels + new_channels, height / stride, width / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class SmallResNet(nn.Module):
    """The family for 32-pixel images (section 4.2): 6n + 2 layers with weights, 16, 32 and 64 channels, option A."""

    def __init__(self, blocks_per_stage: int, num_classes: int) -> None:
        """`blocks_per_stage` is the paper's n: 3 for resnet20, 18 for resnet110."""
        super().__init__()
        self.conv1 = convolution(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _small_stage(blocks_per_stage, 16, 16)
        self.layer2 = _small_stage(blocks_per_stage, 16, 32)
        self.layer3 = _small_stage(blocks_per_stage, 32, 64)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images  floating [batch, 3, height, width], normalised -> logits [batch, num_classes]."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _small_stage(depth: int, in_channels: int, width: int) -> nn.Sequential:
    if in_channels == width:
        first = BasicBlock(in_channels, width, 1, None)
    else:
        first = BasicBlock(in_channels, width, 2, PaddedShortcut(stride=2, new_channels=width - in_channels))
    return nn.Sequential(first, *(BasicBlock(width, width, 1, None) for _ in range(depth - 1)))
