from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from resnet_dist.data.index import Index
from resnet_dist.data.sources import index_of
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


def test_imagefolder_is_the_default_source(image_folder: Path, train_index: Index, val_index: Index) -> None:
    recipe = DataRecipe(root=str(image_folder))
    assert index_of(recipe, "train").fingerprint() == train_index.fingerprint()
    assert index_of(recipe, "val").fingerprint() == val_index.fingerprint()


def test_a_users_function_is_called_with_root_and_split(
    user_module: types.ModuleType, train_index: Index, val_index: Index
) -> None:
    calls = []

    def source(root: str, split: str) -> Index:
        calls.append((root, split))
        return train_index if split == "train" else val_index

    user_module.source = source  # type: ignore[attr-defined]
    recipe = DataRecipe(root="/anywhere", source="my_data:source")
    assert index_of(recipe, "train") is train_index
    assert index_of(recipe, "val") is val_index
    assert calls == [("/anywhere", "train"), ("/anywhere", "val")]


def test_number_of_training_samples_is_verified(image_folder: Path) -> None:
    assert len(index_of(DataRecipe(root=str(image_folder), num_samples=12), "train")) == 12
    wrong = DataRecipe(root=str(image_folder), num_samples=13)
    assert len(index_of(wrong, "val")) == 6
    with pytest.raises(RecipeError, match=r"data\.num_samples: is 13, but .* has 12 images"):
        index_of(wrong, "train")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("imagefoldr", "'imagefoldr' does not name a function"),
        ("no_such_module_here:f", "there is no module no_such_module_here"),
        ("my_data:missing", "module my_data has no missing"),
        ("my_data:wrong", "my_data:wrong returned list, not an Index"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, problem: str, user_module: types.ModuleType) -> None:
    user_module.wrong = lambda root, split: []  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=problem) as caught:
        index_of(DataRecipe(root="/data", source=source), "train")
    assert caught.value.key == "data.source"
    assert "package.module:function" in caught.value.allowed
