"""A lease on the run directory: one process at a time runs a run, and the lease of a dead holder can be taken over.

    RUN/lease/00000007.json        the holder: host, process, start; its modification time is the last renewal
    RUN/lease/00000007.released    exists after the holder has released the lease

Generation numbers only grow. A process takes the lease by creating the next generation with a hard link, which
succeeds for exactly one process (on NFS too, where file locks may be missing or lost). The highest generation holds the
lease; a holder that finds a higher one has lost it. So a race for the lease of a dead holder has one winner, and no
process deletes a file of another holder.

A holder on this machine is dead if its process does not exist. A holder elsewhere is dead if it has not renewed the
lease for `expires_s`, measured with this machine's clock only, so clocks may differ. So is one whose file cannot be
read: it may be anywhere. If the file system does not answer, the lease is not taken over.

A lease with a live holder is refused, with one exception: a scheduler may start a submission again before the previous
process has finished saving. Both processes then have the same submission, and the later one waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from launcher.errors import LauncherError
from launcher.run.holder import Holder
from resnet_dist.checkpoint.disk import make_folder, storage_errors, sync, write_synced
from resnet_dist.input_files import open_regular, read_json, record_of

log = logging.getLogger(__name__)

EXPIRES_S = 60.0  # assumption: longer than the pauses of a shared file system and of a busy host
RENEW_EVERY_S = 5.0
PREDECESSOR_S = 600.0  # assumption: longer than the grace period of a pod that saves (notice_s + 45 s)
_RELEASED = ".released"
_GENERATION = re.compile(r"([0-9]{8,12})\.json")


class Unknown:
    """The holder in a lease file that cannot be read: a process that may be anywhere."""

    def __str__(self) -> str:
        return "a process that cannot be identified (its lease file cannot be read)"


class LeaseHeld(LauncherError):  # noqa: N818 - reads as what happened
    """Another process runs this run."""

    def __init__(self, run: str, holder: Holder | Unknown) -> None:
        since, stop = "", "it"
        if isinstance(holder, Holder):
            since, stop = f" since {holder.since}", f"it (kill -TERM {holder.pid} on {holder.host})"
        super().__init__(
            f"{run}: in use by {holder}{since}. Wait until it ends, stop {stop}, or give this run another name"
        )
        self.run, self.holder = run, holder


class LeaseLost(LauncherError):  # noqa: N818 - reads as what happened
    """Another process has taken this run over because this one did not renew its lease."""

    def __init__(self, run: str, holder: Holder | Unknown | None) -> None:
        who = f"{holder} ({holder.since})" if isinstance(holder, Holder) else "another process"
        super().__init__(f"{run}: taken over by {who} while this process was suspended or unreachable")
        self.run, self.holder = run, holder


@dataclass(frozen=True)
class Claim:
    """Lets the other processes of a run check that its lease is still held."""

    folder: Path
    generation: int

    def check(self) -> None:
        """Raise LeaseLost if another process has taken over, StorageError if that cannot be determined."""
        with storage_errors(self.folder):
            newest = _newest(self.folder)
        if newest is None or newest > self.generation:  # a lower one is an outdated listing of a shared folder
            raise LeaseLost(str(self.folder.parent), holder(self.folder))


class Lease:
    """A held lease, renewed by a thread until it is released. Created by `acquire`.

    The thread calls `on_lost` once if another process has taken over.
    """

    def __init__(self, folder: Path, generation: int, renew_every_s: float, on_lost: Callable[[], None]) -> None:
        self.folder, self.generation = folder, generation
        self._file = _file(folder, generation)
        self._pid = os.getpid()
        self._renew_every_s, self._on_lost = renew_every_s, on_lost
        self._lost, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the last renewal or `check` found that another process has taken over."""
        return self._lost.is_set()

    @property
    def claim(self) -> Claim:
        """For the other processes of this run."""
        return Claim(self.folder, self.generation)

    def check(self) -> None:
        """Like `Claim.check`; a lost lease stays lost."""
        try:
            self.claim.check()
        except LeaseLost:
            self._lost.set()
            raise
        if self.lost:
            raise LeaseLost(str(self.folder.parent), holder(self.folder))

    def release(self) -> None:
        """Release the lease, so that the next process need not wait. No effect if it was released or lost before."""
        if os.getpid() != self._pid:
            return  # a fork: it has this object but not the lease
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with storage_errors(self.folder):
                _released(self.folder, self.generation).touch()
                sync(self.folder)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _renew(self) -> None:
        reachable = True
        while not self._ended.wait(self._renew_every_s):
            try:
                if _newest(self.folder) != self.generation:
                    raise FileNotFoundError
                os.utime(self._file)
                reachable = True
            except FileNotFoundError:
                self._lost.set()
                log.error("%s: the lease was taken over by another process", self.folder)
                self._on_lost()
                return
            except OSError as error:  # may be temporary: a lease that cannot be read is not lost
                if reachable:
                    log.warning("%s: cannot renew the lease, trying again: %s", self.folder, error.strerror)
                reachable = False


