"""An optimizer state that is partitioned: every worker writes the part it holds, rank 0 the rest and the manifest.

A part holds whole tensors, and pieces of those that the partition has cut.

Nothing is gathered and no collective is needed, so it can be done while the training goes on. The workers meet in the
temporary folder, whose name all of them know:

    .step-00000042.tmp-HOST-PID-RANDOM/          of rank 0; whoever comes first makes it
        optimizer-00001-of-00004.safetensors     written by worker 1
        optimizer-00001-of-00004.json            its size and hash, or what went wrong; there once the part is
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import replace_whole
from resnet_dist.errors import CheckpointError, StorageError

# Assumption: workers reach the same step boundary within seconds of each other and write to the same storage, so a
# part that is ten minutes late will not come.
PATIENCE_S = 600.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Writer:
    """Rank 0's process in one attempt: what the temporary folders are named after. To be broadcast once."""

    host: str
    pid: int
    random: str

    @classmethod
    def here(cls) -> Writer:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), secrets.token_hex(4))


@dataclass(frozen=True)
class Parts:
    """Which part of the optimizer state this worker writes. Parts share no tensor."""

    number: int  # the rank, from 0
    of: int  # number of workers
    writer: Writer
    patience_s: float = PATIENCE_S
    _until: list[float] = field(default_factory=list, init=False, compare=False)  # times to give up at, for hurry()

    @property
    def file(self) -> str:
        """Name of this worker's part."""
        return format.part_name(self.number, self.of)

    def folder(self, checkpoints: Path, step: int) -> Path:
        """The temporary folder that the workers meet in."""
        return checkpoints / format.temporary_name(step, self.writer.host, self.writer.pid, self.writer.random)

    def hurry(self, patience_s: float) -> None:
        """Wait for others `patience_s` more at most, also where it is being waited in another thread."""
        self._until.append(time.monotonic() + patience_s)

    def announce(self, folder: Path, record: format.FileRecord) -> None:
        """Say that this worker's part is on the disk. Raises OSError."""
        replace_whole(self._announcement(folder, self.number), format.json_bytes(asdict(record)))

    def give_up(self, folder: Path, problem: str) -> None:
        """Say that this worker's part will not come. Raises OSError."""
        replace_whole(self._announcement(folder, self.number), format.json_bytes({"problem": problem}))

    def wait_for_others(self, folder: Path) -> dict[str, format.FileRecord]:
        """Wait for the other workers' parts; return what the manifest is to say of them.

        Raises StorageError, naming the worker, when a part cannot be written or does not come.
        """
        started = time.monotonic()
        records = {}
        for number in range(self.of):
            if number == self.number:
                continue
            announcement = self._announcement(folder, number)
            while not announcement.exists():
                until = min([started + self.patience_s, *self._until])
                if time.monotonic() > until:
                    problem = f"worker {number} did not write its part within {until - started:g} s"
                    raise StorageError(str(folder), problem)
                time.sleep(_POLL_S)
            records[format.part_name(number, self.of)] = _record(announcement, number)
            announcement.unlink()
        return records

    def _announcement(self, folder: Path, number: int) -> Path:
        return (folder / format.part_name(number, self.of)).with_suffix(".json")


def _record(announcement: Path, number: int) -> format.FileRecord:
    try:
        content: Mapping[str, Any] = format.read_json(announcement)
    except CheckpointError as error:
        raise StorageError(error.path, error.problem) from error
    if "problem" in content:
        raise StorageError(str(announcement.parent), f"worker {number} could not write its part: {content['problem']}")
    return format.FileRecord(**content)
