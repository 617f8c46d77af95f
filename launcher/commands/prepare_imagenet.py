"""`launcher prepare imagenet FOLDER`: ImageNet (ILSVRC2012) as image folders, from the files in which it is distributed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launcher.errors import UsageError


def add_parser(kinds: Any) -> None:
    """imagenet FOLDER [--train-tar FILE] [--val-tar FILE | --val-folder DIR] [--devkit FILE]"""
    kind = kinds.add_parser("imagenet", help="ImageNet as image folders, from its original tar files")
    kind.add_argument("folder", metavar="FOLDER", type=Path, help="target: FOLDER/train/CLASS and FOLDER/val/CLASS")
    kind.add_argument("--train-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_train.tar")
    val = kind.add_mutually_exclusive_group()
    val.add_argument("--val-tar", metavar="FILE", type=Path, help="ILSVRC2012_img_val.tar")
    val.add_argument("--val-folder", metavar="DIR", type=Path, help="a folder with the images of that tar; it is kept")
    devkit = "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's LOC_val_solution.csv: the classes of val. Without a tar or "
    kind.add_argument("--devkit", metavar="FILE", type=Path, help=f"{devkit}folder, FOLDER/val is sorted in place")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    val = given.val_tar or given.val_folder
    if val is not None and given.devkit is None:
        allowed = "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's LOC_val_solution.csv"
        raise UsageError(f"--devkit is missing, which has the classes of the val images. Allowed: {allowed}")
    if given.train_tar is None and given.devkit is None:
        raise UsageError("nothing to do. Allowed: --train-tar, or --devkit with or without --val-tar or --val-folder")
    from launcher.commands.imagenet_folders import write_imagenet

    paths = [None if path is None else path.expanduser().absolute() for path in (given.train_tar, val, given.devkit)]
    for line in write_imagenet(given.folder.expanduser().absolute(), *paths):
        print(line, flush=True)
    return 0
