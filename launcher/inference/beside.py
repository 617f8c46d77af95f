"""One evaluation beside training: in a process without a process group, on resources of its own."""

from __future__ import annotations

import time
from typing import Any

import torch

from launcher.inference.evaluate import evaluate_checkpoint
from launcher.inference.trained import saved
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint.format import folder_name
from resnet_dist.errors import DataError


def evaluation_of(run: RunDirectory, step: int, *, num_threads: int, device: torch.device) -> dict[str, Any]:
    """The values of an eval record for the checkpoint of `step`, as the workers would record them.

    Raises DataError for a broken image under `data.on_error: fail`, and as `evaluate_checkpoint` does.
    """
    began, checkpoint = time.perf_counter(), saved(run.checkpoints / folder_name(step))
    found = evaluate_checkpoint(checkpoint, num_threads=num_threads, device=device)
    if found.evaluation.num_bad and checkpoint.recipe.data.on_error == "fail":
        raise DataError(checkpoint.recipe.data.root, f"{found.evaluation.num_bad:,} val images are broken")
    return {**found.evaluation.record(), "time_s": time.perf_counter() - began}
