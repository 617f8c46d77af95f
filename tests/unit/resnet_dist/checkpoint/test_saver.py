"""Asynchronous saving: a copy is taken, a thread writes it, and failures are reported."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_dist.checkpoint import saver as saver_module
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.checkpoint.restore import load, newest
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.save import write
from resnet_dist.checkpoint.saver import CheckpointOptions, Saver
from resnet_dist.errors import StorageError

Events = list[tuple[int, str, dict[str, Any]]]


class Storage:
    """Replaces `write` in the thread: it can block and fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.writing = threading.Event()
        self.fails_with: int | None = None
        self.threads: set[int] = set()

    def write(self, *arguments: Any) -> Path:
        self.threads.add(threading.get_ident())
        self.writing.set()
        assert self.open.wait(60)
        self.writing.clear()
        if self.fails_with is not None:
            raise StorageError("/storage", os.strerror(self.fails_with))
        return write(*arguments)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    storage = Storage()
    monkeypatch.setattr(saver_module, "write", storage.write)
    return storage


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def saver(tmp_path: Path, events: Events, storage: Storage) -> Iterator[Saver]:
    saver = Saver(CheckpointOptions(tmp_path, Retention(keep=2)), on_event=lambda *event: events.append(event))
    yield saver
    storage.open.set()
    saver.close()


def state_of(value: float) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    weight = torch.full((3, 2, 2, 2), float(value)).to(memory_format=torch.channels_last)
    return {"weight": weight}, {"weight": {"momentum": weight + 1}, "bias": {}}


def save(saver: Saver, step: int, *, wait: bool = False, **state: Any) -> None:
    saver.save(CheckpointContent(step, *state_of(step), {"samples": 8 * step, **state}), wait=wait)


def wait_for_event(saver: Saver, events: Events) -> None:
    """Poll until the save in progress is reported."""
    num_events = len(events)
    while len(events) == num_events:
        saver.poll()
        time.sleep(0.001)


def names(events: Events) -> list[tuple[int, str]]:
    return [(step, name) for step, name, _ in events]


def test_a_save_that_is_waited_for_is_on_the_disk(tmp_path: Path, saver: Saver, events: Events) -> None:
    save(saver, 5, wait=True)
    checkpoint = load(tmp_path / "step-00000005")
    model, optimizer = state_of(5)
    assert torch.equal(checkpoint.model()["weight"], model["weight"])
    assert torch.equal(checkpoint.optimizer()["weight"]["momentum"], optimizer["weight"]["momentum"])
    assert checkpoint.optimizer()["bias"] == {}
    assert checkpoint.state == {"samples": 40, "step": 5}
    assert names(events) == [(5, "checkpoint")]
    detail = events[0][2]
    assert list(detail) == ["path", "size_bytes", "stalled_s", "waited_s", "write_s"]
    assert detail["path"] == str(tmp_path / "step-00000005")
    assert detail["size_bytes"] == 2 * 24 * 4 + (tmp_path / "step-00000005" / "state.json").stat().st_size
    assert detail["stalled_s"] >= detail["write_s"] > 0
    saver.poll()
    assert len(events) == 1


