"""`launcher prepare imagenet FOLDER`: ImageNet (ILSVRC2012) as image folders, from its original files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launcher.errors import UsageError


def add_parser(kinds: Any) -> None:
    """imagenet FOLDER [--train-tar FILE] [--val-tar FILE] [--devkit FILE]"""
    kind = kinds.add_parser("imagenet", help="ImageNet as image folders, from its original tar files")
    kind.add_argument("folder", metavar="FOLDER", type=Path, help="target: FOLDER/train/CLASS and FOLDER/val/CLASS")
    kind.add_argument("--train-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_train.tar")
    kind.add_argument("--val-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_val.tar")
    devkit = "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's LOC_val_solution.csv: the classes of val; without the tars, the"
    kind.add_argument("--devkit", metavar="FILE", type=Path, help=f"{devkit} images in FOLDER/val are sorted by class")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    if given.val_tar is not None and given.devkit is None:
        allowed = "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's LOC_val_solution.csv"
        raise UsageError(f"--devkit is missing: it has the classes of the val images. Allowed: {allowed}")
    if given.train_tar is None and given.devkit is None:
        allowed = "--train-tar FILE; --val-tar FILE --devkit FILE; or --devkit FILE alone"
        raise UsageError(f"there is nothing to do. Allowed: {allowed}")
    from launcher.prepare.imagenet_folders import write_imagenet
    from launcher.prepare.progress import print_lines

    given_files = (given.train_tar, given.val_tar, given.devkit)
    files = [None if file is None else file.expanduser().absolute() for file in given_files]
    return print_lines(write_imagenet(given.folder.expanduser().absolute(), *files))
