from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_dist.data import Index
from resnet_dist.errors import DataError
from resnet_dist.inference.images import index_at, index_of_files, other_data, with_labels_of
from resnet_dist.recipe.schema import DataRecipe


def index(*classes: str, labels: tuple[int, ...] | None = None) -> Index:
    """An index with an image of each class, or with the labels given."""
    labels = tuple(range(len(classes))) if labels is None else labels
    names = [f"{number}.jpg" for number in range(len(labels))]
    ones = np.ones(len(labels), np.int32)
    return Index("/data", classes, names, np.array(labels, np.int64), ones, ones)


def test_labels_are_those_of_the_model() -> None:
    found = with_labels_of(("cat", "dog", "elk"), index("elk", "cat", labels=(0, 1, 0)))
    assert found.index.labels.tolist() == [2, 0, 2]
    assert found.index.classes == ("cat", "dog", "elk")
    assert (found.missing, found.extra, found.num_left_out) == (("dog",), (), 0)


def test_images_of_unknown_classes_are_left_out() -> None:
    found = with_labels_of(("cat", "dog"), index("ant", "cat", "dog", labels=(0, 1, 2, 0)))
    assert found.index.paths[:] == ["1.jpg", "2.jpg"]
    assert (found.missing, found.extra, found.num_left_out) == ((), ("ant",), 2)


def test_a_class_that_is_known_and_has_no_image_does_not_count() -> None:
    with pytest.raises(DataError, match=r"has no class of the model\. It has ant"):
        with_labels_of(("cat",), index("ant", "cat", labels=(0,)))


def test_the_same_classes_stay_as_they_are_also_with_names_that_are_twice() -> None:
    same = with_labels_of(("crane", "crane"), index("crane", "crane"))
    assert same.index.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="several classes have the name crane"):
        with_labels_of(("crane", "crane", "dog"), index("dog", "crane"))


@pytest.mark.parametrize(
    ("name", "source"),
    [("card.json", "packed"), ("val-0.tar", "webdataset"), ("val.parquet", "parquet"), ("val", "imagefolder")],
)
def test_the_source_of_a_data_set_is_found_by_its_files(tmp_path: Path, name: str, source: str) -> None:
    (tmp_path / name).touch()
    recipe = DataRecipe(root="/x", source="packed", classes="/x/classes.txt", known_bad="/x/bad.txt")
    found = other_data(recipe, str(tmp_path))
    assert (found.source, found.root, found.classes, found.known_bad) == (source, str(tmp_path), None, None)


def test_the_source_of_a_user_and_of_an_address_is_kept(tmp_path: Path) -> None:
    for source, root in (("my.data:index", str(tmp_path)), ("webdataset", "s3://bucket/data")):
        assert other_data(DataRecipe(root="/x", source=source), root).source == source


def test_folders_of_classes_need_no_val_folder(tmp_path: Path) -> None:
    for name in ("dog/0.png", "cat/more/1.png", "dog/notes.txt", "2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    found = index_at(DataRecipe(root=str(tmp_path)), lambda done, total: None)
    assert found.classes == ("cat", "dog")
    assert list(zip(found.paths, found.labels.tolist(), strict=True)) == [("cat/more/1.png", 0), ("dog/0.png", 1)]
    assert (found.heights.tolist(), found.widths.tolist()) == ([7, 7], [9, 9])


def test_an_index_of_files_has_what_is_wrong_with_them(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    found = index_of_files([str(tmp_path / name) for name in ("text.png", "good.png", "missing.png")])
    assert sorted(found.problems) == [0, 2]
    assert found.widths[1] == 9
