"""Rules for `evaluate` and `stop_at`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import DURATION_ABOVE_0, LARGEST_IMAGE, REFERENCE_FORM, Uses, Values, whole
from resnet_dist.recipe.schema import Recipe

VALUES: Values = (
    ("evaluate.every", *DURATION_ABOVE_0),
    ("evaluate.batch_size", *whole(1)),
    ("evaluate.resolution", *whole(8, LARGEST_IMAGE)),
    ("evaluate.precise_batch_norm", *whole(0)),
    ("stop_at.top1", lambda value: 0 < value <= 1, "above 0 and at most 1, for example 75.9 %"),
    ("stop_at.loss", lambda value: 0 <= value < math.inf, "a number from 0 up"),
)

USES: Uses = (
    (
        "evaluate.precise_batch_norm",
        lambda r: r.model.normalisation == "batch",
        "model.normalisation",
        "batch",
    ),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in what is evaluated, and in the target."""
    names: set[str] = set()
    for reference in recipe.evaluate.metrics:
        name = reference.partition(":")[2]
        if not is_reference(reference):
            yield RecipeError("evaluate.metrics", f'found "{reference}"', REFERENCE_FORM)
        elif name in names:
            found = f"found two functions {name}, which is the name of a metric in the records"
            yield RecipeError("evaluate.metrics", found, "functions of different names")
        names.add(name)
    if recipe.evaluate.beside:
        yield from _beside(recipe)
    if recipe.stop_at.top1 is not None and recipe.stop_at.loss is not None:
        yield RecipeError("stop_at.loss", "found together with stop_at.top1", "one of the two", ("stop_at.top1",))


def _beside(recipe: Recipe) -> Iterator[RecipeError]:
    """Training does not wait for an evaluation beside it, which gets a checkpoint and nothing else."""
    evaluate, stop_at = recipe.evaluate, recipe.stop_at
    key, false = "evaluate.beside", "false, with which the workers evaluate in turn with training"
    for name in ("top1", "loss"):
        if getattr(stop_at, name) is not None:
            found = f"found true together with stop_at.{name}, which ends the run at the step of an evaluation"
            yield RecipeError(key, found, false, (f"stop_at.{name}",))
    if evaluate.train:
        found = "found true together with evaluate.train: beside training, only the val split is evaluated"
        yield RecipeError(key, found, f"{false}; or evaluate.train false", ("evaluate.train",))
    if evaluate.precise_batch_norm:
        found = "found true together with evaluate.precise_batch_norm, whose statistics are not in a checkpoint"
        yield RecipeError(key, found, f"{false}; or precise_batch_norm 0", ("evaluate.precise_batch_norm",))
