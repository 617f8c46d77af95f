"""Writes a data set as an image folder in one step: folder/train/CLASS/FILE and folder/val/CLASS/FILE.

A marker file, written last, has the source of the images, their number, and a hash of all files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from resnet_dist.errors import DataError

_SUFFIXES = (".jpg", ".png")

Files = Iterable[tuple[str, bytes]]  # path relative to the folder, content of the image file


def write(folder: Path, dataset: str, source: str, files: Callable[[], Files]) -> Path:
    """Write `files` and the marker to a temporary folder, then rename it to `folder`.

    `dataset` names the marker and `source` the origin of the images: a complete folder of the same source is kept.
    Raises DataError if `folder` holds something else.
    """
    if folder.exists():
        if is_complete(folder, dataset, source):
            return folder
        is_ours = (folder / _marker_name(dataset)).is_file()
        if not is_ours and any(folder.iterdir()):
            problem = f"is not empty and was not written by `prepare {dataset}`; choose another folder"
            raise DataError(str(folder), problem)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new, old = temporary / "new", temporary / "old"
        counts = _write_files(new, files())
        content = {"source": source, **counts, "sha256": _digest(new)}
        (new / _marker_name(dataset)).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(temporary)
    return folder


def is_complete(folder: Path, dataset: str, source: str | None = None) -> bool:
    """Whether `folder` has exactly the files that were written, from `source` if it is given."""
    content = marker(folder, dataset)
    return bool(content) and source in (None, content.get("source")) and content.get("sha256") == _digest(folder)


def marker(folder: Path, dataset: str) -> dict[str, object]:
    """The content of the marker: source, train, val, sha256; empty if there is no readable one."""
    try:
        content = json.loads((folder / _marker_name(dataset)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _marker_name(dataset: str) -> str:
    return f"{dataset}.json"


def _write_files(folder: Path, files: Files) -> dict[str, int]:
    """Write each file; returns the number of files of each split."""
    counts = {"train": 0, "val": 0}
    made: set[Path] = set()
    for name, content in files:
        file = folder / name
        if file.parent not in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            made.add(file.parent)
        file.write_bytes(content)
        counts[name.partition("/")[0]] += 1
    return counts


def _digest(folder: Path) -> str:
    """sha256 over the names and bytes of all images."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.glob("*/*/*") if file.suffix in _SUFFIXES):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
