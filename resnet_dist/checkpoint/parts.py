"""A partitioned optimizer state: every worker writes its part, rank 0 writes the other files and the manifest.

A part holds whole tensors, and shards of the tensors that the partition cuts. Nothing is gathered and no collective is
needed, so training continues meanwhile. The workers share a temporary folder whose path all of them know:

    .step-00000042.tmp-HOST-PID-RANDOM/          HOST and PID are rank 0's; the first worker creates it
        optimizer-00001-of-00004.safetensors     written by worker 1
        optimizer-00001-of-00004.json            its size and hash, or an error; written after the part
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import replace_whole
from resnet_dist.errors import CheckpointError, StorageError
from resnet_dist.input_files import record_of

# Assumption: workers reach the same step boundary within seconds of each other and write to the same storage, so a
# part that is ten minutes late will not arrive.
TIMEOUT_S = 600.0
_POLL_S = 0.02


@dataclass(frozen=True)
class PartFiles:
    """The files into which workers write their parts of the optimizer state. No tensor is in two parts."""

    number: int  # this worker's part: its rank
    of: int  # number of workers
    writer: str  # names the shared folders: rank 0's `folders.new_writer()`
    timeout_s: float = TIMEOUT_S
    _deadlines: list[float] = field(default_factory=list, init=False, compare=False)  # set by limit_wait()

    @property
    def file(self) -> str:
        """Name of this worker's part."""
        return format.part_name(self.number, self.of)

    def limit_wait(self, timeout_s: float) -> None:
        """Wait for other workers for at most `timeout_s` more. Applies to a wait in another thread, too."""
        self._deadlines.append(time.monotonic() + timeout_s)

    def announce(self, folder: Path, result: format.FileRecord | str) -> None:
        """Announce that this worker's part is on the disk, or why it could not be written. Raises OSError."""
        content = {"problem": result} if isinstance(result, str) else asdict(result)
        replace_whole(self._announcement(folder, self.number), format.json_bytes(content))

    def wait_for_others(self, folder: Path) -> dict[str, format.FileRecord]:
        """Wait for the other workers' parts and return their entries of the manifest.

        Raises StorageError, which names the worker, if a part cannot be written or does not arrive in time.
        """
        started = time.monotonic()
        records = {}
        for number in range(self.of):
            if number == self.number:
                continue
            announcement = self._announcement(folder, number)
            while not announcement.exists():
                deadline = min([started + self.timeout_s, *self._deadlines])
                if time.monotonic() > deadline:
                    problem = f"worker {number} did not write its part within {deadline - started:g} s"
                    raise StorageError(str(folder), problem)
                time.sleep(_POLL_S)
            records[format.part_name(number, self.of)] = _record(announcement, number)
            announcement.unlink()
        return records

    def _announcement(self, folder: Path, number: int) -> Path:
        return (folder / format.part_name(number, self.of)).with_suffix(".json")


def _record(announcement: Path, number: int) -> format.FileRecord:
    try:
        content = format.read_json(announcement)
    except CheckpointError as error:
        raise StorageError(error.path, error.problem) from error
    record = record_of(format.FileRecord, content)
    if record is None:
        problem = content.get("problem") if isinstance(content, dict) else None
        raise StorageError(str(announcement.parent), f"worker {number} could not write its part: {problem}")
    return record
