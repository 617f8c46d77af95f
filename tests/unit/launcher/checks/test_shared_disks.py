"""Which file system holds a folder, by a stand-in for /proc/self/mounts, and the warning about many small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.checks.shared_disks import MANY_FILES, file_system, warning
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "images of all").mkdir()
    (tmp_path / "local/nested").mkdir(parents=True)
    (tmp_path / "fuse").mkdir()
    place = str(tmp_path.resolve())
    file = tmp_path / "mounts"
    file.write_text(
        "rootfs / rootfs rw 0 0\n"
        "/dev/sda1 / ext4 rw,relatime 0 0\n"
        f"server:/export {place}/images\\040of\\040all nfs4 rw,vers=4.2 0 0\n"
        f"10.0.0.1@tcp:/lustre {place}/local lustre rw 0 0\n"
        f"/dev/nvme0n1 {place}/local/nested xfs rw 0 0\n"
        f"s3fs {place}/fuse fuse.s3fs rw 0 0\n"
        "/dev/sdb1 / btrfs rw 0 0\n"
        "a line that is torn\n"
    )
    return file


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        (".", None),
        ("images of all", "nfs4"),
        ("images of all/train", "nfs4"),
        ("images of all, another", None),
        ("local", "lustre"),
        ("local/nested", None),
        ("fuse/x", "fuse.s3fs"),
    ],
)
def test_the_innermost_mount_counts(folder: str, kind: str | None, mounts: Path) -> None:
    assert file_system(str(mounts.parent / folder), mounts) == kind


def test_a_link_is_where_it_points(mounts: Path) -> None:
    (mounts.parent / "link").symlink_to(mounts.parent / "local")
    assert file_system(str(mounts.parent / "link"), mounts) == "lustre"


def test_without_a_list_of_mounts_nothing_is_said(tmp_path: Path) -> None:
    assert file_system("/", tmp_path / "none") is None


def test_the_warning_is_for_many_files_on_a_shared_file_system(mounts: Path) -> None:
    root = str(mounts.parent / "images of all")
    text = warning(DataRecipe(root=root), 1_281_167, mounts)
    assert text is not None
    assert text.startswith(f"{root}: 1,281,167 small files on a shared file system (nfs4)")
    assert "`launcher prepare pack`" in text
    assert warning(DataRecipe(root=root), MANY_FILES, mounts) is None
    assert warning(DataRecipe(root=root, source="packed"), 1_281_167, mounts) is None
    assert warning(DataRecipe(root=str(mounts.parent)), 1_281_167, mounts) is None
    assert warning(DataRecipe(root=f"{root}/not here"), 1_281_167, mounts) is None
