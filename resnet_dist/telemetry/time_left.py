"""How long a training loop still takes, from what its steps, evaluations and saves have taken so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.resolutions import Resolutions

NUM_SLOW = 3  # first steps of an attempt that do not count: kernels are chosen, memory allocated, caches filled
# After how many steps a step counts half: long enough for an average, short enough to follow a machine that changes.
HALF_LIFE, LEAST_HALF_LIFE = 0.1, 20  # as a part of the run, and in steps
NUM_LAST = 5  # evaluations and saves of which the mean is taken


class TimeLeft:
    """The time until the end of the loop:

        steps left × the time of a step at their resolution + evaluations left × that of one + saves left × that of one

    A resolution at which no step has been measured is taken to cost in proportion to its pixels. `evaluation_steps`:
    what an evaluation costs before the first one was measured, in steps at the first resolution.

    >>> from fractions import Fraction
    >>> left = TimeLeft(100, evaluate=Every(Fraction(20), 1), checkpoint=Every(Fraction(50), 1))
    >>> for step in range(1, 41):
    ...     left.add_step(step, 0.5)
    ...     if step % 20 == 0:
    ...         left.add_evaluation(4.0)
    >>> left.seconds()    # 60 steps and 3 evaluations
    42.0
    """

    def __init__(
        self,
        total_steps: int,
        *,
        evaluate: Every,
        checkpoint: Every,
        first_step: int = 0,
        resolutions: Resolutions | None = None,
        evaluation_steps: float = 0.0,
        evaluates_first: bool = False,
    ) -> None:
        self._total, self._first, self._step = total_steps, first_step, first_step
        self._evaluations_left = _num_events(evaluate, first_step, total_steps) + evaluates_first
        self._saves_left = _num_events(checkpoint, first_step, total_steps)
        self._resolutions = Resolutions((0,), (1,)) if resolutions is None else resolutions
        self._evaluation_steps = evaluation_steps
        self._fading = 0.5 ** (1 / max(HALF_LIFE * total_steps, LEAST_HALF_LIFE))
        self._sums: dict[int, tuple[float, float]] = {}  # pixels -> sums of the weights and of the weighted times
        self._newest: tuple[int, float] | None = None  # pixels and time of the last step
        self._evaluations: deque[float] = deque(maxlen=NUM_LAST)
        self._saves: deque[float] = deque(maxlen=NUM_LAST)

    def add_step(self, step: int, seconds: float) -> None:
        """`step` was completed in this time, without evaluations and saves."""
        pixels = self._resolutions.at(step - 1)
        changed = self._newest is not None and self._newest[0] != pixels
        self._step, self._newest = step, (pixels, seconds)
        if step - self._first <= NUM_SLOW or changed:
            return
        weight, total = self._sums.get(pixels, (0.0, 0.0))
        self._sums[pixels] = weight * self._fading + 1.0, total * self._fading + seconds

    def add_evaluation(self, seconds: float) -> None:
        """The loop has waited so long for an evaluation."""
        self._evaluations.append(seconds)
        self._evaluations_left -= 1

    def add_save(self, seconds: float) -> None:
        """The loop has waited so long for a save."""
        self._saves.append(seconds)
        self._saves_left -= 1

    def seconds(self) -> float | None:
        """Seconds until the end of the loop; None before the first step."""
        if self._newest is None:
            return None
        sizes = self._resolutions
        ends = [*sizes.first_steps[1:], self._total]
        left = 0.0
        for begin, end, pixels in zip(sizes.first_steps, ends, sizes.pixels, strict=True):
            num_steps = min(end, self._total) - max(begin, self._step)
            left += max(num_steps, 0) * self._step_s(pixels)
        evaluation_s = self._evaluation_steps * self._step_s(sizes.pixels[0])
        left += max(self._evaluations_left, 0) * _mean(self._evaluations, evaluation_s)
        return left + max(self._saves_left, 0) * _mean(self._saves, 0.0)

    def _step_s(self, pixels: int) -> float:
        """The time of a step at this resolution, by those at the nearest one."""
        measured = {known: total / weight for known, (weight, total) in self._sums.items()}
        if not measured and self._newest is not None:
            measured = dict([self._newest])
        nearest = min(measured, key=lambda known: abs(known - pixels))
        return measured[nearest] * (pixels / nearest) ** 2


def _num_events(every: Every, first_step: int, total_steps: int) -> int:
    """The number of events after `first_step`: one is after the last step in any case."""
    if first_step >= total_steps:
        return 0
    within = every.times_within(total_steps) - every.times_within(first_step)
    return within + (not every.fires_after(total_steps))


def _mean(seconds: Collection[float], otherwise: float) -> float:
    return sum(seconds) / len(seconds) if seconds else otherwise
