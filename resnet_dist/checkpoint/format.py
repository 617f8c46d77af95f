"""What a checkpoint looks like on disk. Needs no torch: a status command can list checkpoints without it.

    checkpoints/step-00000042/
        model.safetensors        parameters and buffers by name
        optimizer.safetensors    "<parameter name>/<state name>", whole, whatever the engine and the number of workers;
                                 or optimizer-00000-of-00004.safetensors and so on, each what one worker held: tensors
                                 that are whole, too, and flat pieces of others. The file's metadata "pieces" says which
                                 and of what: {parameter name: {"start": first element, "shape": of the whole}}
        ema.safetensors          their moving average by name, where the run keeps one
        state.json               step, samples seen, the recipe's fingerprint, versions
        manifest.json            {"format": 1, "files": {name: {"size_bytes": ..., "sha256": ...}}}
    checkpoints/.step-00000043.tmp-HOST-PID-RANDOM/    being written or being deleted: never a checkpoint

The folder gets its name when everything in it is on the disk, so a folder named step-N is complete, or was altered
afterwards; the manifest tells which.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.disk import reason
from resnet_dist.errors import CheckpointError

FORMAT = 1  # of the manifest and of everything that it lists

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
EMA = "ema.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, STATE)  # what a manifest of format 1 lists, where the optimizer's state is in one file

_STEP_FOLDER = re.compile(r"step-([0-9]{8,})")
_TEMPORARY_FOLDER = re.compile(r"\.step-[0-9]{8,}\.tmp-(?P<host>.+)-(?P<pid>[0-9]+)-(?P<random>[0-9a-f]{8})")
_PART = re.compile(r"optimizer-[0-9]{5,}-of-([0-9]{5,})\.safetensors")


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    size_bytes: int
    sha256: str  # lower-case hexadecimal


@dataclass(frozen=True)
class TemporaryFolder:
    """A folder that its writer has not finished. `host` and `pid` say who that is."""

    path: Path
    host: str
    pid: int
    random: str


def folder_name(step: int) -> str:
    """Name of the checkpoint of `step` completed steps.

    >>> folder_name(42)
    'step-00000042'
    """
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a checkpoint folder's name; None when it is not one.

    >>> step_of("step-00000042"), step_of(".step-00000042.tmp-node7-812-0badcafe"), step_of("step-42")
    (42, None, None)
    """
    match = _STEP_FOLDER.fullmatch(name)
    if match is None or folder_name(int(match[1])) != name:
        return None
    return int(match[1])


def part_name(number: int, of: int) -> str:
    """Name of one of `of` files that together hold the optimizer's state.

    >>> part_name(1, of=4)
    'optimizer-00001-of-00004.safetensors'
    """
    return f"optimizer-{number:05d}-of-{of:05d}.safetensors"


def optimizer_files(names: Collection[str]) -> list[str]:
    """Of a checkpoint's files, those that hold the optimizer's state: one, or all parts. Empty when one is missing."""
    if OPTIMIZER in names:
        return [OPTIMIZER]
    counts = {int(match[1]) for name in names if (match := _PART.fullmatch(name))}
    parts = [part_name(number, of) for of in counts for number in range(of)]
    return parts if set(parts) <= set(names) else []


def temporary_name(step: int, host: str, pid: int, random: str) -> str:
    """Name of a checkpoint folder that is being written or deleted. `random` is 8 hexadecimal digits."""
    return f".{folder_name(step)}.tmp-{host}-{pid}-{random}"


def step_folders(folder: Path) -> list[Path]:
    """Everything in `folder` that is named like a checkpoint, newest first. Raises OSError."""
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def temporary_folders(folder: Path) -> list[TemporaryFolder]:
    """Everything in `folder` that a writer has not finished. Raises OSError."""
    matches = ((path, _TEMPORARY_FOLDER.fullmatch(path.name)) for path in folder.iterdir())
    return [
        TemporaryFolder(path, match["host"], int(match["pid"]), match["random"]) for path, match in matches if match
    ]


def json_bytes(value: Any) -> bytes:
    """JSON as a person can read it, strict: NaN and infinity, which JSON lacks, are a ValueError."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def manifest_bytes(files: Mapping[str, FileRecord]) -> bytes:
    """The content of manifest.json."""
    return json_bytes({"format": FORMAT, "files": {name: asdict(record) for name, record in files.items()}})


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """Read the manifest of the checkpoint in `folder`; CheckpointError says what is wrong with it."""
    path = folder / MANIFEST
    content = read_json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(str(path), "is not a checkpoint's manifest")
    if content["format"] != FORMAT or isinstance(content["format"], bool):
        raise CheckpointError(str(path), f"has format {content['format']!r}; this version reads format {FORMAT}")
    files = content.get("files")
    if set(content) != {"format", "files"} or not isinstance(files, dict):
        raise CheckpointError(str(path), "must hold format and files, nothing else")
    optimizer = optimizer_files(files)
    if not optimizer or set(files) - {EMA} != {MODEL, STATE, *optimizer}:
        raise CheckpointError(
            str(path),
            f"must list exactly these files: {', '.join(FILES)} (or all parts of {OPTIMIZER} in its place; {EMA} may "
            "be there)",
        )
    records = {}
    for name, entry in files.items():
        if not isinstance(entry, dict) or set(entry) != {"size_bytes", "sha256"}:
            raise CheckpointError(str(path), f"must give size_bytes and sha256 of {name}")
        records[name] = FileRecord(**entry)
    return records


def read_json(path: Path) -> Any:
    """Read one JSON file of a checkpoint; CheckpointError where it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            str(path), "is missing" if isinstance(error, FileNotFoundError) else reason(error)
        ) from error
    except (ValueError, RecursionError) as error:  # broken UTF-8 and broken JSON are ValueErrors
        raise CheckpointError(str(path), f"is not valid JSON ({error})") from error


def check_sizes(folder: Path) -> dict[str, FileRecord]:
    """The manifest, once every file in it is there with its size. Cheap; CheckpointError names the first bad file."""
    records = read_manifest(folder)
    for name, record in records.items():
        path = folder / name
        try:
            size_bytes = path.stat().st_size
        except OSError as error:
            raise CheckpointError(str(path), reason(error)) from error
        if size_bytes != record.size_bytes:
            raise CheckpointError(str(path), f"has {size_bytes} bytes; the manifest says {record.size_bytes}")
    return records


def verify(folder: Path) -> dict[str, FileRecord]:
    """The manifest, once every file in it is there with its size and hash. CheckpointError names the first bad file."""
    records = check_sizes(folder)
    for name, record in records.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(str(path), reason(error)) from error
        check_hash(path, record, sha256)
    return records


def check_hash(path: Path, record: FileRecord, sha256: str) -> None:
    """CheckpointError unless `sha256` is what the manifest says of the file at `path`."""
    if sha256 != record.sha256:
        raise CheckpointError(str(path), f"was altered: its sha256 is {sha256}, the manifest says {record.sha256}")
