"""Which decoder decodes which images on this machine, without torch."""

from __future__ import annotations

import importlib.util

import PIL

from resnet_dist.data.decoding import regions
from resnet_dist.recipe.schema import DataRecipe


def describe_decoders(recipe: DataRecipe, *, on_gpu: bool) -> str:
    """What decodes which images on this machine."""
    if recipe.source == "synthetic":
        return "random images, made on the device"
    pillow = f"Pillow {PIL.__version__}"
    if uses_dali(recipe, on_gpu=on_gpu):
        return f"NVIDIA DALI on the {'GPU' if on_gpu else 'CPU'} (ordinary JPEGs), {pillow} (others)"
    if recipe.decoder == "torchvision":
        return f"{pillow} on the CPU"
    version = regions.version()
    if version is None:
        return f"{pillow} on the CPU, since nvImageCodec is not installed"
    return f"nvImageCodec {version} on the CPU (ordinary JPEGs), {pillow} (others)"


def uses_dali(recipe: DataRecipe, *, on_gpu: bool) -> bool:
    """Whether `recipe.decoder` means DALI: `dali`, and `auto` on a GPU where it is installed."""
    return recipe.decoder == "dali" or (recipe.decoder == "auto" and on_gpu and dali_is_installed())


def dali_is_installed() -> bool:
    """Whether DALI can be imported, without importing it."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package `nvidia`
        return False
