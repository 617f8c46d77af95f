"""The part of the recipe about the images: `data`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resnet_dist.recipe.durations import Duration


@dataclass(frozen=True, kw_only=True)
class AugmentationRecipe:
    """A policy that changes training images after crop and flip: a name, or a function.

    `package.module:function` is called as `function(images, uniform, **arguments)` with uint8 images [n, 3, h, w] and
    `uniform(k)`, which returns k new numbers in [0, 1) for each image, float64 [n, k]; it returns the changed images.
    """

    name: str = "none"  # none, randaugment, trivialaugment or package.module:function
    magnitude: int | None = None  # randaugment: strength from 0 to 30; default 9
    num_ops: int | None = None  # randaugment: operations per image; default 2
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for package.module:function


@dataclass(frozen=True, kw_only=True)
class CacheRecipe:
    """The local copy of what was read from an address such as `s3://bucket/folder`, on each node."""

    folder: str | None = None  # each user has a folder in it; default: the system's folder for temporary files
    max_gib: float = 100.0  # GiB of all files in it; the files used longest ago are deleted first


@dataclass(frozen=True, kw_only=True)
class DaliRecipe:
    """Settings of NVIDIA DALI where it decodes on a GPU. They change its speed and memory, and no pixel.

    The paddings are allocated for each decoder thread: one on the GPU, two in pinned host memory.
    """

    hw_decoder_load: float | None = None  # fraction of the JPEGs for the hardware decoder; default: DALI's (0.65)
    device_padding_mib: int = 202  # MiB on the GPU for each thread; fits the largest image of ImageNet
    host_padding_mib: int = 135  # MiB of pinned memory for each buffer, two for each thread; fits the same image
    affinity: bool = False  # bind decoder threads to CPU cores; only if no other worker or job uses this host


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The images. `root` is a folder, or an address that fsspec reads, such as `s3://bucket/folder`.

    imagefolder: root/train/CLASS/*.jpg, root/val/CLASS/*.jpg. webdataset: tar files whose names begin with train or
    val, with KEY.jpg and KEY.cls or KEY.json. parquet: files of Hugging Face datasets, with the bytes of an image and a
    label in each row. packed: what `launcher prepare pack` writes. synthetic: random pixels, made on the device.
    A function `package.module:function` is called as `function(root=..., split="train" | "val")` and returns a
    `resnet_dist.data.Index`.

    `progressive: {0 %: 128, 50 %: 192, 80 %: 224}` changes the resolution of the training images during the run.
    `resolution` is that before the first time, and that of evaluation.

    `decoder: auto` means DALI on a GPU; otherwise nvImageCodec if installed, and Pillow.
    """

    root: str = ""  # folder or address of the data set; needed unless `source` is synthetic
    source: str = "imagefolder"  # imagefolder, webdataset, parquet, packed, synthetic or package.module:function
    image_key: str | None = None  # parquet: column of the images; default image
    label_key: str | None = None  # parquet: column of the labels; webdataset: key in KEY.json; default label
    classes: str | None = None  # text file with a class per line: only these are used; a second word renames a class
    subset: int | float | None = None  # train on this number (from 1) or fraction (below 1) of images, stratified
    cache: CacheRecipe = field(default_factory=CacheRecipe)
    order: Literal["uniform", "shards"] = "uniform"  # uniform: any order is equally likely; shards: see shuffle_window
    shuffle_window: int = 16_384  # order shards: shards in random order, then samples in random order within this many
    decoder: Literal["auto", "dali", "torchvision"] = "auto"  # auto: see above; torchvision: Pillow only
    dali: DaliRecipe = field(default_factory=DaliRecipe)
    exif: Literal["ignore", "apply"] = "ignore"  # apply: turn images as their EXIF orientation says
    resolution: int = 224  # height and width of the network's input in pixels
    progressive: Mapping[Duration, int] = field(default_factory=dict)  # training: other resolutions, from a time on
    crop_area: tuple[float, float] = (0.08, 1.0)  # random crop: fraction of the image's area, drawn uniformly
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)  # random crop: width / height, drawn log-uniformly
    flip: bool = True  # random horizontal flip, p = 0.5
    color_jitter: float = 0.0  # largest random change of brightness, contrast and saturation; 0: none
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    evaluation_crop: float = 0.875  # central crop: its side / the image's shorter side (224 / 256)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of the RGB channels in [0, 1]; ImageNet's (torchvision)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # of the RGB channels in [0, 1]; ImageNet's (torchvision)
    on_error: Literal["fail", "replace"] = "fail"  # a broken image ends the run, or has weight 0
    max_bad_images: int | float = 0.001  # on_error replace: accepted images, a number or a fraction of the training set
    known_bad: str | None = None  # text file with the path of an image per line: they are not read, and have weight 0
    num_samples: int | None = None  # images in the training split, before `subset`; for `plan` where there is no data
    prefetch: int = 2  # micro-batches that are decoded ahead

    @property
    def training_resolutions(self) -> tuple[int, ...]:
        """The resolutions that the training images have at some time."""
        starts_with_it = all(time.count > 0 for time in self.progressive)
        return (*((self.resolution,) if starts_with_it else ()), *self.progressive.values())

    def num_trained(self, num_samples: int | None = None) -> int | None:
        """The number of images that the run trains on, of the `num_samples` of the split; None if it is not known.

        `num_samples` defaults to the key of that name. A fraction is rounded, half up, and is at least one image.
        """
        num_samples = self.num_samples if num_samples is None else num_samples
        if self.subset is None:
            return num_samples
        if isinstance(self.subset, int):
            return self.subset
        return None if num_samples is None else max(1, math.floor(self.subset * num_samples + 0.5))
