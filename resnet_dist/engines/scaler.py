"""Loss scaling for float16, whose gradients would underflow: torch's scaler, with a count of skipped steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# A smaller scale makes gradients smaller, not larger: an overflow at this scale cannot be fixed by scaling. The same as
# the default of DeepSpeed's `min_loss_scale`.
LEAST_SCALE = 1.0


class LossScaler:
    """torch.amp.GradScaler, with a count of skipped steps.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2; growth and backoff are torch's defaults.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._num_skipped = 0
        self._stepped = False

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, and record whether any of them is not finite."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> tuple[bool, dict[str, float]]:
        """Make one optimizer step, unless gradients overflowed; then update the scale. Waits for the device.

        Returns whether the step was skipped, and for its row of the metrics `loss_scale` (of this step) and
        `num_skipped` (so far, including this step).
        """
        row = {"loss_scale": self._scaler.get_scale()}
        self._stepped = False
        handle = optimizer.register_step_post_hook(self._on_step)
        try:
            self._scaler.step(optimizer)
        finally:
            handle.remove()
        self._scaler.update()
        skipped = not self._stepped  # the scale does not show it: at its minimum it stays the same
        self._num_skipped += skipped
        return skipped, {**row, "num_skipped": self._num_skipped}

    def _on_step(self, *_: object) -> None:
        self._stepped = True

    def state(self) -> dict[str, float]:
        """Return loss_scale, growth_tracker (steps since the scale last changed) and num_skipped (steps so far)."""
        state = self._scaler.state_dict()
        return {
            "loss_scale": state["scale"],
            "growth_tracker": state["_growth_tracker"],
            "num_skipped": self._num_skipped,
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Load what `state` returned."""
        own = self._scaler.state_dict()
        own |= {"scale": state["loss_scale"], "_growth_tracker": int(state["growth_tracker"])}
        self._scaler.load_state_dict(own)
        self._num_skipped = int(state["num_skipped"])
