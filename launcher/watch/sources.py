"""Where snapshots come from, and the threads that read them: a slow disk or network never stops the keys."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator
from typing import Protocol

from launcher.errors import ClusterUnavailable
from launcher.places.programs import Lines
from launcher.watch.reader import Reader
from launcher.watch.snapshot import Snapshot, from_json
from resnet_dist.input_files import printable

POLL_S = 1.0
SHARE = 0.01  # of a core that reading may take: a run with many workers is read less often
AGAIN_S = 10.0  # after a stream from a cluster has ended

Timed = tuple[Snapshot, float]  # a snapshot, and the seconds to wait for the next one


class Source(Protocol):
    """Reads one run."""

    close_s: float  # that the end of `watch` waits at most for what a source has to end

    def snapshots(self, rank: Callable[[], int]) -> Generator[Timed, None, None]:
        """Snapshots of the run, for ever. `rank` returns whose log is wanted."""
        ...


class Here:
    """A run whose directory is on this machine."""

    close_s = 0.0

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def snapshots(self, rank: Callable[[], int]) -> Generator[Timed, None, None]:
        """As `Source` says."""
        while True:
            began = time.thread_time()
            found = self._reader.read(rank())
            used_s = time.thread_time() - began
            yield found, 0.0 if self._reader.is_behind else max(POLL_S, used_s / SHARE)


class Elsewhere:
    """A run whose directory is not on this machine: `launcher watch --json` prints its snapshots there.

    `state` is what its scheduler reports, with a snapshot that has nothing else, and whether there is something to
    read. `lines` runs the command with a rank where the run is, and yields what it prints. Both raise
    ClusterUnavailable.
    """

    close_s = 10.0  # the job that reads is deleted

    def __init__(self, state: Callable[[], tuple[Snapshot, bool]], lines: Callable[[int], Lines]) -> None:
        self._state, self._lines = state, lines

    def snapshots(self, rank: Callable[[], int]) -> Generator[Timed, None, None]:
        """As `Source` says."""
        newest: Snapshot | None = None
        while True:
            said = ""
            try:
                known, can_read = self._state()
                newest = newest if newest is not None and can_read else known
                yield newest, 0.0
                wanted = rank()
                if not can_read:
                    yield newest, AGAIN_S
                    continue
                with contextlib.closing(self._lines(wanted)) as lines:
                    for line in lines:
                        found = from_json(line)
                        if found is None:
                            said = printable(line).strip() or said
                        else:
                            newest = dataclasses.replace(found, job=known.job, name=known.name)
                            yield newest, 0.0
                        if rank() != wanted:
                            break
                    else:
                        yield _because(newest, f"the cluster printed: {said}") if said else newest, AGAIN_S
            except ClusterUnavailable as error:
                newest = newest or Snapshot(run="", name="")
                yield _because(newest, str(error)), AGAIN_S


def _because(run: Snapshot, reason: str) -> Snapshot:
    return dataclasses.replace(run, reason=reason)


class Poller(threading.Thread):
    """Reads a source until it is stopped, and passes every snapshot on. `newest` is what is known before the first one.

    If reading fails with an error that no source expects, the last snapshot has it as its reason.
    """

    def __init__(
        self, source: Source, newest: Snapshot, rank: Callable[[], int], publish: Callable[[Snapshot], object]
    ) -> None:
        super().__init__(daemon=True, name="watch")
        self._source, self._newest, self._rank, self._publish = source, newest, rank, publish
        self.has_begun, self._wake = threading.Event(), threading.Event()
        self._stopped = False

    def run(self) -> None:
        """In the thread."""
        try:
            with contextlib.closing(self._source.snapshots(self._rank)) as snapshots:
                for snapshot, wait_s in snapshots:
                    self._pass_on(snapshot)
                    self._wake.wait(wait_s)
                    self._wake.clear()
                    if self._stopped:
                        return
        except Exception as error:
            problem = f"it is read no more, after {type(error).__name__}: {printable(str(error))}"
            self._pass_on(dataclasses.replace(self._newest, state="unknown", reason=problem))

    def _pass_on(self, snapshot: Snapshot) -> None:
        self._newest = snapshot
        self._publish(snapshot)
        self.has_begun.set()

    def hurry(self) -> None:
        """Read again now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the next snapshot, and wait for it no longer than the source needs."""
        self._stopped = True
        self._wake.set()
        self.join(self._source.close_s)
