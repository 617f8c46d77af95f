"""What the recipe says of itself beside its values."""

from __future__ import annotations

import pytest

from resnet_dist.recipe.schema import BatchNormRecipe


def test_an_auto_that_nobody_settled_is_our_mistake() -> None:
    assert BatchNormRecipe(span=8).fixed_span == 8
    with pytest.raises(AssertionError):
        _ = BatchNormRecipe().fixed_span