def test_a_checkpoint_in_use_is_not_deleted(tmp_path: Path, storage: Storage) -> None:
    in_use = frozenset({1})
    options = CheckpointOptions(tmp_path, Retention(keep=1), in_use=lambda: in_use)
    saver = Saver(options, on_event=lambda *event: None)
    for step in (1, 2, 3):
        save(saver, step, wait=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    in_use = frozenset()
    save(saver, 4, wait=True)
    saver.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_the_training_goes_on_and_changes_its_tensors_while_they_are_written(
    tmp_path: Path, saver: Saver, storage: Storage
) -> None:
    storage.open.clear()
    model, optimizer = state_of(5)
    saver.save(CheckpointContent(5, model, optimizer, {}), wait=False)
    assert storage.writing.wait(60)
    model["weight"].zero_()
    optimizer["weight"]["momentum"].zero_()
    saver.poll()
    assert list(tmp_path.glob("step-*")) == []
    storage.open.set()
    saver.close()
    checkpoint = load(tmp_path / "step-00000005")
    assert torch.equal(checkpoint.model()["weight"], state_of(5)[0]["weight"])
    assert torch.equal(checkpoint.optimizer()["weight"]["momentum"], state_of(6)[0]["weight"])
    assert storage.threads.isdisjoint({threading.get_ident()})


def test_a_second_save_waits_for_the_first_and_says_for_how_long(
    tmp_path: Path, saver: Saver, storage: Storage, events: Events
) -> None:
    storage.open.clear()
    save(saver, 5)
    assert storage.writing.wait(60)
    threading.Timer(0.05, storage.open.set).start()
    save(saver, 6, wait=True)
    assert names(events) == [(5, "checkpoint"), (6, "checkpoint")]
    assert events[0][2]["waited_s"] < 0.05 <= events[1][2]["waited_s"] <= events[1][2]["stalled_s"]
    assert [load(tmp_path / f"step-0000000{step}").step for step in (5, 6)] == [5, 6]
    assert torch.equal(load(tmp_path / "step-00000005").model()["weight"], state_of(5)[0]["weight"])


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each buffer that is allocated."""
    allocated: list[int] = []
    empty_like = torch.empty_like

    def counted(tensor: Tensor, **options: Any) -> Tensor:
        allocated.append(tensor.nbytes)
        return empty_like(tensor, **options)

    monkeypatch.setattr(torch, "empty_like", counted)
    return allocated


def test_memory_is_allocated_once(saver: Saver, storage: Storage, allocated: list[int]) -> None:
    for step in (5, 6, 7):
        save(saver, step, wait=True)
    assert allocated == [96, 96]


def test_memory_that_was_reserved_is_used(saver: Saver, storage: Storage, allocated: list[int]) -> None:
    weights, _ = state_of(1)
    saver.reserve([*weights.values(), *weights.values()])  # the momentum has the weight's shape
    save(saver, 1, wait=True)
    assert allocated == [96, 96]


def test_a_state_that_changes_its_form_gets_other_memory(tmp_path: Path, saver: Saver) -> None:
    for step, tensor in enumerate([torch.ones(2), torch.ones(3), torch.ones(3).double(), torch.eye(3).t()]):
        saver.save(CheckpointContent(step, {"weight": tensor}, {}, {}), wait=True)
        assert torch.equal(load(tmp_path / f"step-0000000{step}").model()["weight"], tensor)


def test_old_ones_are_deleted_and_the_best_by_the_metrics_given_stays(tmp_path: Path, events: Events) -> None:
    options = CheckpointOptions(tmp_path, Retention(keep=1, keep_best=1))
    saver = Saver(options, on_event=lambda *event: events.append(event))
    for step, top1 in ((1, 0.5), (2, 0.7), (3, None), (4, 0.1)):
        save(saver, step, metrics={"top1": top1})
    saver.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert load(tmp_path / "step-00000002").state == {"samples": 16, "metrics": {"top1": 0.7}, "step": 2}


def test_the_best_of_an_earlier_attempt_stays_and_is_ranked_with_those_of_the_next(tmp_path: Path) -> None:
    kept = []
    for top1_of in ({1: 0.6, 2: 0.9, 3: 0.1, 4: 0.2}, {5: 0.1, 6: 0.7, 7: 0.1}):
        saver = Saver(CheckpointOptions(tmp_path, Retention(keep=1, keep_best=2)), on_event=lambda *event: None)
        for step, top1 in top1_of.items():
            save(saver, step, metrics={"top1": top1})
        saver.close()
        kept.append({int(path.name[-8:]): load(path).state["metrics"]["top1"] for path in sorted(tmp_path.iterdir())})
    assert kept == [{1: 0.6, 2: 0.9, 4: 0.2}, {2: 0.9, 6: 0.7, 7: 0.1}]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_save_that_fails_is_reported_and_the_next_one_may_succeed(
    tmp_path: Path, saver: Saver, storage: Storage, events: Events, number: int
) -> None:
    save(saver, 4)
    wait_for_event(saver, events)
    storage.fails_with = number
    for step in (5, 6):
        save(saver, step)
        wait_for_event(saver, events)
    storage.fails_with = None  # space was freed
    save(saver, 7)
    wait_for_event(saver, events)
    assert names(events)[1:] == [(5, "checkpoint_failed"), (6, "checkpoint_failed"), (7, "checkpoint")]
    assert events[1][2]["problem"] == f"/storage: {os.strerror(number)}"
    assert [detail["in_a_row"] for _, name, detail in events if name == "checkpoint_failed"] == [1, 2]
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 7


def test_after_too_many_failures_in_a_row_the_training_ends(saver: Saver, storage: Storage, events: Events) -> None:
    storage.fails_with = errno.ENOSPC
    for step in (5, 6):
        save(saver, step)
        wait_for_event(saver, events)
    storage.fails_with = None
    save(saver, 7)
    wait_for_event(saver, events)
    storage.fails_with = errno.ENOSPC
    for step in (8, 9):  # in a row from here on
        save(saver, step)
        wait_for_event(saver, events)
    save(saver, 10)
    saver.close()
    with pytest.raises(StorageError) as caught:
        saver.poll()
    assert str(caught.value) == (
        "/storage: No space left on device. 3 consecutive checkpoints failed, at steps 8, 9, 10"
    )
    assert names(events)[-3:] == [(step, "checkpoint_failed") for step in (8, 9, 10)]  # reported before that


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in another file system."""
    own = tmp_path.stat().st_dev
    place = next(place for place in ("/dev/shm", "/run", str(Path.home())) if Path(place).stat().st_dev != own)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def test_nothing_is_written_to_what_is_mounted_over_the_checkpoints(tmp_path: Path, other_disk: Path) -> None:
    folder, disk = tmp_path / "checkpoints", tmp_path / "disk"
    disk.mkdir()
    folder.symlink_to(disk)
    saver = Saver(CheckpointOptions(folder), on_event=lambda *event: None)
    save(saver, 1, wait=True)
    folder.unlink()
    folder.symlink_to(other_disk)  # as a mount: the same path leads to another file system
    with pytest.raises(
        StorageError, match=r"step-00000001, which was written before, is gone.* Mount it again"
    ) as caught:
        save(saver, 2, wait=True)
    assert caught.value.path == str(folder)
    assert list(other_disk.iterdir()) == []
    folder.unlink()
    folder.symlink_to(disk)
    save(saver, 3, wait=True)
    saver.close()
    assert [path.name for path in sorted(disk.iterdir())] == ["step-00000001", "step-00000003"]


def test_checkpoints_that_were_deleted_by_hand_are_followed_by_the_next(
    tmp_path: Path, saver: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    save(saver, 1, wait=True)
    shutil.rmtree(tmp_path)
    save(saver, 2, wait=True)
    assert (tmp_path / "step-00000002").is_dir()
    deleted = f"{tmp_path / 'step-00000001'}: was deleted while the run was training; the next checkpoint is written"
    assert deleted in caplog.messages


def test_a_save_that_is_waited_for_raises_when_it_fails(saver: Saver, storage: Storage, events: Events) -> None:
    storage.fails_with = errno.EROFS
    with pytest.raises(StorageError, match="Read-only file system"):
        save(saver, 5, wait=True)
    assert names(events) == [(5, "checkpoint_failed")]


def test_a_save_that_is_waited_for_does_not_raise_the_error_of_the_one_before(
    tmp_path: Path, saver: Saver, storage: Storage, events: Events
) -> None:
    storage.fails_with = errno.ENOSPC
    save(saver, 5)
    wait_for_event(saver, events)
    storage.fails_with = None
    save(saver, 6, wait=True)
    assert names(events) == [(5, "checkpoint_failed"), (6, "checkpoint")]
    assert load(tmp_path / "step-00000006").step == 6


def test_what_no_checkpoint_can_hold_is_raised_at_once_and_affects_no_later_save(tmp_path: Path, saver: Saver) -> None:
    complex_tensor = {"weight": torch.zeros(1, dtype=torch.complex64)}
    for model, optimizer, state, problem in [
        (complex_tensor, {}, {}, "complex64"),
        ({}, {"weight": {"a/b": torch.zeros(1)}}, {}, "slash"),
        ({"../weight": torch.zeros(1)}, {}, {}, "path"),
        ({}, {}, {"loss": float("inf")}, "JSON"),
    ]:
        with pytest.raises(ValueError, match=problem):
            saver.save(CheckpointContent(5, model, optimizer, state), wait=False)
    save(saver, 6, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_a_run_that_was_taken_over_completes_and_deletes_no_checkpoint(tmp_path: Path, events: Events) -> None:
    taken = False

    def check_lease() -> None:
        if taken:
            raise InterruptedRun

    options = CheckpointOptions(tmp_path, Retention(keep=1), check_lease=check_lease)
    saver = Saver(options, on_event=lambda *event: events.append(event))
    save(saver, 1, wait=True)
    taken = True
    with pytest.raises(InterruptedRun):
        save(saver, 2, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    save(saver, 1)  # of a step that is there already
    with pytest.raises(InterruptedRun):
        saver.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


class InterruptedRun(Exception):  # noqa: N818 - reads as what happened
    """Like the control plane's error for a lost lease: not a StorageError."""


def test_a_bug_in_the_thread_is_not_reported_as_a_storage_error(
    saver: Saver, storage: Storage, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(saver_module, "write", broken)
    save(saver, 5)
    with pytest.raises(ZeroDivisionError):
        wait_for_event(saver, events)


class Network:
    """Replaces the upload in the mirror's thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.sending = threading.Event()
        self.is_down = False
        self.sent: list[int] = []
        monkeypatch.setattr(Mirror, "upload", self.upload)

    def upload(self, checkpoint: Path, step: int) -> int:
        self.sending.set()
        assert self.open.wait(60)
        if self.is_down:
            raise StorageError("memory://mirror", "EndpointConnectionError: could not connect")
        self.sent.append(load(checkpoint).step)  # whole, until it was sent
        return 7


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@pytest.fixture
def mirrored(tmp_path: Path, events: Events, network: Network) -> Iterator[Callable[[], Saver]]:
    options = CheckpointOptions(tmp_path, Retention(keep=1), mirror="memory://mirror")
    savers: list[Saver] = []

    def make() -> Saver:
        savers.append(Saver(options, on_event=lambda *event: events.append(event)))
        return savers[-1]

    yield make
    network.open.set()
    for saver in savers:
        saver.close()


def test_checkpoints_are_mirrored_and_reported(mirrored: Callable[[], Saver], network: Network, events: Events) -> None:
    saver = mirrored()
    save(saver, 5, wait=True)
    saver.close()
    assert network.sent == [5]
    assert names(events) == [(5, "checkpoint"), (5, "mirrored")]
    assert events[1][2]["url"] == "memory://mirror"
    assert events[1][2]["size_bytes"] == 7


def test_a_slow_mirror_delays_no_save_and_gets_the_newest_checkpoint_next(
    tmp_path: Path, mirrored: Callable[[], Saver], network: Network, events: Events
) -> None:
    saver = mirrored()
    network.open.clear()
    save(saver, 5, wait=True)
    assert network.sending.wait(60)
    for step in (6, 7, 8):
        save(saver, step, wait=True)  # returns: the disk has it, whatever the network does
    # Those that the mirror still reads are not deleted yet.
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000005", "step-00000007", "step-00000008"]
    network.open.set()
    saver.close()
    assert network.sent == [5, 8]
    assert names(events)[:4] == [(step, "checkpoint") for step in (5, 6, 7, 8)]
    assert sorted(names(events)[4:]) == [
        (5, "mirrored"), (6, "mirror_skipped"), (7, "mirror_skipped"), (8, "mirrored"),
    ]  # fmt: skip


def test_a_mirror_that_fails_never_stops_the_training(
    mirrored: Callable[[], Saver], network: Network, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    saver = mirrored()
    network.is_down = True
    for step in range(1, 6):
        save(saver, step, wait=True)
        while (step, "mirror_failed") not in names(events):
            saver.poll()
    network.is_down = False
    save(saver, 6, wait=True)
    saver.close()
    failures = [detail for _, name, detail in events if name == "mirror_failed"]
    assert [detail["in_a_row"] for detail in failures] == [1, 2, 3, 4, 5]
    assert failures[0]["problem"] == "memory://mirror: EndpointConnectionError: could not connect"
    assert "the checkpoint of step 5 was not copied to the mirror" in caplog.messages[-1]
    assert names(events)[-1] == (6, "mirrored")


def test_the_wait_for_the_mirror_at_the_end_is_limited(
    mirrored: Callable[[], Saver], network: Network, events: Events
) -> None:
    saver = mirrored()
    network.open.clear()
    save(saver, 5, wait=True)
    assert network.sending.wait(60)
    saver.close(mirror_timeout_s=0.01)
    assert names(events) == [(5, "checkpoint"), (5, "mirror_failed")]
    assert events[1][2]["problem"] == "not finished 0.01 s after the end of the run"
