"""The indices of version 0.1, SPLIT.npz: read so that a run that began with one is compared with what there is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from resnet_dist import input_files
from resnet_dist.data.index.table import Index


def load_old(file: Path) -> Index | None:
    """The index in `file`; None if there is none or if it is damaged."""
    try:
        with input_files.open_regular(file) as stream, np.load(stream, allow_pickle=False) as columns:
            return Index(
                root=_lines(columns["root"])[0],
                classes=tuple(_lines(columns["classes"])),
                paths=tuple(_lines(columns["paths"])),
                labels=columns["labels"],
                heights=columns["heights"],
                widths=columns["widths"],
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, BadZipFile):
        return None


def _lines(text: Any) -> list[str]:
    """Lines with a zero byte between them."""
    return bytes(text.tobytes()).decode("utf-8", "surrogateescape").split("\0") if text.size else []
