"""`launcher prepare pack`: what it writes, how it goes on after a stop, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import jpeg, samples, write_images, write_parquet, write_tar

from launcher import cli
from launcher.prepare import pack_shards, packing
from launcher.prepare.packing import Options, pack
from launcher.prepare.progress import Progress
from resnet_dist.data.sources.by_name import index_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.progress_line import progress_line
from resnet_dist.recipe.schema import DataRecipe

SMALL = Options(shard_mb=1, threads=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of `shard_mb` 1 have four images: a MB has 14 kB."""
    write = pack_shards.write_shards
    monkeypatch.setattr(
        packing, "write_shards", lambda *args, shard_bytes, **keys: write(*args, shard_bytes=14_000, **keys)
    )


def data(root: Path, source: str = "imagefolder", **keys: object) -> DataRecipe:
    return DataRecipe(root=str(root), source=source, **keys)  # type: ignore[arg-type]


def hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_shards_are_plain_tar_files_for_any_reader(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    assert cli.main(["prepare", "pack", str(images), str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train: 12 images in 1 shard",
        "val: 2 images in 1 shard",
        f"{output}: is complete and verified. Train with data.source=packed data.root={output}",
    ]
    names = ["card.json", "classes.txt", "index/train.safetensors", "index/val.safetensors"]
    assert sorted(hashes(output)) == sorted([*names, "train-000000.tar", "val-000000.tar"])
    with tarfile.open(output / "train-000000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:3]] == ["00000000.cls", "00000000.jpg", "00000001.cls"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
        content = archive.extractfile("00000003.jpg")
        assert content is not None
        assert content.read() == jpeg(6)
    assert (output / "classes.txt").read_text() == "ant\nbee\n"


@pytest.mark.usefixtures("tiny")
def test_the_bytes_depend_on_the_samples_alone(images: Path, tmp_path: Path) -> None:
    found = []
    for name, threads in (("one", 1), ("four", 4)):
        list(pack(data(images), tmp_path / name, Options(shard_mb=1, threads=threads)))
        found.append(hashes(tmp_path / name))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.startswith("train-")]) == 3


@pytest.mark.usefixtures("tiny")
def test_images_that_are_written_in_random_order_keep_their_numbers_names_and_bytes(
    images: Path, tmp_path: Path
) -> None:
    for name, shuffle in (("in-turn", False), ("shuffled", True)):
        list(pack(data(images), tmp_path / name, Options(shard_mb=1, shuffle=shuffle)))
    one, other = (index_of(data(tmp_path / name, "packed"), "train") for name in ("in-turn", "shuffled"))
    assert (one.fingerprint(), one.contents()) == (other.fingerprint(), other.contents())
    assert one.shard_numbers.tolist() == sorted(one.shard_numbers.tolist()) == sorted(other.shard_numbers.tolist())
    assert other.shard_numbers.tolist() != one.shard_numbers.tolist()
    files = [files_of(index) for index in (one, other)]
    assert [files[0].read(row) for row in range(12)] == [files[1].read(row) for row in range(12)]
    val = [hashes(tmp_path / name)["val-000000.tar"] for name in ("in-turn", "shuffled")]
    assert val[0] == val[1]
    with pytest.raises(DataError, match="holds a packing of other images or with other options"):
        list(pack(data(images), tmp_path / "shuffled", Options(shard_mb=1)))


class Stopped(BaseException):
    """As KeyboardInterrupt."""


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("after", [0, 5, 11])
def test_an_interrupted_packing_goes_on_after_its_finished_shards(
    after: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "packed"
    list(pack(data(images), whole, SMALL))
    sample = packing._sample

    def stops(index, files, row, options):  # type: ignore[no-untyped-def]
        if row == after:
            raise Stopped
        return sample(index, files, row, options)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "_sample", stops)
        with pytest.raises(Stopped):
            list(pack(data(images), output, SMALL))
    assert not (output / "card.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in output.glob("*.tar")}
    assert len(finished) == after // 4
    (output / ".train-000002.tar").write_bytes(b"half of a shard, left by a killed process")
    list(pack(data(images), output, SMALL))
    assert hashes(output) == hashes(whole)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


def test_a_complete_packing_is_kept(images: Path, tmp_path: Path) -> None:
    list(pack(data(images), tmp_path / "packed", SMALL))
    before = hashes(tmp_path / "packed")
    (line,) = pack(data(images), tmp_path / "packed", SMALL)
    assert "is complete" in line
    assert hashes(tmp_path / "packed") == before
    with pytest.raises(DataError, match="holds a packing of other images or with other options"):
        list(pack(data(images), tmp_path / "packed", Options(shorter_side=8, quality=90)))


def test_other_images_do_not_continue_an_unfinished_packing(images: Path, tmp_path: Path) -> None:
    packing._begin(_made(tmp_path / "packed" / packing._WORK).parent, "of other images")
    (tmp_path / "packed" / "train-000000.tar").touch()
    with pytest.raises(DataError, match="holds an unfinished packing of other images or with other options"):
        list(pack(data(images), tmp_path / "packed", SMALL))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_folder_with_something_else_is_left_alone(images: Path, tmp_path: Path) -> None:
    (_made(tmp_path / "mine") / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"is not empty and holds no packed shards: thesis\.tex"):
        list(pack(data(images), tmp_path / "mine", SMALL))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only")])
def test_a_disk_that_cannot_be_written_ends_it_and_leaves_nothing_half(
    number: int,
    text: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = pack_shards._Shard._write
    output = tmp_path / "packed"

    def fails(self, content):  # type: ignore[no-untyped-def]
        if self._num_bytes > 5000:
            raise OSError(number, text)
        write(self, content)

    monkeypatch.setattr(pack_shards._Shard, "_write", fails)
    assert cli.main(["prepare", "pack", str(images), str(output)]) == 65
    assert f"{output}: cannot be written: {text}. Finished shards are kept" in capsys.readouterr().err
    assert not [file for file in hashes(output) if file.endswith(".tar")]


def test_too_little_space_is_said_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(DataError, match=r"the disk has 1000 B free, and the shards need \d+\.\d KiB more"):
        list(pack(data(images), tmp_path / "packed", SMALL))


def test_broken_images_are_refused_by_name_or_left_out_and_counted(images: Path, tmp_path: Path) -> None:
    (images / "train/ant/04.JPEG").write_bytes(jpeg(4)[:300])
    with pytest.raises(DataError, match=r"train/ant/04\.JPEG: is truncated"):
        list(pack(data(images), tmp_path / "packed", SMALL))
    lines = list(pack(data(images), tmp_path / "packed", Options(skip_broken=True)))
    assert lines[0] == "train: 11 images in 1 shard, 1 left out"
    index = index_of(data(tmp_path / "packed", "packed"), "train")
    assert len(index) == 11
    assert "train/ant/04.JPEG" not in list(index.paths)
    assert json.loads((tmp_path / "packed/card.json").read_text())["splits"]["train"]["left_out"] == 1


def test_larger_images_are_made_smaller_and_the_others_copied(images: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    stored = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stored, "JPEG", exif=turned)
    (images / "train/ant/large.jpg").write_bytes(stored.getvalue())
    Image.fromarray(pixels[:, :, 0]).save(images / "train/ant/large.png")
    output = tmp_path / "packed"
    assert cli.main(["prepare", "pack", str(images), str(output), "--shorter-side", "30", "--quality", "80"]) == 0
    source, index = index_of(data(images), "train"), index_of(data(output, "packed"), "train")
    assert list(index.paths) == list(source.paths)
    sizes = {
        name: (height, width) for name, height, width in zip(index.paths, index.heights, index.widths, strict=True)
    }
    assert (sizes["train/ant/large.jpg"], sizes["train/ant/large.png"]) == ((45, 30), (45, 30))
    assert index.orientations[list(index.paths).index("train/ant/large.jpg")] == 6
    with tarfile.open(output / "train-000000.tar") as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert contents["00000000.jpg"] == jpeg(0)  # 20 x 30
    with Image.open(io.BytesIO(contents["00000007.jpg"])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (30, 45))
    card = json.loads((output / "card.json").read_text())
    assert (card["resized"]["shorter_side"], card["resized"]["quality"]) == (30, 80)
    assert card["splits"]["train"]["made_smaller"] == 2


def test_tar_and_parquet_shards_are_packed_with_their_names_and_classes(tmp_path: Path) -> None:
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        write_tar(tmp_path / "tars" / f"{split}-0.tar", samples(numbers, 2))
        contents, labels = [jpeg(number) for number in numbers], [number % 2 for number in numbers]
        write_parquet(tmp_path / "rows" / f"{split}-0.parquet", contents, labels, names=("ant", "bee"))
    for folder, source in (("tars", "webdataset"), ("rows", "parquet")):
        output = tmp_path / f"{folder}-packed"
        assert cli.main(["prepare", "pack", str(tmp_path / folder), str(output), "--source", source]) == 0
        for split in ("train", "val"):
            index, of_source = (
                index_of(one, split) for one in (data(output, "packed"), data(tmp_path / folder, source))
            )  # type: ignore[arg-type]
            assert index.fingerprint() == of_source.fingerprint()
            assert index.classes == of_source.classes


def test_parquet_is_not_read_in_random_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        write_parquet(tmp_path / "rows" / f"{split}-0.parquet", [jpeg(0)], [0])
    monkeypatch.setattr("resnet_dist.data.sources.parquet.CACHE_BYTES", 1)
    with pytest.raises(DataError, match="is parquet, which cannot be read in random order"):
        list(pack(data(tmp_path / "rows", "parquet"), tmp_path / "packed", Options(shuffle=True)))
    list(pack(data(tmp_path / "rows", "parquet"), tmp_path / "packed", SMALL))


def test_verification_of_a_folder_without_shards_says_so(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "pack", "--verify", str(images)]) == 65
    assert "card.json: does not exist, and no shards: pack a data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["in"],
        ["in", "out", "--quality", "90"],
        ["in", "out", "--shard-mb", "0"],
        ["in", "out", "--shorter-side", "4"],
        ["in", "out", "--source", "packed"],
        ["in", "s3://bucket/out"],
        ["in", "out", "--verify"],
        ["in", "--verify", "--skip-broken"],
        ["run.yaml", "out", "--source", "parquet"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "pack", *arguments]) == 64
    assert capsys.readouterr().err.startswith("error: ")


def test_a_source_that_is_not_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="synthetic cannot be packed"):
        list(pack(DataRecipe(source="synthetic"), tmp_path / "packed", SMALL))


