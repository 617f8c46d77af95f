"""The storage of the run: can it be written, is there room, and does its clock agree with this host's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from launcher.checks.finding import Check, Finding, failed, in_bytes, passed, skipped, warned
from launcher.checks.needs import Needs
from resnet_dist.checkpoint.disk import reason, sync_folder

# Without a checkpoint to measure: parameters of the built-in models with 1,000 classes (a test counts them), with
# float32 weights and two moments, as LAMB keeps: 12 bytes each. A model of the user's own counts as the largest.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 334_072,
    "resnet32": 528_504,
    "resnet44": 722_936,
    "resnet56": 917_368,
    "resnet110": 1_792_312,
}
_BYTES_A_PARAMETER = 12
_TEST_BYTES = 2**20
_FEW_INODES, _NO_INODES = 100_000, 1_000  # assumptions: a run leaves some hundred files, other runs are there too
_QUOTA_S = 10
_SKEW_S = 1.0  # assumption: times of files are compared with this host's clock in steps of seconds


def checks(needs: Needs) -> list[Check]:
    """All are skipped without a config."""
    return [
        Check("storage", lambda: writable(needs), 30),
        Check("storage clock", lambda: clock(needs), 30),
        Check("free disk", lambda: space(needs), 20),
        Check("inodes", lambda: inodes(needs), 20),
        Check("quota", lambda: quota(needs), _QUOTA_S + 10),
    ]


def existing(path: Path) -> Path:
    """`path`, or its nearest parent that is there."""
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def writable(needs: Needs) -> Finding:
    """Write, sync, rename, link and read as the run will, in its folder or the storage; nowhere else."""
    if needs.storage is None or needs.run is None:
        return skipped("storage", "no config names one")
    if not needs.storage.is_dir():
        return _to_be_made(needs.storage, needs.nodes)
    folder = existing(needs.run.path)
    name = f".doctor-{secrets.token_hex(8)}"
    written, renamed, linked = (folder / f"{name}{end}" for end in (".tmp", "", ".link"))
    content = secrets.token_bytes(_TEST_BYTES)
    started = time.perf_counter()
    try:
        with written.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.replace(renamed)
        os.link(renamed, linked)  # as the lease is taken, which keeps a second launcher out of the run
        sync_folder(folder)
        read = linked.read_bytes()
    except OSError as error:
        return failed("storage", f"{error.filename or folder}: {reason(error)}", "mend it, or choose another storage")
    finally:
        for path in (written, renamed, linked):
            with contextlib.suppress(OSError):
                path.unlink()
    seconds = time.perf_counter() - started
    if read != content:
        return failed("storage", f"{folder}: what is read is not what was written", "do not use this storage")
    there = "" if folder == needs.run.path else f" ({needs.run.path} will be made)"
    return passed("storage", f"{folder}: written, synced, renamed, linked and read in {seconds:.2g} s{there}")


def _to_be_made(storage: Path, nodes: int) -> Finding:
    """Of a storage that is not there yet: whether it could be made. Nothing is written into what is not the run's."""
    parent = existing(storage)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return failed("storage", f"{storage} is not there, and cannot be made in {parent}", "choose another storage")
    if nodes > 1 or parent == Path(parent.anchor):
        said = f"{storage} is not there: it would be made in {parent}, on this host's own disk perhaps"
        return warned("storage", said, "mount it, or make it; the run makes it otherwise")
    return passed("storage", f"{storage} is not there yet, and can be made in {parent} (nothing was written)")


def clock(needs: Needs) -> Finding:
    """The time that the storage gives to a new file, against this host's."""
    if needs.storage is None:
        return skipped("storage clock", "no config names a storage")
    folder = needs.storage
    if not folder.is_dir():
        return skipped("storage clock", f"{folder} is not there yet")
    path = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        before = time.time()
        path.touch(exist_ok=False)
        given, after = path.stat().st_mtime, time.time()
    except OSError as error:
        return failed("storage clock", f"{error.filename or folder}: {reason(error)}", "mend the storage first")
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    # Kernels stamp files with the time of their last tick, some milliseconds ago.
    ahead = given - after if given > after else min(0.0, given - before)
    if abs(ahead) <= _SKEW_S:
        return passed("storage clock", f"agrees with this host's within {_SKEW_S:g} s")
    direction = "ahead of" if ahead > 0 else "behind"
    advice = "synchronise the clocks (chrony, systemd-timesyncd): times of files are compared"
    return warned("storage clock", f"{abs(ahead):.1f} s {direction} this host's", advice)


