"""Find the newest intact checkpoint, and read it.

Finding one needs no torch, which the parents of training processes do not import: reading imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import checkpoint_errors
from resnet_dist.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_dist.checkpoint.content import CheckpointContent
    from resnet_dist.checkpoint.shards import Shard
    from resnet_dist.checkpoint.tensors import TensorFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have their sizes and hashes. Its methods read the files and check the hashes again."""

    path: Path
    step: int  # completed steps
    state: Mapping[str, Any]  # state.json
    files: Mapping[str, format.FileRecord]

    def model(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, on the CPU. Raises CheckpointError."""
        return self._read(format.MODEL).tensors

    def ema(self) -> dict[str, Tensor] | None:
        """Return the moving average of the weights by name, on the CPU, or None. Raises CheckpointError."""
        return self._read(format.EMA).tensors if format.EMA in self.files else None

    def optimizer(self) -> dict[str, dict[str, Tensor]]:
        """Return {parameter name: {state name: whole tensor on the CPU}}. Raises CheckpointError."""
        from resnet_dist.checkpoint.shards import Shard, from_metadata, join

        state: dict[str, dict[str, Tensor]] = {}
        shards: dict[tuple[str, str], list[Shard]] = {}
        for file in format.optimizer_files(self.files):
            path, content = self.path / file, self._read(file)
            stateless, sharded = from_metadata(path, content.metadata)
            for parameter in stateless:
                state.setdefault(parameter, {})
            for name, tensor in content.tensors.items():
                parameter, slash, key = name.rpartition("/")
                if not slash:
                    raise CheckpointError(str(path), f"tensor {name!r} must be named PARAMETER/STATE")
                if key in state.setdefault(parameter, {}):
                    raise CheckpointError(str(path), f"tensor {name!r} is in another part, too")
                if parameter in sharded and tensor.dim() > 0:
                    shards.setdefault((parameter, key), []).append(Shard(*sharded[parameter], tensor))
                else:
                    state[parameter][key] = tensor
        for (parameter, key), found in shards.items():
            name = f"{parameter}/{key}"
            if key in state[parameter]:
                raise CheckpointError(str(self.path), f"tensor {name!r} is whole in one part and sharded in others")
            state[parameter][key] = join(self.path, name, found)
        return state

    def content(self) -> CheckpointContent:
        """Return everything that the checkpoint holds, on the CPU. Raises CheckpointError."""
        from resnet_dist.checkpoint.content import CheckpointContent

        return CheckpointContent(self.step, self.model(), self.optimizer(), self.state, self.ema())

    def _read(self, name: str) -> TensorFile:
        from resnet_dist.checkpoint import tensors

        content = tensors.read(self.path / name)
        format.check_hash(self.path / name, self.files[name], content.record.sha256)
        return content


def load(path: Path) -> Checkpoint:
    """Return the verified checkpoint in the folder `path`, whatever its name. Raises CheckpointError."""
    files = format.verify(path)
    state = format.read_json(path / format.STATE)
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise CheckpointError(str(path / format.STATE), "must hold the key step, a non-negative integer")
    return Checkpoint(path, state["step"], state, files)


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint in `folder`; None if there are no checkpoints.

    A torn, altered or partly deleted checkpoint is skipped with a warning. Raises CheckpointError if there are
    checkpoints and none is intact: starting over could overwrite data that can still be repaired.
    """
    with checkpoint_errors(folder):
        if not folder.exists():
            return None
        candidates = format.step_folders(folder)
    for path in candidates:
        try:
            checkpoint = load(path)
            if checkpoint.step != format.step_of(path.name):
                raise CheckpointError(str(path), f"holds step {checkpoint.step}; it is a copy of another checkpoint")
        except CheckpointError as error:
            log.warning("checkpoint skipped: %s", error)
            continue
        return checkpoint
    if candidates:
        names = ", ".join(path.name for path in candidates)
        raise CheckpointError(
            str(folder),
            f"none of its {len(candidates)} checkpoints is intact ({names}; the log has the reasons). Restore one of "
            "them, or move the folder away and start over with --resume never",
        )
    return None
