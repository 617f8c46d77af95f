"""What the recipe says of itself beside its values."""

from __future__ import annotations

from typing import Any

import pytest

from resnet_dist.recipe.schema import BatchNormRecipe


@pytest.mark.parametrize("span", [8, "global", "worker"])
def test_a_span_that_is_given_is_fixed(span: Any) -> None:
    assert BatchNormRecipe(span=span).fixed_span == span


def test_an_auto_that_stays_exchanges_nothing() -> None:
    """`settled` leaves `auto` only without batch norm; resnet_dist/recipe/rules/test_model.py shows that."""
    assert BatchNormRecipe().fixed_span == "worker"
