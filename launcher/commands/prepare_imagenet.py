"""`launcher prepare imagenet FOLDER`: ImageNet's image folders, from its original tar files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(kinds: Any) -> None:
    """imagenet FOLDER [--train-tar FILE] [--val-tar FILE] --devkit FILE"""
    kind = kinds.add_parser("imagenet", help="ImageNet's image folders, from its original tar files")
    kind.add_argument("folder", metavar="FOLDER", type=Path, help="target folder, with train/ and val/")
    kind.add_argument("--train-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_train.tar")
    kind.add_argument("--val-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_val.tar")
    kind.add_argument("--devkit", metavar="FILE", type=Path, help="ILSVRC2012_devkit_t12.tar.gz")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    return 0
