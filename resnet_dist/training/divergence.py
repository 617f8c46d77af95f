"""The check of every step: whether training has diverged."""

from __future__ import annotations

import math

from resnet_dist.engines.scaler import LEAST_SCALE
from resnet_dist.errors import DivergedError
from resnet_dist.telemetry.step_totals import StepTotals


def check_finite(totals: StepTotals, total_steps: int, *, skips_overflows: bool) -> None:
    """Raise DivergedError if the loss or the gradient of a step is not finite.

    With `skips_overflows` (a loss scaler) the gradient may overflow, but not at the smallest scale, and not in all of
    the run's `total_steps`.
    """
    if not math.isfinite(totals.loss):
        raise DivergedError(totals.step, totals.loss)
    if not math.isfinite(totals.gradient_norm) and not skips_overflows:
        problem = f"the gradient norm of step {totals.step} is {totals.gradient_norm}"
        raise DivergedError(totals.step, totals.gradient_norm, problem)
    if not totals.skipped:
        return
    scale, num_skipped = totals.scaling["loss_scale"], totals.scaling["num_skipped"]
    if scale <= LEAST_SCALE:
        problem = f"float16 gradients of step {totals.step} overflow with a loss scale of {scale:g}, the smallest"
    elif totals.step == total_steps and num_skipped >= totals.step:
        problem = f"all {num_skipped} steps were skipped: float16 gradients overflow with a loss scale of {scale:g}"
    else:
        return
    advice = "Use precision bfloat16 or float32, or lower the peak LR"
    raise DivergedError(totals.step, scale, problem, advice, by_samples=False)
