from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.by_name import check_num_samples, check_root, index_of, listed
from resnet_dist.errors import DataError, RecipeError
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


def test_number_of_training_samples_is_verified(image_folder: Path, train_index: Index) -> None:
    check_num_samples(DataRecipe(root=str(image_folder), num_samples=12), train_index)
    with pytest.raises(RecipeError, match=r"data\.num_samples: is 13, but .* has 12 images"):
        check_num_samples(DataRecipe(root=str(image_folder), num_samples=13), train_index)


def test_a_listing_is_found_for_the_sources_with_files(image_folder: Path, train_index: Index) -> None:
    listing = listed(DataRecipe(root=str(image_folder)), "train")
    assert listing is not None
    assert list(listing.paths) == list(train_index.paths)
    assert listed(DataRecipe(source="synthetic"), "train") is None
    assert listed(DataRecipe(source="my_data:source"), "train") is None


@pytest.mark.parametrize(
    ("source", "suffix"), [("webdataset", ".tar"), ("parquet", ".parquet"), ("packed", "card.json")]
)
def test_a_root_without_the_files_of_its_source_is_refused_before_a_run(
    source: str, suffix: str, image_folder: Path
) -> None:
    check_root(DataRecipe(root=str(image_folder)))
    with pytest.raises(DataError, match=suffix):
        check_root(DataRecipe(root=str(image_folder), source=source))


@pytest.mark.parametrize("place", ["", "train"])
def test_files_of_another_source_below_an_address_are_recognised(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "0.tar").touch()
    with pytest.raises(DataError, match=r"\. For 0\.tar and other \*\.tar set data\.source=webdataset$"):
        check_root(DataRecipe(root=f"file://{tmp_path}"))


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
