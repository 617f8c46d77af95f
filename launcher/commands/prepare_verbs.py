"""`launcher prepare WHAT`: the table of what can be prepared, and the arguments of the small data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launcher.arguments import Parser
from launcher.commands import prepare_check, prepare_imagenet, prepare_pack, prepare_show

HOME = Path("~/resnet_data")

# Each module has `add_parser(kinds)`. Each start of the launcher imports them: heavy imports go into their functions.
MODULES = (prepare_check, prepare_imagenet, prepare_pack, prepare_show)

DATASETS = {
    "digits": "scikit-learn's 1,797 handwritten digits",
    "fashion-mnist": "70,000 images of Debian's package dataset-fashion-mnist",
    "cifar10": "60,000 images of its binary version",
}


def add_parser(verbs: Any) -> None:
    """`launcher prepare WHAT ...`"""
    verb = verbs.add_parser("prepare", help="write a data set as image folders, and look at the images of a run")
    kinds = verb.add_subparsers(title="what", metavar="WHAT", required=True, parser_class=Parser)
    for name, text in DATASETS.items():
        kind = kinds.add_parser(name, help=text)
        kind.add_argument("folder", type=Path, nargs="?", help=f"target folder (default: {HOME / name})")
        files = "folder of IDX files (fashion-mnist) or of .bin files (cifar10)"
        kind.add_argument("--from", dest="source", metavar="DIR", type=Path, help=files)
        kind.add_argument("--baselines", action="store_true", help="also print the accuracy of classical methods")
        kind.set_defaults(run=_prepare, dataset=name)
    for module in MODULES:
        module.add_parser(kinds)


def _prepare(given: argparse.Namespace) -> int:
    from launcher.prepare.digits import prepare

    folder = (given.folder or HOME / given.dataset).expanduser().absolute()
    source = None if given.source is None else given.source.expanduser().absolute()
    for line in prepare(given.dataset, folder, source, baselines=given.baselines):
        print(line, flush=True)
    return 0
