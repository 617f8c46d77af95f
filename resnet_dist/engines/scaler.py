"""Loss scaling for float16, whose gradients would underflow: torch's scaler, with a state to save and a count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Below it a scale makes gradients smaller instead of larger: what overflows then is no matter of scaling. DeepSpeed's
# `min_loss_scale` has the same default.
LEAST_SCALE = 1.0


class LossScaler:
    """torch.amp.GradScaler, which also counts the steps that it left out.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2; growth and backoff are torch's defaults.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._num_skipped = 0
        self._took_the_step = False

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, and note whether any of them is not finite."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> tuple[bool, dict[str, float]]:
        """One optimizer step, or none where gradients overflowed; then adapt the scale. Waits for the device.

        Returns whether the step was left out, and for its row of the metrics `loss_scale` (with which the step was
        computed) and `num_skipped` (steps left out so far, this one included).
        """
        row = {"loss_scale": self._scaler.get_scale()}
        self._took_the_step = False
        handle = optimizer.register_step_post_hook(self._on_step)
        try:
            self._scaler.step(optimizer)
        finally:
            handle.remove()
        self._scaler.update()
        skipped = not self._took_the_step  # the scale does not tell: it stays where it cannot fall any further
        self._num_skipped += skipped
        return skipped, {**row, "num_skipped": self._num_skipped}

    def _on_step(self, *_: Any) -> None:
        self._took_the_step = True

    def state(self) -> dict[str, float]:
        """loss_scale, growth_tracker (steps since the scale last changed), num_skipped (steps left out so far)."""
        state = self._scaler.state_dict()
        return {
            "loss_scale": state["scale"],
            "growth_tracker": state["_growth_tracker"],
            "num_skipped": self._num_skipped,
        }

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take up what `state` gave."""
        own = self._scaler.state_dict()
        own |= {"scale": state["loss_scale"], "_growth_tracker": int(state["growth_tracker"])}
        self._scaler.load_state_dict(own)
        self._num_skipped = int(state["num_skipped"])
