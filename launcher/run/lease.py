"""One run directory, one run at a time: a lease that a dead holder does not keep.

    RUN/lease/00000007.json        the holder: host, process, since when; its modification time is the last renewal
    RUN/lease/00000007.released    there once the holder has given it back

Generations only go up: whoever takes a lease makes the next number, under a name that a hard link gives to exactly one
(on NFS too, where file locks may not be there or may not be kept). The highest number holds; a holder that finds a
higher one has lost its lease. So a race for a dead holder's lease has one winner, and nobody deletes what is another's.

A holder on this machine is asked for: it is dead when its process is gone. One elsewhere is dead when it has not
renewed for `expires_s`, watched here, on this machine's clock: clocks that differ do not matter. A file system that
does not answer is no dead holder.

A holder that lives is refused to be followed, but by its own successor: a place that starts one submission again may do
so before what it has ended is done with saving. Both then have the same submission, and the later one waits.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from launcher.errors import LauncherError
from launcher.exit_codes import ExitCode
from launcher.run.holder import Holder
from resnet_dist.checkpoint.disk import storage_errors, sync_folder, write_synced

log = logging.getLogger(__name__)

EXPIRES_S = 60.0  # assumption: longer than the pauses of a shared file system and of a busy host, short to wait for
RENEW_EVERY_S = 5.0
PREDECESSOR_S = 600.0  # assumption: longer than the grace period of a pod that saves (notice_s and 45 s)
_RELEASED = ".released"
_GENERATION = re.compile(r"([0-9]{8,})\.json")


class LeaseHeld(LauncherError):  # noqa: N818 - reads as what happened
    """Another process is at work in this run directory."""

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, run: str, holder: Holder) -> None:
        stop = f"kill -TERM {holder.pid} on {holder.host}"
        super().__init__(
            f"{run}: in use by process {holder.pid} on {holder.host}, since {holder.since}. "
            f"Wait for its end, stop it ({stop}), or give this run another name"
        )
        self.run, self.holder = run, holder


class LeaseLost(LauncherError):  # noqa: N818 - reads as what happened
    """Another process has taken this run over: this one was silent for too long."""

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, run: str, holder: Holder | None) -> None:
        who = "another process" if holder is None else f"process {holder.pid} on {holder.host} ({holder.since})"
        super().__init__(f"{run}: taken over by {who} while this one was suspended or cut off; it goes on there")
        self.run, self.holder = run, holder


@dataclass(frozen=True)
class Claim:
    """What a lease's holder gives to its other processes, so that they can ask whether it still holds."""

    folder: Path
    generation: int

    def check(self) -> None:
        """Raise LeaseLost if another process has taken over by now: before something is written that must not be.

        Raises StorageError where that cannot be seen.
        """
        with storage_errors(self.folder):
            newest = _newest(self.folder)
        if newest is None or newest > self.generation:  # less is an old listing of a shared folder
            raise LeaseLost(str(self.folder.parent), holder(self.folder))


class Lease:
    """A lease that is held: renewed by a thread until it is released. Made by `acquire`.

    The thread calls `on_lost` once, should it find that another process has taken over.
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
        """Whether another process was found to have taken over, at the last renewal or `check`."""
        return self._lost.is_set()

    @property
    def claim(self) -> Claim:
        """For this run's other processes."""
        return Claim(self.folder, self.generation)

    def check(self) -> None:
        """As `Claim.check`; what was found lost stays lost."""
        try:
            self.claim.check()
        except LeaseLost:
            self._lost.set()
            raise
        if self.lost:
            raise LeaseLost(str(self.folder.parent), holder(self.folder))

    def release(self) -> None:
        """Give the lease back: whoever comes next need not wait. For a second time, or once lost: nothing."""
        if os.getpid() != self._pid:
            return  # a fork, which has this object but not the lease
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with storage_errors(self.folder):
                _released(self.folder, self.generation).touch()
                sync_folder(self.folder)

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
            except OSError as error:  # for a while, perhaps: a lease that cannot be read is not lost
                if reachable:
                    log.warning("%s: the lease cannot be renewed at the moment: %s", self.folder, error.strerror)
                reachable = False


