"""Rules for `batch` and `batch_norm`, and the batch-norm span that `auto` selects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.batch_layout import (
    LARGEST_SPAN,
    LEAST_SPAN,
    WANTED_SPAN,
    BatchLayout,
    automatic_span,
    unit_of,
)
from resnet_dist.recipe.requirements import ABOVE_0, LARGEST_COUNT, Uses, Values, nearest_divisors, whole
from resnet_dist.recipe.schema import Recipe

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

PARTS = ("batch.size", "batch.num_micro_batches")  # the keys that give the size of a micro-batch
MIXING = ("regularization.mixup", "regularization.cutmix")  # the keys that mix pairs of samples

VALUES: Values = (
    ("batch.size", *whole(1)),
    ("batch.num_micro_batches", lambda num: num == "auto" or num >= 1, "a whole number from 1 up"),
    ("batch_norm.momentum", lambda value: 0 < value <= 1, "above 0 and at most 1, or leave it out"),
    ("batch_norm.epsilon", ABOVE_0[0], "a number above 0, or leave it out"),
)

USES: Uses = tuple(
    (f"batch_norm.{key}", lambda r: r.model.normalisation == "batch", "model.normalisation", "batch")
    for key in ("span", "momentum", "epsilon")
)


def settled(recipe: AnyRecipe) -> AnyRecipe:
    """`recipe` with a batch-norm span `auto` replaced by a number of samples or `global`.

    Call it before `num_micro_batches: auto` is resolved, since the span must not change with that number. An `auto` for
    which there is no span stays; `problems` explains why. It also stays in a network without batch norm.
    """
    micro_batch = _micro_batch(recipe)
    if recipe.batch_norm.span != "auto" or micro_batch is None or recipe.model.normalisation == "none":
        return recipe
    span = automatic_span(micro_batch)
    if span == "global" and recipe.batch.parts != 1:
        return recipe
    return dataclasses.replace(recipe, batch_norm=dataclasses.replace(recipe.batch_norm, span=span))


def shares_spans(recipe: Recipe, world_size: int) -> bool:
    """Whether batch norm has spans that lie on several workers; False for a batch that `problems` refuses."""
    span, micro_batch, unit = settled(recipe).batch_norm.span, _micro_batch(recipe), unit_of(recipe)
    if micro_batch is None or micro_batch % unit or micro_batch // unit < world_size:
        return False
    if recipe.model.normalisation == "none" or span in ("worker", "auto"):
        return False
    length = span if isinstance(span, int) else micro_batch
    return length > 0 and BatchLayout.of(recipe, world_size).spans_cross_workers(length)


def problems(recipe: Recipe, world_size: int) -> Iterator[RecipeError]:
    """Errors in how the batch is split."""
    yield from _batch(recipe, world_size)
    yield from _batch_norm(recipe)


def _batch(recipe: Recipe, world_size: int) -> Iterator[RecipeError]:
    size, parts = recipe.batch.size, recipe.batch.parts
    micro_batch = _micro_batch(recipe)
    unit = unit_of(recipe)
    if micro_batch is not None and micro_batch % unit:
        yield RecipeError(
            "batch.size",
            f"found {size} with num_micro_batches {parts}: mixup and CutMix mix pairs, and a micro-batch of"
            f" {micro_batch} samples is odd",
            "an even batch.size / num_micro_batches",
            (*PARTS[1:], *MIXING),
        )
    elif micro_batch is not None and world_size > micro_batch // unit:
        yield RecipeError(
            "workers",
            f"found {world_size}, more than the {micro_batch // unit} {'samples' if unit == 1 else 'pairs'} of a"
            f" micro-batch (batch.size {size} / num_micro_batches {parts}): some workers would have no samples",
            f"at most {micro_batch // unit}, or a larger batch",
            PARTS if unit == 1 else (*PARTS, *MIXING),
        )
    elif micro_batch is None and 1 <= size <= LARGEST_COUNT and parts >= 1:
        found = f"found {parts}, which does not divide batch.size {size}"
        yield RecipeError("batch.num_micro_batches", found, f"nearest: {nearest_divisors(size, parts)}", PARTS)


def _batch_norm(recipe: Recipe) -> Iterator[RecipeError]:
    span, micro_batch = settled(recipe).batch_norm.span, _micro_batch(recipe)
    if micro_batch is None or recipe.model.normalisation == "none":
        return  # reported by `_batch`, or in USES
    if span == "auto":
        yield RecipeError(
            "batch_norm.span",
            f"found auto, but no number from {LEAST_SPAN} to {LARGEST_SPAN} divides the {micro_batch} samples of a"
            " micro-batch, and a span of the whole batch needs num_micro_batches 1",
            f"nearest: {nearest_divisors(micro_batch, WANTED_SPAN)}; worker; or another number of micro-batches",
            PARTS,
        )
    if span == "global" and recipe.batch.parts != 1:
        yield RecipeError(
            "batch_norm.span",
            f"found global with batch.num_micro_batches {recipe.batch.parts}: statistics over the whole batch need all"
            " of its samples at once",
            f"num_micro_batches 1, or a span that divides {micro_batch}",
            PARTS,
        )
    if isinstance(span, int) and (span < 1 or micro_batch % span):
        yield RecipeError(
            "batch_norm.span",
            f"found {span}, which does not divide the {micro_batch} samples of a micro-batch",
            f"nearest: {nearest_divisors(micro_batch, span)}; global or worker",
            PARTS,
        )


def _micro_batch(recipe: Recipe) -> int | None:
    """Samples of one micro-batch over all workers; None if the batch cannot be split."""
    size, parts = recipe.batch.size, recipe.batch.parts
    return size // parts if 1 <= size <= LARGEST_COUNT and parts >= 1 and size % parts == 0 else None
