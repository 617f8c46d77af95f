"""The layout of a checkpoint on disk. Needs no torch: a status command can list checkpoints without it.

    checkpoints/step-00000042/
        model.safetensors        parameters and buffers by name
        optimizer.safetensors    "<parameter name>/<state name>", whole tensors, whatever the engine and the number of
                                 workers; or optimizer-00000-of-00004.safetensors and so on, one part for each worker.
                                 A part holds whole tensors and flat shards of others. Its metadata key "pieces" lists
                                 the shards: {parameter name: {"start": first element, "shape": of the whole tensor}}
        ema.safetensors          the moving average of the weights by name, if the run keeps one
        state.json               step, samples seen, the recipe's fingerprint, versions
        manifest.json            {"format": 1, "files": {name: {"size_bytes": ..., "sha256": ...}}}
    checkpoints/.step-00000043.tmp-HOST-PID-RANDOM/    being written or deleted: never a checkpoint

A folder is renamed to step-N after all of its files are on the disk. A folder of that name is therefore complete,
unless it was altered later; the manifest shows that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_dist import input_files
from resnet_dist.checkpoint.disk import checkpoint_errors
from resnet_dist.errors import CheckpointError
from resnet_dist.input_files import open_regular, record_of

FORMAT = 1  # version of the manifest and of the files that it lists

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
EMA = "ema.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)  # listed by a manifest of format 1 if the optimizer state is in one file

_STEP_FOLDER = re.compile(r"step-([0-9]{8,})")
_PART = re.compile(r"optimizer-[0-9]{5,}-of-([0-9]{5,})\.safetensors")


@dataclass(frozen=True)
class FileRecord:
    """A file's entry in the manifest."""

    size_bytes: int
    sha256: str  # lower-case hexadecimal


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of `step` completed steps.

    >>> folder_name(42)
    'step-00000042'
    """
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in a checkpoint folder's name; None for any other name.

    >>> step_of("step-00000042"), step_of(".step-00000042.tmp-node7-812-0badcafe"), step_of("step-42")
    (42, None, None)
    """
    match = _STEP_FOLDER.fullmatch(name)
    if match is None or folder_name(int(match[1])) != name:
        return None
    return int(match[1])


def part_name(number: int, of: int) -> str:
    """Return the name of one of `of` files that together hold the optimizer state.

    >>> part_name(1, of=4)
    'optimizer-00001-of-00004.safetensors'
    """
    return f"optimizer-{number:05d}-of-{of:05d}.safetensors"


def optimizer_files(names: Collection[str]) -> list[str]:
    """Return the names of the files that hold the optimizer state: one, or all parts; none if a part is missing."""
    if OPTIMIZER in names:
        return [OPTIMIZER]
    counts = {int(match[1]) for name in names if (match := _PART.fullmatch(name))}
    parts = [part_name(number, of) for of in counts for number in range(of)]
    return parts if set(parts) <= set(names) else []


def step_folders(folder: Path) -> list[Path]:
    """Return the paths in `folder` that are named like a checkpoint, newest first. Raises OSError."""
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def json_bytes(value: object) -> bytes:
    """Return `value` as indented JSON. Raises ValueError for NaN and infinity, which JSON lacks."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def manifest_bytes(files: Mapping[str, FileRecord]) -> bytes:
    """Return the content of manifest.json."""
    return json_bytes({"format": FORMAT, "files": {name: asdict(record) for name, record in files.items()}})


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """Read the manifest of the checkpoint in `folder`. Raises CheckpointError."""
    path = folder / MANIFEST
    content = read_json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(str(path), "is not a checkpoint's manifest")
    if content["format"] != FORMAT or isinstance(content["format"], bool):
        found = content["format"]
        is_later = type(found) is int and found > FORMAT
        advice = ": it was written by a later version of the launcher: use that version" if is_later else ""
        raise CheckpointError(str(path), f"has format {found!r}; this version reads format {FORMAT}{advice}")
    files = content.get("files")
    if set(content) != {"format", "files"} or not isinstance(files, dict):
        raise CheckpointError(str(path), "must have the keys format and files only")
    optimizer = optimizer_files(files)
    if not optimizer or set(files) - {EMA} != {MODEL, STATE, *optimizer}:
        allowed = f"{', '.join(FILES)} (or all parts of {OPTIMIZER}), and optionally {EMA}"
        raise CheckpointError(str(path), f"must list exactly these files: {allowed}")
    records = {name: record_of(FileRecord, entry) for name, entry in files.items()}
    if bad := [name for name, record in records.items() if record is None]:
        raise CheckpointError(str(path), f"must give size_bytes and sha256 of {bad[0]}")
    return {name: record for name, record in records.items() if record is not None}


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint. Raises CheckpointError if it is missing, unreadable or not JSON."""
    try:
        with checkpoint_errors(path):
            return input_files.read_json(path)
    except ValueError as error:  # invalid UTF-8 and invalid JSON are ValueErrors
        raise CheckpointError(str(path), f"is not valid JSON ({error})") from error


def check_sizes(folder: Path) -> dict[str, FileRecord]:
    """Return the manifest after checking that every file exists and has its size. Fast: no file is read.

    Raises CheckpointError, which names the first bad file.
    """
    records = read_manifest(folder)
    for name, record in records.items():
        with checkpoint_errors(folder / name):
            size_bytes = (folder / name).stat().st_size
        if size_bytes != record.size_bytes:
            raise CheckpointError(
                str(folder / name), f"has {size_bytes} bytes; the manifest records {record.size_bytes}"
            )
    return records


def verify(folder: Path) -> dict[str, FileRecord]:
    """Return the manifest after checking every file's size and hash.

    Raises CheckpointError, which names the first bad file.
    """
    records = check_sizes(folder)
    for name, record in records.items():
        with checkpoint_errors(folder / name), open_regular(folder / name) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        check_hash(folder / name, record, sha256)
    return records


def check_hash(path: Path, record: FileRecord, sha256: str) -> None:
    """Raise CheckpointError unless `sha256` is the hash that the manifest records for the file at `path`."""
    if sha256 != record.sha256:
        raise CheckpointError(str(path), f"was altered: its sha256 is {sha256}, the manifest records {record.sha256}")
