"""What the recipe says of itself beside its values."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from resnet_dist.recipe import MEANT_BY_ABSENCE, BatchNormRecipe, Recipe


def test_what_absence_meant_is_told_of_keys_that_exist() -> None:
    hints = typing.get_type_hints(Recipe)
    for key in MEANT_BY_ABSENCE:
        section, _, name = key.partition(".")
        kind = hints[section]
        assert not name or name in {part.name for part in dataclasses.fields(kind)}, key


def test_an_auto_that_nobody_settled_is_our_mistake() -> None:
    assert BatchNormRecipe(span=8).fixed_span == 8
    with pytest.raises(AssertionError):
        _ = BatchNormRecipe().fixed_span
