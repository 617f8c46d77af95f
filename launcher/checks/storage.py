"""The storage of the run: whether it can be written, has enough space, and agrees with this host's clock."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import torch

from launcher.checks.finding import Finding, failed, graded, passed, skipped, warned
from launcher.formatting import count, in_bytes
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint.disk import reason, sync
from resnet_dist.models import MODELS, ResNet, architecture_of
from resnet_dist.recipe.schema import ModelRecipe

_BYTES_PER_PARAMETER = 12  # of a checkpoint: float32 weights and the two moments of LAMB
_LARGEST_MODEL, _NUM_CLASSES = ModelRecipe(name="resnet152"), 1_000  # assumed for the size of a user's own model
_TEST_BYTES = 2**20
_FEW_INODES, _NO_INODES = 100_000, 1_000  # assumptions: a run writes some hundred files, and others write too
QUOTA_S = 10
_SKEW_S = 1.0  # assumption: file times are compared with this host's clock to the second


def existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def writable(run: RunDirectory, nodes: int = 1) -> Finding:
    """Write, sync, rename, link and read a file as the run will, in the run directory or else in the storage."""
    if not run.storage.is_dir():
        return _missing(run.storage, nodes)
    folder = existing(run.path)
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
        os.link(renamed, linked)  # the lease of a run directory is a hard link
        sync(folder)
        read = linked.read_bytes()
    except OSError as error:
        found = f"{error.filename or folder}: {reason(error)}"
        return failed("storage", found, "repair it, or choose another storage")
    finally:
        for path in (written, renamed, linked):
            with contextlib.suppress(OSError):
                path.unlink()
    seconds = time.perf_counter() - started
    if read != content:
        return failed("storage", f"{folder}: the content read differs from the content written", "use another storage")
    new = "" if folder == run.path else f" (the run creates {run.path.relative_to(folder)} there)"
    return passed("storage", f"{folder}: written, synced, renamed, linked and read in {seconds:.2g} s{new}")


def _missing(storage: Path, nodes: int) -> Finding:
    """Whether a storage that does not exist could be created; writes nothing."""
    parent = existing(storage)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        found = f"{storage} does not exist and cannot be created in {parent}"
        return failed("storage", found, "choose another storage")
    if nodes > 1 or parent == Path(parent.anchor):
        found = f"{storage} does not exist; it would be created in {parent}, perhaps on this host's own disk"
        return warned("storage", found, "mount it, or create it; otherwise the run creates it")
    return passed("storage", f"{storage} does not exist, and can be created (nothing was written)")


def clock(storage: Path) -> Finding:
    """The time that the storage assigns to a new file, compared with this host's."""
    if not storage.is_dir():
        return skipped("storage clock", f"{storage} does not exist")
    path = storage / f".doctor-{secrets.token_hex(8)}"
    try:
        before = time.time()
        path.touch(exist_ok=False)
        given, after = path.stat().st_mtime, time.time()
    except OSError as error:
        return failed("storage clock", f"{error.filename or storage}: {reason(error)}", "repair the storage first")
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    # Kernels stamp files with the time of their last tick, some milliseconds ago.
    ahead = given - after if given > after else min(0.0, given - before)
    if abs(ahead) <= _SKEW_S:
        return passed("storage clock", f"agrees with this host's within {_SKEW_S:g} s")
    direction = "ahead of" if ahead > 0 else "behind"
    advice = "synchronise the clocks (chrony, systemd-timesyncd): file times are compared"
    return warned("storage clock", f"{abs(ahead):.1f} s {direction} this host's", advice)


def needed_bytes(run: RunDirectory, model: ModelRecipe | None, keep: int) -> tuple[int, int]:
    """Bytes of one checkpoint, and of all that are still to be written: `keep` and the one in progress."""
    folders = [folder for folder in run.checkpoints.glob("step-*") if folder.is_dir()]
    sizes = [sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders]
    each = max(sizes, default=0)
    if not each:
        with torch.device("meta"):
            known = model if model is not None and model.name in MODELS else _LARGEST_MODEL
            built = ResNet(architecture_of(known), _NUM_CLASSES)
        each, sizes = sum(parameter.numel() for parameter in built.parameters()) * _BYTES_PER_PARAMETER, []
    return each, max(each, (keep + 1 - len(sizes)) * each)


def space(storage: Path, each: int, total: int, keep: int) -> Finding:
    """Free space for checkpoints of `each` bytes; `total` bytes are needed."""
    folder = existing(storage)
    free = shutil.disk_usage(folder).free
    need = f"{in_bytes(total)} needed for {count(keep, 'checkpoint')} and the one in progress"
    advice = "free some space, lower checkpoint.keep, or choose another storage"
    return graded(
        "free disk", f"{in_bytes(free)} free on {folder}, {need}", advice, fail=free < each, warn=free < total
    )


def inodes(disk: os.statvfs_result) -> Finding:
    """Files that can still be created."""
    if disk.f_files == 0:
        return passed("inodes", "this file system has no limit")
    left = disk.f_favail
    advice = "delete small files (old logs, packages, caches), or choose another storage"
    found = f"{left:,} of {disk.f_files:,} free"
    return graded("inodes", found, advice, fail=left < _NO_INODES, warn=left < _FEW_INODES)


def quota(needed: int) -> Finding:
    """This user's quotas, as the `quota` command prints them; a folder's own quota shows as free disk."""
    command = shutil.which("quota")
    if command is None:
        return skipped("quota", "there is no `quota` command; your quota may be smaller than the free disk above")
    try:
        done = subprocess.run(
            [command, "-p", "-v", "-w"], capture_output=True, text=True, timeout=QUOTA_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return warned("quota", f"`quota` did not answer within {QUOTA_S} s", "check the file servers")
    tight = [
        f"{disk}: {in_bytes(max(0, limit - used) * 1024)} left of {in_bytes(limit * 1024)}"
        for disk, used, limit in _rows(done.stdout)
        if (limit - used) * 1024 < needed
    ]
    if not tight:
        return passed("quota", "no file system has too small a quota")
    advice = "free some space, request a larger quota, or lower checkpoint.keep, if the storage is on this file system"
    return warned("quota", f"{'; '.join(tight)}; {in_bytes(needed)} needed", advice)


def _rows(text: str) -> list[tuple[str, int, int]]:
    """(file system, KiB used, KiB allowed) from `quota -p -w`: nine columns, grace times always among them."""
    rows = []
    for line in text.splitlines():
        cells = line.replace("*", "").split()
        if len(cells) == 9 and all(cell.isdigit() for cell in cells[1:]):
            used, soft, hard = (int(cell) for cell in cells[1:4])
            if hard or soft:
                rows.append((cells[0], used, hard or soft))
    return rows
