"""What is packed of a config, the lock of the output, and the verification of packed shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shard_files import jpeg, write_images

from launcher import cli
from launcher.prepare import packing
from launcher.prepare.locks import locked
from launcher.prepare.packing import Options, pack
from resnet_dist.data.sources.by_name import index_of
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import DataRecipe

SMALL = Options(shard_mb=1, threads=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def data(root: Path, source: str = "imagefolder", **keys: object) -> DataRecipe:
    return DataRecipe(root=str(root), source=source, **keys)  # type: ignore[arg-type]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("damaged", [False, True])
def test_packed_shards_at_an_address_are_verified_there(
    damaged: bool, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    list(pack(data(images), tmp_path / "packed", SMALL))
    address = f"memory://{tmp_path.name}/packed"
    store, path = fsspec.core.url_to_fs(address)
    store.put(str(tmp_path / "packed"), path, recursive=True)
    if damaged:
        content = store.cat_file(f"{path}/val-000000.tar")
        store.pipe_file(f"{path}/val-000000.tar", content[:1500] + b"x" + content[1501:])
    assert cli.main(["prepare", "pack", "--verify", address]) == (65 if damaged else 0)
    said = capsys.readouterr()
    if damaged:
        wrong = "1 of 2 shards are not what was packed: val-000000.tar: other bytes. Copy these there again"
        assert f"{address}: {wrong}" in said.err
    else:
        assert f"{address}: 2 shards of" in said.out


def test_verification_names_shards_with_other_bytes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    list(pack(data(images), output, SMALL))
    assert cli.main(["prepare", "pack", "--verify", str(output)]) == 0
    assert "2 shards of" in capsys.readouterr().out
    with (output / "val-000000.tar").open("r+b") as file:
        file.seek(1500)
        file.write(b"x")
    (output / "train-000000.tar").unlink()
    size = (output / "val-000000.tar").stat().st_size
    assert cli.main(["prepare", "pack", "--verify", str(output)]) == 65
    wrong = "train-000000.tar: cannot be read: No such file or directory, val-000000.tar: other bytes"
    assert f"2 of 2 shards are not what was packed: {wrong}" in capsys.readouterr().err
    os.truncate(output / "val-000000.tar", 2000)
    assert cli.main(["prepare", "pack", "--verify", str(output)]) == 65
    assert f"val-000000.tar: 2,000 bytes, and card.json says {size:,}. Delete" in capsys.readouterr().err


def test_known_bad_images_are_left_out_and_not_refused(images: Path, tmp_path: Path) -> None:
    (images / "train/ant/04.JPEG").write_bytes(jpeg(4)[:300])
    (tmp_path / "bad.txt").write_text("train/ant/04.JPEG\ntrain/bee/01.JPEG\n")
    source = DataRecipe(root=str(images), known_bad=str(tmp_path / "bad.txt"))
    lines = list(pack(source, tmp_path / "packed", SMALL))
    index = index_of(data(tmp_path / "packed", "packed"), "train")
    assert lines[0] == "train: 10 images in 1 shard, 2 left out"
    names = {str(file.relative_to(images)) for file in (images / "train").glob("*/*")}
    assert names - set(index.paths) == {"train/ant/04.JPEG", "train/bee/01.JPEG"}
    with pytest.raises(DataError, match="holds a packing of other images or with other options"):
        list(pack(data(images), tmp_path / "packed", Options(shard_mb=1, skip_broken=True)))


def test_a_subset_is_not_packed(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.subset: all images are packed, and the subset is chosen when a run"):
        list(pack(DataRecipe(root=str(images), subset=0.5), tmp_path / "packed", SMALL))


def test_an_image_that_changes_while_it_is_packed_is_indexed_again(images: Path, tmp_path: Path) -> None:
    before = packing._index(data(images), "train", _made(tmp_path / "packed" / packing._WORK).parent)
    (images / before.paths[0]).write_bytes(jpeg(99) + b"more")
    after = packing._index(data(images), "train", tmp_path / "packed")
    assert after.contents() != before.contents()


def test_two_processes_do_not_pack_into_one_folder(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    _made(output / packing._WORK)
    lock = output / packing._LOCK
    with locked(lock, output), pytest.raises(DataError, match="packed: another process is writing to this folder"):
        list(pack(data(images), output, SMALL))
    list(pack(data(images), output, SMALL))
    assert not lock.exists()


def test_a_config_says_what_is_packed(images: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bee insect\nant\n")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"schema: 1\nname: x\nstorage: {tmp_path}/runs\nduration: 1 epoch\nbatch: {{size: 2}}\n"
        f"schedule: {{base_lr: 0.1}}\nmodel: {{num_classes: 2}}\n"
        f"data: {{root: {images}, classes: {tmp_path}/classes.txt}}\n"
    )
    assert cli.main(["prepare", "pack", str(config), str(tmp_path / "packed")]) == 0
    index = index_of(data(tmp_path / "packed", "packed"), "train")
    assert (index.classes, index.labels.tolist()) == (("insect", "ant"), [1] * 6 + [0] * 6)