def test_progress_has_a_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress_line("packing", "images", 50, 100, 0, 1.0) == "packing: 50 of 100 images"
    assert progress_line("packing", "images", 50, 100, 25, 5.0) == "packing: 50 of 100 images, 5 images/s, 0:10 left"
    monkeypatch.setattr("launcher.prepare.progress._FILE_S", 0.0)
    progress = Progress("packing", 100, "images")
    progress.update(10)
    progress.end()
    assert capsys.readouterr().err.splitlines() == ["packing: 10 of 100 images"]


@pytest.mark.usefixtures("tiny")
def test_the_rate_does_not_count_what_an_earlier_command_has_packed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample, told = packing._sample, list[tuple[object, ...]]()

    def stops(index, files, row, options):  # type: ignore[no-untyped-def]
        if row == 9:
            raise KeyboardInterrupt
        return sample(index, files, row, options)

    arguments = ["prepare", "pack", str(images), str(tmp_path / "packed"), "--threads", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_sample", stops)
        assert cli.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on\n"
    monkeypatch.setattr("launcher.prepare.progress._FILE_S", 0.0)
    monkeypatch.setattr("launcher.prepare.progress.progress_line", lambda *given: f"{told.append(given)}")  # type: ignore[func-returns-value]
    assert cli.main(arguments) == 0
    assert [given[2:5] for given in told if given[0] == "packing train"] == [(12, 12, 4)]  # of three shards, the last
