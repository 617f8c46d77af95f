"""Idle processes: they wait, are taken, end when their parent closes them, and are not kept where memory is short."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from launcher.config.schema import Faults
from launcher.console import Progress
from launcher.errors import WorkerLost
from launcher.local import child
from launcher.local import spares as local_spares
from launcher.local.messages import Failed
from launcher.local.spares import MOST_FAILED_STARTS, Spares, WorkerProcess, available_bytes, num_spares
from resnet_dist.errors import MissingPackage

GIB = 2**30


@pytest.fixture
def spares() -> Iterator[Spares]:
    found = Spares(Progress())
    yield found
    found.close()


def children() -> set[int]:
    return set(map(int, Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()))


def test_a_process_becomes_ready_takes_no_gpu_and_ends_when_its_parent_lets_it(spares: Spares) -> None:
    process = spares.take()
    while not process.is_ready:
        messages, more = process.receive()
        assert more
        assert messages == []
        time.sleep(0.02)
    maps = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "libtorch" in maps
    assert not any(Path(link).name.startswith("nvidia") for link in open_files(process))
    process.finish(30.0)
    assert process.process.returncode == 0


def open_files(process: WorkerProcess) -> list[str]:
    return [os.readlink(link) for link in Path(f"/proc/{process.process.pid}/fd").iterdir()]  # noqa: PTH115


def test_an_idle_process_is_taken_and_those_that_are_left_end(spares: Spares) -> None:
    before = children()
    spares.start(2)
    spares.start(2)
    assert len(children() - before) == 2
    taken = spares.take()
    assert taken.process.pid in children()
    spares.close()
    assert children() - before == {taken.process.pid}
    taken.end()
    assert children() == before


def test_an_idle_process_that_has_ended_is_replaced_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    spares = Spares(Progress(shown))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for _ in range(MOST_FAILED_STARTS):
        spares.start(1)
        [spare] = spares._idle
        spare.process.wait()
    spares.start(1)
    assert spares._idle == []
    lines = shown.getvalue().splitlines()
    assert len(lines) == MOST_FAILED_STARTS
    assert "exited with code 1; after 3 of them no other one is started" in lines[-1]


def test_code_that_has_changed_since_is_not_used(spares: Spares, monkeypatch: pytest.MonkeyPatch) -> None:
    spares.start(1)
    [old] = spares._idle
    monkeypatch.setattr(WorkerProcess, "has_current_code", property(lambda process: process is not old))
    taken = spares.take()
    assert taken is not old
    assert not old.runs
    taken.end()


def test_an_error_of_the_imports_comes_as_the_end_of_the_job(
    spares: Spares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import gc; raise ImportError(f'no such library {gc.isenabled()}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process, messages = spares.take(), []
    while not messages:
        messages, more = process.receive()
        assert more or messages
    assert isinstance(messages[0], Failed)
    assert "no such library False" in str(messages[0].error)  # garbage is not looked for while it imports
    process.end()


def test_a_process_that_could_not_import_torch_has_no_collectives_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    child._abort_collectives()


def test_an_idle_process_that_could_not_import_says_why(spares: Spares) -> None:
    process = spares.take()
    process.end()
    process.link, other = Pipe()
    other.send(Failed(MissingPackage("resnet-launcher", "torch", "pip install torch")))
    assert process.why_it_ended().startswith("resnet-launcher: needs torch, which is not installed here")


def test_a_signal_before_the_process_handles_any_ends_it_without_importing_pytorch(
    spares: Spares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w'); raise ImportError('PyTorch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = spares.take()
    process.signal(signal.SIGTERM)
    assert "exited with code 75" in str(process.how_it_ended(0))
    assert not (tmp_path / "imported").exists()
    process.end()


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGKILL, "killed by SIGKILL: possibly out of memory"), (signal.SIGTERM, "exited with code 75")],
)
def test_how_an_idle_process_ended(spares: Spares, number: int, text: str) -> None:
    process = spares.take()
    while not process.is_ready:
        process.look()
        time.sleep(0.02)
    process.signal(number)
    error = process.how_it_ended(3)
    assert isinstance(error, WorkerLost)
    assert error.rank == 3
    assert text in str(error)
    process.end()


def test_a_process_that_closes_its_connection_and_does_not_exit_is_lost_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_spares, "EXIT_S", 0.01)
    link, other = Pipe()
    process = WorkerProcess(subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]), link)
    other.close()
    assert process.receive() == ([], False)
    assert "did not exit within" in str(process.how_it_ended(0))
    process.end()
    assert process.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("faults", "available", "num"),
    [
        (Faults(), 64 * GIB, 1),
        (Faults(), GIB, 0),
        (Faults(), None, 1),
        (Faults(warm_spares=2), GIB, 2),
        (Faults(warm_spares=0), 64 * GIB, 0),
    ],
)
def test_the_number_follows_the_config_or_else_the_memory(
    faults: Faults, available: int | None, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_spares, "available_bytes", lambda: available)
    found, why_none = num_spares(faults)
    assert found == num
    assert ("1.0 GiB of memory are left" in why_none) == (faults.warm_spares is None and num == 0)


def test_the_least_limit_of_machine_and_cgroups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       99 kB\nMemAvailable:   8388608 kB\n")
    monkeypatch.setattr(local_spares, "_MEMORY", meminfo)
    monkeypatch.setattr(local_spares, "_CGROUP", cgroup)
    monkeypatch.setattr(local_spares, "_OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("0::/job/step\n")
    assert available_bytes() == 8 * GIB
    for folder, most, used in (("job", str(4 * GIB), 3 * GIB), ("job/step", "max", GIB)):
        (cgroup / folder).mkdir(parents=True)
        (cgroup / folder / "memory.max").write_text(f"{most}\n")
        (cgroup / folder / "memory.current").write_text(f"{used}\n")
        (cgroup / folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert available_bytes() == 2 * GIB
