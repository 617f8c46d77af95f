"""Finding the newest intact checkpoint, whatever happened to the others."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.restore import load, newest
from resnet_dist.errors import CheckpointError

SaveStep = Callable[..., Path]
EVERY_FILE = (*format.FILES, format.MANIFEST)


def test_what_was_saved_comes_back(tmp_path: Path, save_step: SaveStep, model: Callable, optimizer: Callable) -> None:
    save_step(42)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.step) == (tmp_path / "step-00000042", 42)
    assert checkpoint.state == {"samples_seen": 336, "step": 42}
    assert checkpoint.model().keys() == model(42).keys()
    assert all(torch.equal(tensor, model(42)[name]) for name, tensor in checkpoint.model().items())
    assert checkpoint.optimizer().keys() == optimizer(42).keys()
    assert torch.equal(checkpoint.optimizer()["conv1.weight"]["momentum"], optimizer(42)["conv1.weight"]["momentum"])


def test_a_parameter_without_state_is_remembered(tmp_path: Path, save_step: SaveStep) -> None:
    assert load(save_step(1)).optimizer()["fc.weight"] == {}


def test_no_folder_and_an_empty_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path, save_step: SaveStep) -> None:
    for step in (100_000_000, 99_999_999, 3):  # nine digits sort after eight, as text they would not
        save_step(step)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 100_000_000


def test_other_names_in_the_folder_are_ignored(tmp_path: Path, save_step: SaveStep) -> None:
    save_step(1)
    for name in (".step-00000002.tmp-host-1-0badcafe", "step-2", "step-00000003.bak", "best"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def places(size: int) -> list[int]:
    """Positions at which a file is damaged: both ends, the start of the safetensors header, and random ones."""
    drawn = random.Random(size).sample(range(size), k=min(size, 12))
    return sorted({0, 7, 8, 9, size // 2, size - 1, *drawn} & set(range(size)))


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_truncated_file_falls_back_to_the_checkpoint_before(tmp_path: Path, save_step: SaveStep, name: str) -> None:
    save_step(1)
    path = save_step(2) / name
    content = path.read_bytes()
    for size in places(len(content)):
        path.write_bytes(content[:size])
        checkpoint = newest(tmp_path)
        assert checkpoint is not None
        # The manifest's last byte is the newline after its JSON: without it the manifest is still complete.
        assert checkpoint.step == (2 if name == format.MANIFEST and size == len(content) - 1 else 1), size


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_flipped_bit_falls_back_to_the_checkpoint_before(tmp_path: Path, save_step: SaveStep, name: str) -> None:
    save_step(1)
    path = save_step(2) / name
    content = path.read_bytes()
    for place in places(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            checkpoint = newest(tmp_path)
            assert checkpoint is not None
            assert checkpoint.step == 1, (place, bit)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_deleted_file_falls_back_to_the_checkpoint_before(
    tmp_path: Path, save_step: SaveStep, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_step(1)
    gone = save_step(2) / name
    gone.unlink()
    with caplog.at_level(logging.WARNING):
        checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert caplog.messages == [f"checkpoint skipped: {gone}: is missing"]


def test_extra_bytes_fall_back_to_the_checkpoint_before(tmp_path: Path, save_step: SaveStep) -> None:
    save_step(1)
    with (save_step(2) / format.MODEL).open("ab") as file:
        file.write(b"\0")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_an_emptied_folder_and_a_file_in_its_place_are_skipped(tmp_path: Path, save_step: SaveStep) -> None:
    save_step(1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000003").write_text("not a folder")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_a_copy_under_another_step_is_skipped(
    tmp_path: Path, save_step: SaveStep, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(save_step(1), tmp_path / "step-00000009")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert "step-00000009: holds step 1" in caplog.text


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path, save_step: SaveStep) -> None:
    one, two = save_step(1), save_step(2)
    shutil.copy(one / format.OPTIMIZER, two / format.OPTIMIZER)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: was altered"):
        load(two)


def test_the_format_of_a_later_version_is_named(tmp_path: Path, save_step: SaveStep) -> None:
    path = save_step(1)
    manifest = json.loads((path / format.MANIFEST).read_text())
    (path / format.MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    advice = "has format 2; this version reads format 1: it was written by a later version of the launcher: use that"
    with pytest.raises(CheckpointError, match=advice):
        load(path)
    (path / format.MANIFEST).write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(CheckpointError, match=r"has format 0; this version reads format 1$"):
        load(path)


def test_a_manifest_that_lists_less_or_more_is_refused(tmp_path: Path, save_step: SaveStep) -> None:
    path = save_step(1) / format.MANIFEST
    manifest = json.loads(path.read_text())
    fewer = {name: manifest["files"][name] for name in (format.MODEL, format.STATE)}
    more = {**manifest["files"], "../../secret": {"size_bytes": 1, "sha256": ""}}
    for files in (fewer, more, [], dict.fromkeys(format.FILES)):
        path.write_text(json.dumps({"format": 1, "files": files}))
        with pytest.raises(CheckpointError, match="must"):
            load(path.parent)


def test_when_none_is_intact_the_run_does_not_start_over(tmp_path: Path, save_step: SaveStep) -> None:
    for step in (1, 2):
        (save_step(step) / format.MODEL).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints is intact \(step-00000002, step-00000001;"):
        newest(tmp_path)


def test_a_checkpoint_under_another_name_is_loaded_when_asked_for(tmp_path: Path, save_step: SaveStep) -> None:
    assert load(save_step(7).rename(tmp_path / "best")).step == 7


def test_a_file_altered_after_it_was_chosen_is_not_read(tmp_path: Path, save_step: SaveStep) -> None:
    checkpoint = load(save_step(1))
    path = checkpoint.path / format.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was altered"):
        checkpoint.model()
