"""`data.classes`: which samples are used, and under which labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data.index.shared import index_file, shared_indices
from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.by_name import num_in_use
from resnet_dist.data.sources.classes import in_use, select
from resnet_dist.data.sources.subset import trained_on
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def chosen(tmp_path: Path, image_folder: Path):  # type: ignore[no-untyped-def]
    """A function that makes the recipe for a file of these lines."""

    def make(text: str, **keys: object) -> DataRecipe:
        (tmp_path / "classes").write_text(text)
        return DataRecipe(root=str(image_folder), classes=str(tmp_path / "classes"), **keys)  # type: ignore[arg-type]

    return make


def test_labels_are_in_the_order_of_the_lines(chosen, train_index: Index, val_index: Index) -> None:  # type: ignore[no-untyped-def]
    data = chosen("# two of three\n\ncat\nant  # an insect\n")
    train, val = select(data, train_index, val_index)
    assert train.classes == val.classes == ("cat", "ant")
    assert list(train.paths) == [path for path in train_index.paths if "bee" not in path]
    assert train.labels.tolist() == [1] * 4 + [0] * 4
    assert val.labels.tolist() == [1] * 2 + [0] * 2
    assert num_in_use(data, train_index) == len(train) == 8


def test_lines_rename_and_join_classes(chosen, train_index: Index, val_index: Index) -> None:  # type: ignore[no-untyped-def]
    train, _ = select(chosen("bee insect\ncat\tdomestic cat\nant insect\n"), train_index, val_index)
    assert train.classes == ("insect", "domestic cat")
    assert train.labels.tolist() == [0] * 8 + [1] * 4
    assert train.paths == train_index.paths


def test_names_with_spaces_and_signs_are_classes_too(chosen) -> None:  # type: ignore[no-untyped-def]
    names = ("tench, Tinca tinca", "C#", "white shark")
    classes, labels = in_use(chosen("white shark\ntench, Tinca tinca\tfish\nC#\n"), names)
    assert (classes, labels.tolist()) == (("white shark", "fish", "C#"), [1, 2, 0])


def test_without_the_key_all_classes_are_used(image_folder: Path, train_index: Index, val_index: Index) -> None:
    data = DataRecipe(root=str(image_folder))
    assert select(data, train_index, val_index) == (train_index, val_index)
    assert num_in_use(data, train_index) == 12


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ant\nbees\n", r"bees is no class of the data\. Allowed: ant, bee, cat\. Did you mean bee\?"),
        ("x\ny\nz", r"x \(and 2 others\) is no class"),
        ("ant\nant insect\n", "names ant twice"),
        ("# nothing\n\n", "names no class"),
        ("ant a b\n", "ant a b is no class"),
    ],
    ids=["near", "several", "twice", "empty", "words"],
)
def test_wrong_lines_are_refused(chosen, train_index: Index, val_index: Index, text: str, problem: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=problem) as caught:
        select(chosen(text), train_index, val_index)
    assert caught.value.key == "data.classes"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, train_index: Index, val_index: Index) -> None:
    for content, problem in ((None, "No such file"), (b"\xff\xfe\xfa", "is not a text in UTF-8")):
        if content is not None:
            (tmp_path / "classes").write_bytes(content)
        with pytest.raises(RecipeError, match=problem):
            select(DataRecipe(classes=str(tmp_path / "classes")), train_index, val_index)


def test_a_name_that_two_classes_have_cannot_be_chosen(chosen) -> None:  # type: ignore[no-untyped-def]
    """ImageNet has two classes `crane` in some lists of names."""
    assert in_use(chosen("tench"), ("tench", "crane", "crane"))[0] == ("tench",)
    with pytest.raises(RecipeError, match="crane is the name of 2 classes of the data"):
        in_use(chosen("crane"), ("tench", "crane", "crane"))


def test_a_split_without_images_of_these_classes_is_refused(chosen, train_index: Index, val_index: Index) -> None:  # type: ignore[no-untyped-def]
    without = val_index.take(np.flatnonzero(val_index.labels != 1))
    with pytest.raises(DataError, match=r"has no images of the classes of data\.classes \(bee\) in one of its splits"):
        select(chosen("bee"), train_index, without)


def test_val_has_the_classes_of_train_where_they_are_numbers(train_index: Index, val_index: Index) -> None:
    train = dataclasses.replace(train_index, classes=("0", "1", "2"))
    few = val_index.take(np.flatnonzero(val_index.labels < 2))
    val = dataclasses.replace(few, classes=("0", "1"))
    assert select(DataRecipe(), train, val)[1].classes == ("0", "1", "2")
    named = dataclasses.replace(few, classes=("ant", "bee"))
    assert select(DataRecipe(), train_index, named)[1].classes == ("ant", "bee")  # a difference that is refused later


def test_a_run_has_the_chosen_classes_and_its_index_all(chosen, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "index"
    data = chosen("cat\nant\n", num_samples=8, subset=4)
    train, val = shared_indices(data, 2, 0, 1, folder)
    assert (len(train), len(val), train.classes) == (8, 4, ("cat", "ant"))
    assert np.bincount(trained_on(data, 0, train, 0).labels).tolist() == [2, 2]  # the subset is stratified over these
    assert len(Index.load(index_file(folder, "train"))) == 12
    assert len(shared_indices(dataclasses.replace(data, classes=None, num_samples=12), 3, 0, 1, folder)[0]) == 12
    with pytest.raises(RecipeError, match=r"data\.num_samples: is 12, but .* has 8 images"):
        shared_indices(dataclasses.replace(data, num_samples=12), 2, 0, 1, folder)
