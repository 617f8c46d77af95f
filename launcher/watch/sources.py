"""Where snapshots come from, and the threads that read them: a slow disk or network never stops the keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from launcher.errors import ClusterUnavailable, LauncherError
from launcher.watch.reader import Reader
from launcher.watch.snapshot import Snapshot, from_json

POLL_S = 1.0
SHARE = 0.01  # of a core that reading may take at most: a run with many workers is read less often
AGAIN_S = 10.0  # after a stream from a cluster has ended


class Source(Protocol):
    """Reads one run."""

    def snapshots(self, rank: Callable[[], int]) -> Iterator[tuple[Snapshot, float]]:
        """(snapshot, seconds to wait until the next one), for ever. `rank`: whose log is wanted now."""
        ...


class Here:
    """A run whose directory is on this machine."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def snapshots(self, rank: Callable[[], int]) -> Iterator[tuple[Snapshot, float]]:
        """As `Source` says."""
        while True:
            began = time.thread_time()
            found = self._reader.read(rank())
            used_s = time.thread_time() - began
            yield found, 0.0 if self._reader.is_behind else max(POLL_S, used_s / SHARE)
