"""`launcher prepare pack SOURCE OUTPUT`: a data set as packed shards with a finished index.

Images are copied byte for byte, under the numbers and names of the source's index, so that a run on the packed shards
has the same samples, windows and pixels. With --shorter-side, larger images are made smaller. With --shuffle, training
images are written in random order, for `data.order: shards`; those in a folder are sorted by class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launcher.errors import UsageError

QUALITY = 90  # of JPEGs that were made smaller
_SHARD_MB = 256


def add_parser(kinds: Any) -> None:
    """pack SOURCE OUTPUT [--source KIND] [--shard-mb N] [--shorter-side N [--quality Q]] [--skip-broken] ..."""
    kind = kinds.add_parser("pack", help="pack a data set into few large files, for shared disks and object stores")
    kind.add_argument("source", metavar="SOURCE", help="root of a data set, or a config; with --verify, packed shards")
    kind.add_argument("output", metavar="OUTPUT", nargs="?", help="folder for the packed shards")
    sources = ("imagefolder", "webdataset", "parquet")
    kind.add_argument("--source", dest="kind", choices=sources, help="what is in SOURCE (default: imagefolder)")
    kind.add_argument("--shard-mb", metavar="N", type=int, help=f"size of a shard in MB (default: {_SHARD_MB})")
    kind.add_argument("--shorter-side", metavar="N", type=int, help="make larger images smaller: pixels of this side")
    kind.add_argument("--quality", metavar="Q", type=int, help=f"of JPEGs made smaller, 1 to 95 (default: {QUALITY})")
    kind.add_argument("--shuffle", action="store_true", help="write training images in random order: for order shards")
    kind.add_argument("--skip-broken", action="store_true", help="leave out broken images; otherwise they are an error")
    kind.add_argument("--threads", metavar="N", type=int, help="default: the number of CPUs")
    kind.add_argument("--verify", action="store_true", help="compare the hashes of packed shards, nothing else")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    from launcher.prepare import packing  # it imports torch, which takes seconds
    from launcher.prepare.progress import print_lines

    if given.verify:
        options = ("output", "kind", "shard_mb", "shorter_side", "quality", "threads")
        if any(getattr(given, name) is not None for name in options) or given.skip_broken or given.shuffle:
            raise UsageError("--verify: only with the folder of packed shards")
        for line in packing.verify(given.source):
            print(line, flush=True)
        return 0
    return print_lines(packing.pack(data_of(given.source, given.kind), _output(given), _options(given)))


def data_of(place: str, kind: str | None) -> Any:
    """The DataRecipe of the root of a data set, or of a config; `kind` is its source (default: imagefolder)."""
    from launcher.config import load as configs
    from resnet_dist.object_stores import is_address
    from resnet_dist.recipe.schema import DataRecipe

    if Path(place).suffix in (".yaml", ".yml"):
        if kind is not None:
            raise UsageError("--source: a config says itself what its source is. Allowed: with the root of a data set")
        return configs.load(place, []).data
    root = place if is_address(place) else str(Path(place).expanduser().absolute())
    return DataRecipe(root=root, source=kind or "imagefolder")


def _output(given: argparse.Namespace) -> Path:
    from resnet_dist.object_stores import is_address

    if given.output is None:
        raise UsageError("OUTPUT is missing: the folder for the packed shards")
    if is_address(given.output):
        problem = "is an address. Allowed: a folder on this machine; upload it afterwards with the store's client"
        raise UsageError(f"OUTPUT {given.output}: {problem}")
    return Path(given.output).expanduser().absolute()


def _options(given: argparse.Namespace) -> Any:
    from launcher.prepare import packing

    if given.quality is not None and given.shorter_side is None:
        raise UsageError("--quality: images that keep their size are copied. Allowed: with --shorter-side")
    limits = {"shard_mb": (1, 1_000_000), "shorter_side": (8, 65_535), "quality": (1, 95), "threads": (1, 1024)}
    for name, (low, high) in limits.items():
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value}. Allowed: a whole number from {low} to {high:,}")
    quality = None if given.shorter_side is None else given.quality or QUALITY
    shard_mb = _SHARD_MB if given.shard_mb is None else given.shard_mb
    return packing.Options(shard_mb, given.shorter_side, quality, given.skip_broken, given.threads, given.shuffle)
