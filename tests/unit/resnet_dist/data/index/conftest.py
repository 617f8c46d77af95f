"""Places of indices, and which headers are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The run's folder of indices."""
    return tmp_path / "index"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the runs of a storage share."""
    return tmp_path / "storage" / ".indices"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers have been read."""
    names: list[str] = []

    def counted(name: str, num_bytes: int, read: Callable[[int, int], bytes]) -> Header:
        names.append(os.path.basename(os.path.dirname(name)) + "/" + os.path.basename(name))  # noqa: PTH119, PTH120
        return header_of(name, num_bytes, read)

    monkeypatch.setattr(build_index, "header_of", counted)
    return names
