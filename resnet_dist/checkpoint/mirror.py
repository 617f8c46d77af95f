"""A copy of the checkpoints in object storage: a second place to resume from if the run directory is lost.

    URL/step-00000042/{model,optimizer}.safetensors, state.json      in any order
    URL/step-00000042/manifest.json                                  last: it makes the checkpoint complete

URLs are fsspec's: s3://, gs://, file://, memory:// and others that are installed. The store's own library finds
credentials and endpoints (environment variables, its config file, the machine's role).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.checkpoint import folders, format, restore
from resnet_dist.checkpoint.disk import storage_errors, sync, write_synced
from resnet_dist.checkpoint.retention import Candidate, Retention, metric_of
from resnet_dist.errors import CheckpointError, StorageError, TrainingError
from resnet_dist.input_files import parse_json, read_whole
from resnet_dist.object_stores import open_address, text_of

if TYPE_CHECKING:
    from resnet_dist.object_stores import AbstractFileSystem

log = logging.getLogger(__name__)

KEY = "checkpoint.mirror"  # in the config
# Stores without folders: an object exists under its full name only, and creating a folder might create a bucket.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2"})


class Mirror:
    """Keeps a copy of the run's checkpoints under `url`. Raises MissingPackage or RecipeError if `url` cannot be used.

    Only one process of a run may write to it at a time.
    """

    def __init__(self, url: str, retention: Retention) -> None:
        self.url = url
        self._retention = retention
        self._files, self._root = open_address(KEY, url)

    def upload(self, checkpoint: Path, step: int) -> int:
        """Copy a complete checkpoint, its manifest last, then delete old ones. Returns its size in bytes.

        Nothing is sent if the mirror has the same checkpoint. Raises StorageError, and CheckpointError if the local
        checkpoint does not match its manifest.
        """
        records = format.check_sizes(checkpoint)
        with _store_errors(self.url):
            manifest = read_whole(checkpoint / format.MANIFEST)
            target = f"{self._root}/{checkpoint.name}"
            present = self._manifest(target)
            if present != manifest:
                if present is not None:  # another checkpoint of this step: make it incomplete before changing it
                    self._files.rm_file(f"{target}/{format.MANIFEST}")
                self._send(checkpoint, target, manifest, records)
        try:
            with _store_errors(self.url):
                self._delete_old(step)
        except StorageError as error:  # costs space in the mirror only
            log.warning("an old checkpoint could not be deleted: %s", error)
        return sum(record.size_bytes for record in records.values())

    def _send(self, checkpoint: Path, target: str, manifest: bytes, records: dict[str, format.FileRecord]) -> None:
        if _has_folders(self._files):
            self._files.makedirs(target, exist_ok=True)
        for name in records:
            self._files.put_file(str(checkpoint / name), f"{target}/{name}")
        self._check_sizes(target, {name: record.size_bytes for name, record in records.items()})
        self._files.pipe_file(f"{target}/{format.MANIFEST}", manifest)
        self._check_sizes(target, {format.MANIFEST: len(manifest)})

    def _check_sizes(self, target: str, sizes: dict[str, int]) -> None:
        self._files.invalidate_cache()
        for name, size_bytes in sizes.items():
            found = self._files.info(f"{target}/{name}")["size"]
            if found != size_bytes:
                raise StorageError(f"{self.url}/{Path(target).name}/{name}", f"has {found} bytes, not {size_bytes}")

    def _manifest(self, target: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            content: bytes = self._files.cat_file(f"{target}/{format.MANIFEST}")
            return content
        return None

    def _delete_old(self, step: int) -> None:
        present = {own: is_complete for own, is_complete in _steps(self._files, self._root).items() if own <= step}
        for own in self._retention.to_delete(self._candidate(own, complete) for own, complete in present.items()):
            target = f"{self._root}/{format.folder_name(own)}"
            if present[own]:
                self._files.rm_file(f"{target}/{format.MANIFEST}")
            self._files.rm(target, recursive=True)

    def _candidate(self, step: int, is_complete: bool) -> Candidate:
        metric = None
        if is_complete and self._retention.keep_best:
            state = parse_json(self._files.cat_file(f"{self._root}/{format.folder_name(step)}/{format.STATE}"))
            metric = metric_of(state, self._retention.metric)
        return Candidate(step, is_complete, metric)


def complete_steps(url: str) -> list[int]:
    """Return the steps of the complete checkpoints under `url`, newest first.

    Raises StorageError, MissingPackage and RecipeError.
    """
    files, root = open_address(KEY, url)
    with _store_errors(url):
        return sorted((step for step, is_complete in _steps(files, root).items() if is_complete), reverse=True)


def fetch(url: str, step: int, folder: Path) -> Path:
    """Download a checkpoint into the folder of checkpoints `folder`; return its path there.

    It gets its name after all of its files are there and their hashes are checked. An intact local checkpoint of that
    step is not changed. Raises CheckpointError if the copy does not match its manifest, and StorageError.
    """
    final = folder / format.folder_name(step)
    if final.exists():
        with contextlib.suppress(CheckpointError):
            format.verify(final)
            return final
    files, root = open_address(KEY, url)
    source = f"{root}/{final.name}"
    temporary = folders.temporary_folder(folder, step)
    with storage_errors(folder):
        temporary.mkdir(parents=True)
        try:
            with folders.renamed_when_complete(temporary, final, step):
                with _store_errors(url):
                    write_synced(temporary / format.MANIFEST, files.cat_file(f"{source}/{format.MANIFEST}"))
                    for name in format.read_manifest(temporary):
                        files.get_file(f"{source}/{name}", str(temporary / name))
                for name in format.verify(temporary):
                    sync(temporary / name)
                sync(temporary)
        except CheckpointError as error:
            raise CheckpointError(f"{url}/{final.name}/{Path(error.path).name}", error.problem) from error
    return final


def fetch_newest(url: str, folder: Path) -> restore.Checkpoint | None:
    """Download the newest intact checkpoint under `url` into `folder`; None if there are no checkpoints.

    A damaged one is skipped with a warning. Raises CheckpointError if there are checkpoints and none is intact, and
    StorageError.
    """
    steps = complete_steps(url)
    for step in steps:
        try:
            return restore.load(fetch(url, step, folder))
        except CheckpointError as error:
            log.warning("checkpoint skipped: %s", error)
    if steps:
        raise CheckpointError(url, f"none of its {len(steps)} checkpoints is intact; the log has the reasons")
    return None


def _steps(files: AbstractFileSystem, root: str) -> dict[int, bool]:
    """Return {step: whether it is complete} of everything in `root` that is named like a checkpoint."""
    files.invalidate_cache()
    try:
        names = [path.rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False)]
    except FileNotFoundError:
        return {}
    steps = {step: name for name in names if (step := format.step_of(name)) is not None}
    return {step: bool(files.exists(f"{root}/{name}/{format.MANIFEST}")) for step, name in steps.items()}


def _has_folders(files: AbstractFileSystem) -> bool:
    names = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    return not names & _OBJECT_STORES


@contextlib.contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Turn any error of a store's library in the block into a StorageError that names the URL.

    The libraries' error classes (HTTP, credentials, the service) have no common base but Exception.
    """
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        raise StorageError(url, text_of(error)) from error
