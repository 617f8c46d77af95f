"""The built-in networks by name, and what a recipe changes in them."""

from __future__ import annotations

import dataclasses

from resnet_dist.models.resnet import Architecture, BlockKind
from resnet_dist.recipe.schema import ModelRecipe


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
