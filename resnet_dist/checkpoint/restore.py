"""Find the newest checkpoint that can be trusted, and read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_dist.checkpoint import format, tensors
from resnet_dist.checkpoint.disk import reason
from resnet_dist.checkpoint.pieces import Piece, joined, pieces_of
from resnet_dist.checkpoint.save import STATELESS
from resnet_dist.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have their sizes and hashes. Tensors are read when asked for, hashed once more."""

    path: Path
    step: int  # completed steps
    state: Mapping[str, Any]  # state.json
    files: Mapping[str, format.FileRecord]

    def model(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU. Raises CheckpointError."""
        return self._read(format.MODEL).tensors

    def ema(self) -> dict[str, Tensor] | None:
        """The moving average of the weights by name, on the CPU; None without one. Raises CheckpointError."""
        return self._read(format.EMA).tensors if format.EMA in self.files else None

    def optimizer(self) -> dict[str, dict[str, Tensor]]:
        """Optimizer state: {parameter name: {state name: tensor on the CPU}}, all whole. Raises CheckpointError."""
        state: dict[str, dict[str, Tensor]] = {}
        cut: dict[tuple[str, str], list[Piece]] = {}
        for file in format.optimizer_files(self.files):
            contents = self._read(file)
            pieces = pieces_of(self.path / file, contents.metadata)
            try:
                for name in json.loads(contents.metadata[STATELESS]):
                    state.setdefault(name, {})
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(str(self.path / file), f"has no list {STATELESS!r}") from error
            for name, tensor in contents.tensors.items():
                parameter, slash, key = name.rpartition("/")
                if not slash:
                    raise CheckpointError(str(self.path / file), f"tensor {name!r} names no parameter")
                if key in state.setdefault(parameter, {}):
                    raise CheckpointError(str(self.path / file), f"tensor {name!r} is in another part, too")
                if parameter in pieces and tensor.dim() > 0:
                    cut.setdefault((parameter, key), []).append(Piece(*pieces[parameter], tensor))
                else:
                    state[parameter][key] = tensor
        for (parameter, key), found in cut.items():
            if key in state[parameter]:
                raise CheckpointError(str(self.path), f"tensor '{parameter}/{key}' is whole in one part, cut in others")
            state[parameter][key] = joined(self.path, f"{parameter}/{key}", found)
        return state

    def _read(self, name: str) -> tensors.Contents:
        contents = tensors.read(self.path / name)
        format.check_hash(self.path / name, self.files[name], contents.record.sha256)
        return contents


def load(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`, whatever its name; CheckpointError says which file is wrong, and how."""
    files = format.verify(path)
    state = format.read_json(path / format.STATE)
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise CheckpointError(str(path / format.STATE), "must hold the step, a count")
    return Checkpoint(path, state["step"], state, files)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder` that can be trusted; None where there is none at all.

    One that is torn, altered or half-deleted is skipped with a warning. Raises CheckpointError when there are
    checkpoints and none is good: starting over would throw away what may still be mended.
    """
    try:
        candidates = format.step_folders(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(str(folder), reason(error)) from error
    for path in candidates:
        try:
            checkpoint = load(path)
            if checkpoint.step != format.step_of(path.name):
                raise CheckpointError(str(path), f"holds step {checkpoint.step}; it is another checkpoint's copy")
        except CheckpointError as error:
            log.warning("checkpoint skipped: %s", error)
            continue
        return checkpoint
    if candidates:
        names = ", ".join(path.name for path in candidates)
        raise CheckpointError(
            str(folder),
            f"none of its {len(candidates)} checkpoints is good ({names}; the log says why); "
            "restore one of them, or move the folder away to start over",
        )
    return None