def acquire(
    folder: Path,
    *,
    expires_s: float = EXPIRES_S,
    renew_every_s: float = RENEW_EVERY_S,
    on_lost: Callable[[], None] = lambda: None,
    submission: str = "",
    predecessor_s: float = PREDECESSOR_S,
) -> Lease:
    """Take the lease that is kept in `folder` (RUN/lease), made if need be.

    Returns at once where nobody holds it, or a process of this machine that is gone. For a holder elsewhere it takes
    up to `expires_s` to see whether it is alive. One that lives is waited for, for up to `predecessor_s`, where it
    works for the same `submission`. Raises LeaseHeld (with who, where, since when) and StorageError.
    """
    me = Holder.this_process(submission)
    proposal = folder / f".{me.uuid}.tmp"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            while True:
                generation = _newest(folder)
                if generation is not None:
                    _wait_until_free(folder, generation, expires_s, me, predecessor_s)
                if _claim(folder, (generation or 0) + 1, proposal, me):
                    break
        finally:
            proposal.unlink(missing_ok=True)
        won = (generation or 0) + 1
        _tidy(folder, won)
        return Lease(folder, won, renew_every_s, on_lost)


def holder(folder: Path) -> Holder | None:
    """Who holds the lease kept in `folder`, dead or alive; None where nobody does. Raises StorageError."""
    with storage_errors(folder):
        generation = _newest(folder)
        if generation is None or _released(folder, generation).exists():
            return None
        return _read(_file(folder, generation))


def _claim(folder: Path, generation: int, proposal: Path, me: Holder) -> bool:
    """Make the next generation this process's own; False where another came first."""
    if not proposal.exists():  # swept away by whoever took a lease just now, or not made yet
        write_synced(proposal, (json.dumps(asdict(me), indent=2) + "\n").encode())
    try:
        os.link(proposal, _file(folder, generation))
    except FileNotFoundError:
        return False
    except FileExistsError:
        # Over NFS a link may have been made and its answer lost; the retry then finds the name taken, by ourselves.
        found = _read(_file(folder, generation))
        if found is None or found.uuid != me.uuid:
            return False
    sync_folder(folder)
    if _newest(folder) == generation:
        return True
    # Late: this number was free again because its holder had come, gone, and been followed by a higher one.
    _file(folder, generation).unlink(missing_ok=True)
    return False


def _wait_until_free(folder: Path, generation: int, expires_s: float, me: Holder, predecessor_s: float) -> None:
    """Return when the lease was given back or its holder is dead, or when the lease has changed; else LeaseHeld."""
    file = _file(folder, generation)
    found = _read(file)
    if found is None or _is_over(folder, generation):
        return
    waits_s = predecessor_s if found.precedes(me) else 0.0
    if waits_s:
        who = f"process {found.pid} on {found.host}"
        log.warning("%s: held by %s, of this very submission; waiting for up to %g s for its end", folder, who, waits_s)
    if found.is_here():
        end = time.monotonic() + waits_s
        while found.is_alive():
            if time.monotonic() >= end:
                raise LeaseHeld(str(folder.parent), found)
            time.sleep(min(1.0, waits_s / 60))
            if _is_over(folder, generation):
                return
        log.info("%s: taken over from process %d, which is gone", folder, found.pid)
        return
    log.info("%s: held by %s; watching for up to %g s whether it lives", folder, found.host, expires_s)
    _watch(folder, generation, found, expires_s, waits_s)


def _watch(folder: Path, generation: int, found: Holder, expires_s: float, waits_s: float) -> None:
    """As `_wait_until_free`, for a holder elsewhere: dead when it has not renewed for `expires_s`."""
    file, poll_s = _file(folder, generation), min(1.0, expires_s / 60)
    try:
        seen, end = _renewed(file), time.monotonic() + waits_s
        watched_s, last = 0.0, time.monotonic()
        while watched_s < expires_s:
            time.sleep(poll_s)
            now = time.monotonic()
            # Time in which this process did not run itself does not count: the holder may have stood still with it.
            watched_s, last = watched_s + min(now - last, 2 * poll_s), now
            if _is_over(folder, generation):
                return
            if _renewed(file) != seen:
                if now >= end:
                    raise LeaseHeld(str(folder.parent), found)
                seen, watched_s = _renewed(file), 0.0
    except FileNotFoundError:
        return
    log.warning("%s: taken over from %s, which has not renewed it for %g s", folder, found.host, expires_s)


def _is_over(folder: Path, generation: int) -> bool:
    """Whether this generation was given back, or is followed by another one."""
    return _newest(folder) != generation or _released(folder, generation).exists()


def _renewed(file: Path) -> int:
    # Opened, not only asked for: NFS clients fetch a file's times anew when it is opened.
    with file.open("rb") as opened:
        return os.fstat(opened.fileno()).st_mtime_ns


def _tidy(folder: Path, generation: int) -> None:
    """Remove what earlier generations, and proposals that lost, have left. Never a generation from this one on."""
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


def _read(file: Path) -> Holder | None:
    """None where the file has gone."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OSError(None, f"is not a lease ({error}); remove it once no run uses it", str(file)) from error
    return Holder(**{field.name: content[field.name] for field in fields(Holder) if field.name in content})
