"""Many small files on a file system that several hosts share."""

from __future__ import annotations

import os
import re
from pathlib import Path

from resnet_dist.recipe.schema import DataRecipe

MANY_FILES = 100_000  # more of them, opened in each epoch, slow down a server and its other users
_MOUNTS = Path("/proc/self/mounts")
# File systems of several hosts, as /proc/self/mounts names them: every open asks a server.
_SHARED = ("9p", "afs", "beegfs", "ceph", "cifs", "daos", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2")
_SHARED_TOO = ("orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs")
_LOCAL_FUSE = ("fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.squashfuse")  # other fuse.* are mostly shared


def warning(data: DataRecipe, num_images: int, mounts: Path = _MOUNTS) -> str | None:
    """A warning if `num_images` files are on a file system of several hosts; None if they are not, or are few."""
    if data.source != "imagefolder" or num_images <= MANY_FILES or not Path(data.root).is_dir():
        return None
    kind = file_system(data.root, mounts)
    if kind is None:
        return None
    found = f"{num_images:,} small files on a shared file system ({kind}): each is opened in every epoch, which is slow"
    remedy = "`launcher prepare pack` writes them to few large files, with the same results"
    return f"{data.root}: {found} there, also for its other users. {remedy}"


def file_system(root: str, mounts: Path = _MOUNTS) -> str | None:
    """The kind of the file system that holds `root`, if several hosts share it; else None."""
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    path, best, kind = os.path.realpath(root), "", ""
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1])
        # Of mounts on the same folder, the last one counts.
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    is_shared = kind in _SHARED + _SHARED_TOO or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)
    return kind if is_shared else None
