"""From a listing to an index: the header of every image is read, so that broken files are found before training."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_dist.data.image_headers import Header, image_header
from resnet_dist.data.index import Index
from resnet_dist.data.listing import Listing
from resnet_dist.errors import DataError

_THREADS = 16  # reading headers waits for the disk or the network, not for the CPU
_NAMED = 5  # files that a message lists


def build_index(listing: Listing, root: str, source: str) -> Index:
    """The index of the samples of `listing`. Raises DataError for files that are empty, truncated or not images."""
    headers = _headers([os.path.join(root, path) for path in listing.paths])  # noqa: PTH118
    heights, widths, kinds, orientations, num_bytes, tails = (np.array(column) for column in zip(*headers, strict=True))
    return Index(
        root=root,
        classes=listing.classes,
        paths=listing.paths,
        labels=np.asarray(listing.labels, dtype=np.int64),
        heights=heights,
        widths=widths,
        folder_times_ns=listing.folder_times_ns,
        notes=listing.notes,
        source=source,
        num_bytes=num_bytes,
        tails=tails,
        kinds=kinds,
        orientations=orientations,
    )


def _headers(paths: list[str]) -> list[Header]:
    """The header of every file. Raises one DataError for all broken files."""

    def header_or_error(path: str) -> Header | DataError:
        try:
            return image_header(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        results = list(pool.map(header_or_error, paths, chunksize=256))
    errors = [result for result in results if isinstance(result, DataError)]
    if errors:
        others = "; ".join(str(error) for error in errors[1:_NAMED])
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        counted = f". The first of {len(errors)} broken files; the others are {others}{more}" if others else ""
        raise DataError(errors[0].path, f"{errors[0].problem}{counted}")
    return [result for result in results if not isinstance(result, DataError)]
