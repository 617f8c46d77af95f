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
    if recipe.stop_at.top1 is not None and recipe.stop_at.loss is not None:
        yield RecipeError("stop_at.loss", "found together with stop_at.top1", "one of the two", ("stop_at.top1",))
