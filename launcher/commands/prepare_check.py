"""`launcher prepare check ROOT`: reads and decodes every image once; lists the broken, odd and duplicate ones."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from launcher.commands.prepare_pack import data_of
from launcher.errors import UsageError
from launcher.exit_codes import ExitCode
from launcher.formatting import count

_MOST_THREADS = 1024


def add_parser(kinds: Any) -> None:
    """check ROOT [--source KIND] [--split train|val] [--threads N] [--bad-list FILE] [--all]"""
    kind = kinds.add_parser("check", help="read and decode every image once; list the broken, odd and duplicate ones")
    kind.add_argument("root", metavar="ROOT", help="root of a data set, or a config")
    sources = ("imagefolder", "webdataset", "parquet", "packed")
    kind.add_argument("--source", choices=sources, help="what is in ROOT (default: imagefolder)")
    kind.add_argument("--split", choices=("train", "val"), help="one split only (default: both)")
    kind.add_argument("--threads", metavar="N", type=int, help="default: the number of CPUs")
    kind.add_argument(
        "--bad-list", metavar="FILE", type=Path, help="write the broken images to FILE, for data.known_bad"
    )
    kind.add_argument("--all", action="store_true", help="list all images, not only the first of each kind")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    threads = (os.cpu_count() or 1) if given.threads is None else given.threads
    if not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"--threads {threads}. Allowed: a whole number from 1 to {_MOST_THREADS:,}")
    from launcher.prepare import checked_images  # NumPy and Pillow: other verbs do without
    from resnet_dist.data.sources.listing import SPLITS

    data = data_of(given.root, given.source)
    bad_list = None if given.bad_list is None else given.bad_list.expanduser().absolute()
    if bad_list is not None:  # so that it is known now, not hours later, whether it can be written
        checked_images.write_bad_list(bad_list, data.root, [])
    found = checked_images.Found()
    for split in SPLITS if given.split is None else (given.split,):
        for line in checked_images.check(data, split, threads, found):
            print(line, flush=True)
    for line in found.report(None if given.all else checked_images.SHOWN):
        print(line, flush=True)
    if bad_list is not None:
        checked_images.write_bad_list(bad_list, data.root, list(found.broken))
        print(f"{bad_list}: {count(len(found.broken), 'broken image')}; data.known_bad={bad_list} leaves them out")
    return int(ExitCode.DATA if found.broken else ExitCode.OK)
