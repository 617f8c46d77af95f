from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_images import OddImage, good_images, refused_images

from launcher.cli import main
from launcher.exit_codes import ExitCode
from resnet_dist.data.sources.known_bad import known_names
from resnet_dist.recipe.schema import DataRecipe

Images = Callable[[Path], Path]


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """The exit code and the lines of output."""
    capsys.readouterr()
    code = main(["prepare", "check", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def below(lines: list[str], begin: str) -> list[str]:
    """The names listed under the line that begins with `begin`."""
    [start] = [number for number, line in enumerate(lines) if line.startswith(begin)]
    following = lines[start + 1 :]
    num = next((number for number, line in enumerate(following) if not line.startswith("  ")), len(following))
    return [line.strip() for line in following[:num]]


def named(name: str) -> OddImage:
    [image] = [image for image in good_images() if image.name == name]
    return image


@pytest.fixture
def root(write_images: Images, tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_whole_images_pass(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(capsys, root)
    assert code == ExitCode.OK
    assert lines[:3] == ["train: 8 images in 2 classes", "val: 8 images in 2 classes", "broken: 0 images"]
    assert lines[-1].startswith("with the same bytes: 0 images in 0 groups")


def test_broken_images_are_named_with_their_problem_and_written_for_known_bad(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    expected = {}
    for image in (*refused_images("header"), *refused_images("decoder")):
        (root / "train" / "cat" / image.name).write_bytes(image.content)
        expected[f"train/cat/{image.name}"] = image.problem
    (root / "val" / "dog" / "link.jpg").symlink_to("gone.jpg")
    expected["val/dog/link.jpg"] = "a link to gone.jpg, which does not exist"
    bad_list = tmp_path / "bad.txt"
    code, lines = check(capsys, root, "--bad-list", bad_list, "--all", "--threads", 3)
    assert code == ExitCode.DATA
    assert known_names(DataRecipe(root=str(root), known_bad=str(bad_list))) == set(expected)
    found = dict(line.split(": ", 1) for line in below(lines, "broken: "))
    assert set(found) == set(expected)
    assert [name for name, problem in expected.items() if problem not in found[name]] == []


def test_names_that_are_no_text_get_into_the_list_of_broken_images(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = os.fsdecode(b"train/cat/\xe9\x1b[31m.jpg")
    (root / name).write_bytes(b"")
    code, lines = check(capsys, root, "--bad-list", tmp_path / "bad.txt")
    assert code == ExitCode.DATA
    assert "\x1b" not in "".join(lines)
    assert known_names(DataRecipe(root=str(root), known_bad=str(tmp_path / "bad.txt"))) == {name}


ODD = {
    "CMYK": ["jpeg-cmyk-no-marker.jpg"],
    "with an EXIF orientation": ["jpeg-exif-6.jpg", "webp-exif-4.webp"],
    "with the name of another format: PNG named .jpg": ["png-named.jpg"],
    "with several pictures": ["png-animated.png", "webp-animated.webp"],
    "with transparent pixels": ["png-mode-rgba.png"],
    "very small": ["jpeg-1x40.jpg"],
}


def test_odd_images_are_listed_by_what_is_odd(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in ODD.values():
        for name in names:
            (root / "train" / "cat" / name).write_bytes(named(name).content)
    for image in good_images():  # as they come from a camera, and nothing to be told
        if image.name in ("jpeg-baseline-420.jpg", "jpeg-progressive-444.jpg", "png-mode-p.png", "tiff-lzw.tif"):
            (root / "train" / "dog" / image.name).write_bytes(image.content)
    code, lines = check(capsys, root, "--split", "train")
    assert code == ExitCode.OK
    for oddity, names in ODD.items():
        found = below(lines, oddity)
        assert [name for name in found if "-" in name] == [f"train/cat/{name}" for name in names]
    assert not any("train/dog/" in line and "-" in line for line in lines)


def test_very_large_images_are_listed(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.prepare.checked_images._LARGE", 45 * 71 - 1)
    (root / "train" / "cat" / "large.jpg").write_bytes(named("jpeg-grey.jpg").content)
    assert below(check(capsys, root)[1], "very large") == ["train/cat/large.jpg"]


def test_the_same_bytes_are_found_across_classes_and_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target in (("train/cat/0", "train/dog/8"), ("train/cat/0", "val/cat/9"), ("val/dog/1", "val/dog/7")):
        (root / f"{target}.jpg").write_bytes((root / f"{source}.jpg").read_bytes())
    _, lines = check(capsys, root)
    assert below(
        lines, "with the same bytes: 5 images in 2 groups, 1 of them in several classes, 1 in both splits"
    ) == [
        "train/cat/0.jpg = train/dog/8.jpg = val/cat/9.jpg",
        "val/dog/1.jpg = val/dog/7.jpg",
    ]


def test_lists_are_cut_unless_all_is_wanted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(14):
        (root / "train" / "cat" / f"empty{number:02d}.jpg").touch()
    listed = below(check(capsys, root)[1], "broken: 14 images")
    assert (len(listed), listed[-1]) == (11, "and 4 more; --all lists them")
    assert len(below(check(capsys, root, "--all")[1], "broken: 14 images")) == 14


def test_shards_are_checked_alike(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "classes.txt").write_text("cat\ndog\n")
    for split in ("train", "val"):
        with tarfile.open(shards / f"{split}-000000.tar", "w") as tar:
            images = sorted((root / split).glob("*/*.jpg"))
            for number, image in enumerate(images):
                content = image.read_bytes()[: -9 if (split, number) == ("train", 3) else None]
                for suffix, part in (("jpg", content), ("cls", str(number // 4).encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    code, lines = check(capsys, shards, "--source", "webdataset", "--bad-list", tmp_path / "bad.txt")
    assert code == ExitCode.DATA
    [broken] = below(lines, "broken: 1 image")
    assert "0003" in broken
    assert "is truncated" in broken
    [name] = known_names(DataRecipe(root=str(shards), known_bad=str(tmp_path / "bad.txt")))
    assert broken.startswith(name)


@pytest.mark.parametrize("place", ["packed", "object store"])
def test_packed_shards_and_images_at_an_address_are_checked_alike(
    place: str, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (root / "val/dog/7.jpg").write_bytes((root / "val/dog/1.jpg").read_bytes())
    (root / "train/dog/8.webp").write_bytes(named("webp-exif-4.webp").content)
    broken = root / "train/cat/0.jpg"
    if place == "packed":
        assert main(["prepare", "pack", str(root), str(tmp_path / "packed")]) == 0
        arguments = [str(tmp_path / "packed"), "--source", "packed"]
        [broken] = (tmp_path / "packed").glob("train-*.tar")
    else:
        fsspec = pytest.importorskip("fsspec")
        store, path = fsspec.core.url_to_fs(f"memory://{tmp_path.name}")
        store.put(str(root), f"{path}/images", recursive=True)
        arguments = [f"memory://{tmp_path.name}/images"]

    code, lines = check(capsys, *arguments)
    assert code == ExitCode.OK
    assert below(lines, "broken: 0 images") == []
    assert below(lines, "with an EXIF orientation") == ["train/dog/8.webp"]
    assert below(lines, "with the same bytes: 2 images in 1 group") == ["val/dog/1.jpg = val/dog/7.jpg"]

    if place == "packed":
        content = broken.read_bytes()
        start = content.index(b"\xff\xd8\xff")  # of the first image
        broken.write_bytes(content[:start] + bytes(400) + content[start + 400 :])
    else:
        store.pipe_file(f"{path}/images/train/cat/0.jpg", broken.read_bytes()[:-9])
    code, lines = check(capsys, *arguments)
    assert code == ExitCode.DATA
    [line] = below(lines, "broken: 1 image")
    assert line.startswith("train/cat/0.jpg: ")


def test_progress_is_shown_on_standard_error(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.prepare.progress._FILE_S", 0.0)
    main(["prepare", "check", str(root)])
    assert "train: 0 of 8 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["nowhere"], ExitCode.DATA, "nowhere/train: no such folder"),
        (
            ["images", "--bad-list", "nowhere/bad.txt"],
            ExitCode.DATA,
            "nowhere/bad.txt: cannot be written: No such file",
        ),
        (["images", "--threads", "0"], ExitCode.USAGE, "--threads 0. Allowed: a whole number from 1"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    arguments: list[str], code: int, problem: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = [str(root.parent / text) if text[0] in "ni" else text for text in arguments]
    assert main(["prepare", "check", *placed]) == code
    assert problem in capsys.readouterr().err