def acquire(
    folder: Path,
    *,
    expires_s: float = EXPIRES_S,
    renew_every_s: float = RENEW_EVERY_S,
    on_lost: Callable[[], None] = lambda: None,
    submission: str = "",
    command_began: str = "",
    predecessor_s: float = PREDECESSOR_S,
    stopped: Callable[[], bool] = lambda: False,
) -> Lease:
    """Take the lease in `folder` (RUN/lease), which is created if needed.

    Returns at once if nobody holds the lease or its holder, on this machine, is dead. It takes up to `expires_s` to see
    whether a holder elsewhere is alive. A live holder of the same `submission` is waited for up to `predecessor_s`.
    `command_began` is recorded. Raises LeaseHeld, which names the holder, also if `stopped` becomes true while this
    process waits, and StorageError.
    """
    me = Holder.this_process(submission, command_began)
    proposal = folder / f".{me.uuid}.tmp"
    make_folder(folder)
    with storage_errors(folder):
        try:
            while True:
                generation = _newest(folder)
                if generation is not None:
                    _wait_until_free(folder, generation, expires_s, me, predecessor_s, stopped)
                if _claim(folder, (generation or 0) + 1, proposal, me):
                    break
        finally:
            proposal.unlink(missing_ok=True)
        won = (generation or 0) + 1
        _tidy(folder, won)
        return Lease(folder, won, renew_every_s, on_lost)


def holder(folder: Path) -> Holder | Unknown | None:
    """The holder of the lease in `folder`, dead or alive; None without one. Raises StorageError."""
    with storage_errors(folder):
        generation = _newest(folder)
        if generation is None or _released(folder, generation).exists():
            return None
        return _read(_file(folder, generation))


def _claim(folder: Path, generation: int, proposal: Path, me: Holder) -> bool:
    """Create the next generation for this process; False if another process was first."""
    if not proposal.exists():  # removed by a process that has just taken the lease, or not written yet
        write_synced(proposal, (json.dumps(asdict(me), indent=2) + "\n").encode())
    try:
        os.link(proposal, _file(folder, generation))
    except FileNotFoundError:
        return False
    except FileExistsError:
        # On NFS, the link may exist although its answer was lost: the retry finds our own file.
        found = _read(_file(folder, generation))
        if not isinstance(found, Holder) or found.uuid != me.uuid:
            return False
    sync(folder)
    if _newest(folder) == generation:
        return True
    # Too late: the number was free because its holder had ended and a higher generation had removed its file.
    _file(folder, generation).unlink(missing_ok=True)
    return False


def _wait_until_free(
    folder: Path,
    generation: int,
    expires_s: float,
    me: Holder,
    predecessor_s: float,
    stopped: Callable[[], bool],
) -> None:
    """Return when the lease was released or taken over, or its holder is dead; else raise LeaseHeld."""
    file = _file(folder, generation)
    found = _read(file)
    if found is None or _is_over(folder, generation):
        return
    waits_s = predecessor_s if isinstance(found, Holder) and found.precedes(me) else 0.0
    if waits_s:
        log.warning("%s: held by %s of the same submission; waiting up to %g s until it ends", folder, found, waits_s)
    if isinstance(found, Holder) and found.is_here():
        end = time.monotonic() + waits_s
        while found.is_alive():
            if time.monotonic() >= end or stopped():
                raise LeaseHeld(str(folder.parent), found)
            time.sleep(min(1.0, waits_s / 60))
            if _is_over(folder, generation):
                return
        log.info("%s: taken over from process %d, which does not exist any more", folder, found.pid)
        return
    log.info("%s: held by %s; watching up to %g s for a renewal", folder, found, expires_s)
    _watch(folder, generation, found, expires_s, waits_s, stopped)


def _watch(
    folder: Path,
    generation: int,
    found: Holder | Unknown,
    expires_s: float,
    waits_s: float,
    stopped: Callable[[], bool],
) -> None:
    """`_wait_until_free` for a holder elsewhere, which is dead if it does not renew for `expires_s`."""
    file, poll_s = _file(folder, generation), min(1.0, expires_s / 60)
    try:
        seen, end = _renewed(file), time.monotonic() + waits_s
        watched_s, last = 0.0, time.monotonic()
        while watched_s < expires_s:
            time.sleep(poll_s)
            now = time.monotonic()
            # Time in which this process was suspended does not count: the holder may have been suspended with it.
            watched_s, last = watched_s + min(now - last, 2 * poll_s), now
            if _is_over(folder, generation):
                return
            if stopped():
                raise LeaseHeld(str(folder.parent), found)
            if _renewed(file) != seen:
                if now >= end:
                    raise LeaseHeld(str(folder.parent), found)
                seen, watched_s = _renewed(file), 0.0
    except FileNotFoundError:
        return
    log.warning("%s: taken over from %s, which has not renewed it for %g s", folder, found, expires_s)


def _is_over(folder: Path, generation: int) -> bool:
    """Whether this generation was released, or a later one exists."""
    return _newest(folder) != generation or _released(folder, generation).exists()


def _renewed(file: Path) -> int:
    # Opened, not only stat-ed: NFS clients refresh a file's times when it is opened.
    with open_regular(file) as opened:
        return os.fstat(opened.fileno()).st_mtime_ns


def _tidy(folder: Path, generation: int) -> None:
    """Remove the files of earlier generations and of unsuccessful proposals; never this or a later generation."""
    for path in folder.iterdir():
        number = path.name.partition(".")[0]
        if path.suffix == ".tmp" or (number.isdigit() and int(number) < generation):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _newest(folder: Path) -> int | None:
    numbers = [int(match[1]) for path in folder.iterdir() if (match := _GENERATION.fullmatch(path.name))]
    return max(numbers, default=None)


def _file(folder: Path, generation: int) -> Path:
    return folder / f"{generation:08d}.json"


def _released(folder: Path, generation: int) -> Path:
    return _file(folder, generation).with_suffix(_RELEASED)


def _read(file: Path) -> Holder | Unknown | None:
    """The holder in a lease file; None if the file does not exist any more."""
    try:
        return record_of(Holder, read_json(file)) or Unknown()
    except FileNotFoundError:
        return None
    except ValueError:
        return Unknown()
