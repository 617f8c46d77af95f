"""The built-in networks by name, and what a recipe changes in them. No torch: `resnet_dist.models` builds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from resnet_dist.recipe.schema import ModelRecipe

BlockKind = Literal["basic", "bottleneck"]
Shortcut = Literal["identity", "projection", "projection_all"]

EXPANSION = {"basic": 1, "bottleneck": 4}  # output channels of a block / the `planes` of its stage


@dataclass(frozen=True)
class Architecture:
    """A network: a stem, stages of blocks, average pooling, one linear layer.

    Each stage has half the resolution and twice the `planes` of the one before it. The stem is a 3x3 convolution
    (`small`, section 4.2), a 7x7 convolution and max-pooling (`imagenet`, table 1), or three 3x3 convolutions and
    max-pooling (`deep`: ResNet-C and -D of He et al. 2019, arXiv 1812.01187, section 4.2).

    A basic block has two 3x3 convolutions (figure 5, left). A bottleneck has a 1x1 to `inner` channels, a 3x3, and a
    1x1 to 4 x planes (figure 5, right); the stride is on the 3x3, not on the first 1x1 as in the paper: "v1.5", as in
    Goyal et al. 2017 and torchvision.

    A shortcut that changes the shape is a 1x1 convolution with a norm (`projection`, option B), or the input with
    zeros for additional channels (`identity`, option A); `projection_all` (option C) has convolutions in all shortcuts.
    """

    depths: tuple[int, ...]  # blocks of each stage
    block: BlockKind
    stem: Literal["small", "imagenet", "deep"]
    shortcut: Shortcut
    pooled_shortcut: bool = False  # ResNet-D: a shortcut averages 2x2 pixels before its convolution of stride 1
    groups: int = 1  # of the bottleneck's 3x3 (ResNeXt: Xie et al. 2017, arXiv 1611.05431)
    group_width: int = 64  # channels of each group in the first stage (128 in Wide ResNets: arXiv 1605.07146)
    width: float = 1.0  # factor of all channels
    residual: bool = True  # False: a plain network: the same branches without shortcuts
    batch_norm: bool = True  # False: convolutions have a bias, and nothing is normalised
    pre_activation: bool = False  # norm and ReLU before each convolution, and before the pooling

    @property
    def planes(self) -> list[float]:
        """Channels of the stages' basic blocks, before they are rounded."""
        return [self.width * (16 if self.stem == "small" else 64) * 2**stage for stage in range(len(self.depths))]

    def inner(self, stage: int) -> int:
        """Channels of the 3x3 convolutions of a stage: a multiple of `groups`."""
        return whole(self.planes[stage] * self.group_width / 64) * self.groups

    def out_channels(self, stage: int) -> int:
        """Channels of the outputs of a stage."""
        return whole(self.planes[stage]) * EXPANSION[self.block]


def whole(channels: float) -> int:
    """The whole number nearest to `channels`, at least 1."""
    return max(1, round(channels))


def _small(blocks_per_stage: int) -> Architecture:
    return Architecture((blocks_per_stage,) * 3, "basic", stem="small", shortcut="identity")


def _imagenet(depths: tuple[int, ...], block: BlockKind, groups: int = 1, group_width: int = 64) -> Architecture:
    return Architecture(depths, block, stem="imagenet", shortcut="projection", groups=groups, group_width=group_width)


def _d(architecture: Architecture) -> Architecture:
    return dataclasses.replace(architecture, stem="deep", pooled_shortcut=True)


_RESNET = {
    # He et al. 2015 (arXiv 1512.03385), table 1: ImageNet
    "resnet18": _imagenet((2, 2, 2, 2), "basic"),
    "resnet34": _imagenet((3, 4, 6, 3), "basic"),
    "resnet50": _imagenet((3, 4, 6, 3), "bottleneck"),
    "resnet101": _imagenet((3, 4, 23, 3), "bottleneck"),
    "resnet152": _imagenet((3, 8, 36, 3), "bottleneck"),
}

MODELS: dict[str, Architecture] = {
    **_RESNET,
    # He et al. 2019 (arXiv 1812.01187), ResNet-D; names and numbers as in timm
    **{f"{name}d": _d(architecture) for name, architecture in _RESNET.items()},
    # Xie et al. 2017 (arXiv 1611.05431) and Zagoruyko and Komodakis 2016 (arXiv 1605.07146), as in torchvision
    "resnext50_32x4d": _imagenet((3, 4, 6, 3), "bottleneck", groups=32, group_width=4),
    "resnext101_32x8d": _imagenet((3, 4, 23, 3), "bottleneck", groups=32, group_width=8),
    "resnext101_64x4d": _imagenet((3, 4, 23, 3), "bottleneck", groups=64, group_width=4),
    "wide_resnet50_2": _imagenet((3, 4, 6, 3), "bottleneck", group_width=128),
    "wide_resnet101_2": _imagenet((3, 4, 23, 3), "bottleneck", group_width=128),
    # He et al. 2015, section 4.2: images of 32 pixels, 6n + 2 layers (9n + 2 with bottlenecks)
    **{f"resnet{6 * n + 2}": _small(n) for n in (1, 2, 3, 5, 7, 9, 18)},
}


def architecture_of(recipe: ModelRecipe) -> Architecture:
    """The architecture of a built-in network with the changes that `recipe` asks for.

    Raises KeyError if `recipe.name` is not in `MODELS`.
    """
    named = MODELS[recipe.name]
    return dataclasses.replace(
        named,
        block=named.block if recipe.block is None else recipe.block,
        shortcut=named.shortcut if recipe.shortcut is None else recipe.shortcut,
        width=recipe.width,
        residual=recipe.residual,
        batch_norm=recipe.normalisation == "batch",
        pre_activation=recipe.activation_order == "pre",
    )
