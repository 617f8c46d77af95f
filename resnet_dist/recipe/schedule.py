"""The learning rate as a function of the step, without state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import load_function
from resnet_dist.recipe.scaling import peak_learning_rate
from resnet_dist.recipe.schema import Recipe, ScheduleRecipe

# Progress in [0, 1] after warm-up -> factor in [0, 1], where 0 is the end LR and 1 the peak LR.
Decay = Callable[[float], float]


class Corner(NamedTuple):
    """A characteristic point of a schedule."""

    step: int
    name: str
    learning_rate: float


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup_steps` (W), then decay to step `total_steps` (T). Step k has k completed steps.

        k <  W      start + (peak - start) (k + 1) / W
        k >= S      end + (peak - end) decay(p)              p = (k - S) / (T - S)
                    end (peak / end)^decay(p)                `geometric`: exponential for a decay that is a line
                    peak gamma^(milestones <= k)             with milestones, counted from step 0

    The decay starts at step S = `decay_start`, with the end of warm-up unless it is given; between them the LR is the
    peak. The last step of warm-up has the peak LR. Step T, one after the last, would have the end LR.
    """

    peak_lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_start_lr: float = 0.0
    end_lr: float = 0.0
    decay: Decay | None = None  # None: step decay, which is constant without milestones
    milestones: tuple[int, ...] = ()  # steps
    gamma: float = 1.0
    geometric: bool = False
    decay_start: int | None = None  # step; None: the end of warm-up

    def __call__(self, step: int) -> float:
        """The learning rate of step number `step` (0 is the first). Constant after the end."""
        if step < self.warmup_steps:
            return self.warmup_start_lr + (self.peak_lr - self.warmup_start_lr) * (step + 1) / self.warmup_steps
        if self.decay is None:
            return self.peak_lr * self.gamma ** sum(milestone <= step for milestone in self.milestones)
        factor = self.decay(self._progress(step))
        if self.geometric:
            return self.end_lr * math.pow(self.peak_lr / self.end_lr, factor)
        return self.end_lr + (self.peak_lr - self.end_lr) * factor

    def _progress(self, step: int) -> float:
        start = self.warmup_steps if self.decay_start is None else self.decay_start
        if step >= self.total_steps:
            return 1.0
        return max(step - start, 0) / (self.total_steps - start)

    def corners(self) -> list[Corner]:
        """First and last step, end of warm-up, half way, start of the decay and milestones, ordered by step."""
        last = self.total_steps - 1
        points = [(0, "first step"), (self.total_steps // 2, "half way"), (last, "last step")]
        if self.warmup_steps:
            points.append((self.warmup_steps - 1, "end of warm-up"))
        if self.decay_start is not None:
            points.append((self.decay_start, "start of decay"))
        points += [(step, f"milestone {number}") for number, step in enumerate(self.milestones, start=1)]
        return [
            Corner(step, name, self(step)) for step, name in sorted(points, key=lambda point: point[0]) if step <= last
        ]


def build_schedule(
    recipe: ScheduleRecipe,
    *,
    batch_size: int,
    num_samples: int,
    total_steps: int,
    run: Recipe | None = None,
) -> Schedule:
    """The schedule of a run of `total_steps`; `batch_size` is the global batch, `num_samples` the data set's size.

    `scaling: table` needs the `run`, whose setting selects the published runs.

    Defaults: power 2 (MLPerf's LARS reference), gamma 0.1 (Goyal et al. 2017, section 5.1), a trapezoid's decay over
    the last fifth (Hägele et al. 2024, arXiv 2405.18392). Raises RecipeError for a user's function that cannot be
    loaded.
    """
    size = {"batch_size": batch_size, "num_samples": num_samples}
    stairs = recipe.decay == "step"
    milestones = recipe.milestones if stairs else ()
    gamma = 0.1 if recipe.gamma is None else recipe.gamma
    return Schedule(
        peak_lr=peak_learning_rate(recipe, batch_size, run),
        total_steps=total_steps,
        warmup_steps=recipe.warmup.steps(**size),
        warmup_start_lr=recipe.warmup_start_lr,
        end_lr=recipe.end_lr,
        decay=None if stairs or recipe.decay == "constant" else _decay(recipe),
        milestones=tuple(sorted(m.steps(**size) for m in milestones)),
        gamma=gamma if stairs else 1.0,
        geometric=recipe.decay == "exponential",
        decay_start=total_steps - _decay_steps(recipe, total_steps, **size) if recipe.decay == "trapezoid" else None,
    )


def _decay_steps(recipe: ScheduleRecipe, total_steps: int, *, batch_size: int, num_samples: int) -> int:
    """The steps of a trapezoid's decay: `decay_length`, or a fifth of the run; at most those after warm-up."""
    size = {"batch_size": batch_size, "num_samples": num_samples}
    asked = math.ceil(total_steps / 5) if recipe.decay_length is None else recipe.decay_length.steps(**size)
    return min(asked, total_steps - recipe.warmup.steps(**size))


def _decay(recipe: ScheduleRecipe) -> Decay:
    if recipe.decay == "cosine":
        return cosine
    if recipe.decay in ("exponential", "trapezoid"):
        return polynomial(1.0)
    if recipe.decay == "polynomial":
        return polynomial(2.0 if recipe.power is None else recipe.power)
    return _checked(recipe.decay)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5).

    >>> cosine(0.0), cosine(0.5), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return (1.0 + math.cos(math.pi * progress)) / 2.0


def polynomial(power: float) -> Decay:
    """(1 - progress)^power. 1: linear; 2: that of the LARS references.

    >>> polynomial(2.0)(0.5)
    0.25
    """
    return lambda progress: (1.0 - progress) ** power


def _checked(reference: str) -> Decay:
    """The user's decay, with a check of its results: a single step with a wrong LR can ruin a run."""
    function = load_function("schedule.decay", reference)

    def decay(progress: float) -> float:
        factor = function(progress)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0.0 <= factor <= 1.0:
            problem = f"{reference!r} returned {factor!r} for a progress of {progress}"
            raise RecipeError("schedule.decay", problem, "a number in [0, 1]: 1 is the peak LR, 0 the end LR")
        return float(factor)

    return decay