def space(needs: Needs) -> Finding:
    """Room for the checkpoints that the run keeps and one that is being written."""
    if needs.storage is None:
        return skipped("free disk", "no config names a storage")
    folder = existing(needs.storage)
    free = shutil.disk_usage(folder).free
    each, held = _checkpoints(needs)
    wanted = max(each, (needs.keep + 1 - held) * each)
    said = (
        f"{in_bytes(free)} free on {folder}, {in_bytes(wanted)} wanted for {needs.keep} checkpoints and one on its way"
    )
    advice = "free some space, lower checkpoint.keep, or choose another storage"
    if free < each:
        return failed("free disk", said, advice)
    return warned("free disk", said, advice) if free < wanted else passed("free disk", said)


def _checkpoints(needs: Needs) -> tuple[int, int]:
    """Bytes of one checkpoint, and how many the run has already."""
    folders = []
    if needs.run is not None and needs.run.checkpoints.is_dir():
        folders = [folder for folder in needs.run.checkpoints.glob("step-*") if folder.is_dir()]
    sizes = [sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders]
    largest: int = max(sizes, default=0)
    estimate = PARAMETERS.get(needs.model, max(PARAMETERS.values())) * _BYTES_A_PARAMETER
    return (largest, len(sizes)) if largest else (estimate, 0)


def inodes(needs: Needs, disk: os.statvfs_result | None = None) -> Finding:
    """Files that may still be made."""
    if needs.storage is None:
        return skipped("inodes", "no config names a storage")
    disk = os.statvfs(existing(needs.storage)) if disk is None else disk
    if disk.f_files == 0:
        return passed("inodes", "this file system sets no limit")
    said = f"{disk.f_favail:,} of {disk.f_files:,} free"
    advice = "delete small files (old logs, packages, caches) there, or choose another storage"
    if disk.f_favail < _NO_INODES:
        return failed("inodes", said, advice)
    return warned("inodes", said, advice) if disk.f_favail < _FEW_INODES else passed("inodes", said)


def quota(needs: Needs) -> Finding:
    """This user's quotas, by the `quota` command where there is one; a folder's own quota shows as free disk."""
    if needs.storage is None:
        return skipped("quota", "no config names a storage")
    command = shutil.which("quota")
    if command is None:
        return skipped("quota", "there is no `quota` command here; the free disk above may not be all yours")
    try:
        done = subprocess.run(
            [command, "-p", "-v", "-w"], capture_output=True, text=True, timeout=_QUOTA_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return warned("quota", f"`quota` did not answer within {_QUOTA_S} s", "is a file server away?")
    each, held = _checkpoints(needs)
    wanted = max(each, (needs.keep + 1 - held) * each)
    tight = [
        f"{disk}: {in_bytes(max(0, limit - used) * 1024)} left of {in_bytes(limit * 1024)}"
        for disk, used, limit in _rows(done.stdout)
        if (limit - used) * 1024 < wanted
    ]
    if tight:
        said = f"{'; '.join(tight)}; {in_bytes(wanted)} wanted"
        return warned("quota", said, "free some space, ask for more, or lower checkpoint.keep, if the storage is there")
    return passed("quota", "enough on every file system that has one, or none has")


def _rows(text: str) -> list[tuple[str, int, int]]:
    """(file system, KiB used, KiB allowed) of `quota -p -w`: nine columns, those of grace always there."""
    rows = []
    for line in text.splitlines():
        cells = line.replace("*", "").split()
        if len(cells) == 9 and all(cell.isdigit() for cell in cells[1:]):
            used, soft, hard = (int(cell) for cell in cells[1:4])
            if hard or soft:
                rows.append((cells[0], used, hard or soft))
    return rows
