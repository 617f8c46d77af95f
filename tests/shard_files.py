"""Tar and parquet shards for tests, written by other programs' means: tarfile and pyarrow."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(number: int, height: int = 20, width: int = 30) -> bytes:
    """A small JPEG; its pixels and its height depend on `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (height + number % 7, width, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def write_tar(file: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar file of these members; `options` of tarfile.open, such as its format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, options.pop("mode", "w"), **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def samples(numbers: Iterable[int], num_classes: int = 3) -> list[tuple[str, bytes]]:
    """The members of samples NNNN: an image, its label (number modulo `num_classes`), and a caption."""
    return [
        (f"{number:04d}.{extension}", content)
        for number in numbers
        for extension, content in (
            ("jpg", jpeg(number)),
            ("cls", str(number % num_classes).encode()),
            ("txt", b"a caption"),
        )
    ]


def write_parquet(
    file: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    paths: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
    keys: tuple[str, str] = ("image", "label"),
    rows: int = 2,
    other: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """A parquet file as Hugging Face's `datasets` writes it, with row groups of `rows` rows and class names `names`."""
    import pyarrow
    from pyarrow import parquet

    parts = [{"bytes": image, "path": path} for image, path in zip(images, paths or [None] * len(images), strict=True)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns: dict[str, Any] = {keys[0]: pyarrow.array(parts, kind), keys[1]: pyarrow.array(labels, pyarrow.int64())}
    table = pyarrow.table(columns | dict(other or {}))
    if names is not None:
        features = {keys[0]: {"_type": "Image"}, keys[1]: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=rows)
    return file


def write_images(root: Path) -> Path:
    """An image folder. train: 2 classes of 6 images; val: 2 of 1. Their heights are 20 to 26, their width is 30."""
    for number in range(14):
        folder = root / ("val" if number >= 12 else "train") / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.JPEG").write_bytes(jpeg(number))
    return root
