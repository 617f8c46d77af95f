"""The target of a run: the value of an evaluation at which it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from resnet_dist.recipe.schema import StopAtRecipe
from resnet_dist.training.evaluate import Evaluation


@dataclass(frozen=True)
class Target:
    """A top-1 accuracy (reached from below) or a loss (reached from above) on the val split.

    >>> Target("loss", 0.5).is_reached({"loss": 0.25}), Target("top1", 0.759).is_reached({"top1": None})
    (True, False)
    """

    name: Literal["top1", "loss"]
    value: float

    @classmethod
    def of(cls, recipe: StopAtRecipe) -> Target | None:
        """The target of a recipe; None without one."""
        if recipe.top1 is not None:
            return cls("top1", recipe.top1)
        return None if recipe.loss is None else cls("loss", recipe.loss)

    def is_reached(self, metrics: Mapping[str, Any]) -> bool:
        """Whether these metrics of an evaluation reach the target. A value that is missing or NaN does not."""
        found = metrics.get(self.name)
        if found is None:
            return False
        return bool(found >= self.value if self.name == "top1" else found <= self.value)

    def detail(self, evaluation: Evaluation) -> dict[str, object]:
        """What an event says of an evaluation that reached or missed the target."""
        return {"metric": self.name, "target": self.value, "value": getattr(evaluation, self.name)}
