"""The lease: a live holder keeps it, a dead one does not, and of many processes that want it one gets it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.run import lease
from launcher.run.holder import Holder
from launcher.run.lease import LeaseHeld, LeaseLost, acquire, holder
from resnet_dist.errors import StorageError

LONG_S = 3600.0  # longer than a test may take: whoever waits for it fails

# Takes the lease, says so, and stays.
HOLD = """
import sys, time
from pathlib import Path
from launcher.run.lease import acquire
lease = acquire(Path(sys.argv[1]), renew_every_s=float(sys.argv[2]))
print(lease.generation, flush=True)
time.sleep(3600)
"""

# Waits for a line, then tries once: WON and its generation, or HELD.
TRY = """
import sys
from pathlib import Path
from launcher.run.lease import LeaseHeld, acquire
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = acquire(Path(sys.argv[1]), expires_s=3600)
    print("WON", lease.generation, flush=True)
except LeaseHeld:
    print("HELD", flush=True)
sys.stdin.readline()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lease"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a script; whatever is left of it goes with the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_holder(folder: Path, **changes: object) -> Path:
    """A lease of this process, with something about it changed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "00000001.json"
    file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(Holder.this_process(), **changes))))
    return file


def test_a_second_process_is_refused_with_the_holder_and_what_to_do(folder: Path, start: Start) -> None:
    process = start(HOLD, folder, 5)
    assert line(process) == "1"
    with pytest.raises(LeaseHeld) as refused:
        acquire(folder)
    found = holder(folder)
    assert found is not None
    assert str(refused.value) == (
        f"{folder.parent}: in use by process {process.pid} on {found.host} since {found.since}. "
        f"Wait until it ends, stop it (kill -TERM {process.pid} on {found.host}), or give this run another name"
    )


def test_a_released_lease_is_free(folder: Path) -> None:
    with acquire(folder) as first:
        assert holder(folder) is not None
        with pytest.raises(LeaseHeld):
            acquire(folder)
    assert holder(folder) is None
    with acquire(folder) as second:
        assert (first.generation, second.generation) == (1, 2)
        assert sorted(path.name for path in folder.iterdir()) == ["00000002.json"]


def test_a_killed_holder_is_succeeded_at_once(folder: Path, start: Start) -> None:
    process = start(HOLD, folder, 5)
    assert line(process) == "1"
    process.kill()  # and not waited for: it is a zombie, which is dead, too
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with acquire(folder, expires_s=LONG_S) as lease:
        assert lease.generation == 2


def test_a_later_process_with_the_holders_number_is_not_the_holder(folder: Path) -> None:
    write_holder(folder, process_start="1")
    with acquire(folder, expires_s=LONG_S) as lease:
        assert lease.generation == 2


def test_a_suspended_process_of_this_machine_keeps_its_lease(folder: Path, start: Start) -> None:
    process = start(HOLD, folder, 0.01)
    assert line(process) == "1"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(LeaseHeld):
        acquire(folder, expires_s=0.05)


@pytest.mark.parametrize("elsewhere", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}, {"host": "another"}])
def test_a_holder_elsewhere_that_does_not_renew_is_succeeded(folder: Path, elsewhere: dict[str, str]) -> None:
    write_holder(folder, **elsewhere)  # its process number, looked up here, would be alive
    with acquire(folder, expires_s=0.2) as lease:
        assert lease.generation == 2


def test_a_holder_elsewhere_that_renews_is_alive_whatever_its_clock_says(folder: Path) -> None:
    file = write_holder(folder, host="another")
    done = threading.Event()

    def renew() -> None:
        time_ns = 0
        while not done.wait(0.01):
            time_ns += 1_000_000_000
            os.utime(file, ns=(time_ns, time_ns))  # a clock that is half a century behind

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="on another since"):
            acquire(folder, expires_s=LONG_S)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("elsewhere", [{}, {"host": "another"}], ids=["here", "elsewhere"])
def test_a_predecessor_of_the_same_submission_is_waited_for(
    folder: Path, elsewhere: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_holder(folder, submission="try-1", **elsewhere)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        os.utime(file, ns=(len(naps), len(naps)))  # it saves, and lives
        if len(naps) == 20:
            file.with_suffix(".released").touch()

    monkeypatch.setattr(lease.time, "sleep", sleep)
    monkeypatch.setattr(lease.time, "monotonic", lambda: float(len(naps)))
    with acquire(folder, submission="try-1", predecessor_s=LONG_S) as won:
        assert (won.generation, len(naps)) == (2, 20)


@pytest.mark.parametrize("elsewhere", [{}, {"host": "another"}], ids=["here", "elsewhere"])
@pytest.mark.parametrize(("submission", "most"), [("try-1", 42), ("try-2", 1), ("", 1)])
def test_a_predecessor_is_waited_for_in_bounded_time_and_no_other_process_is(
    folder: Path, elsewhere: dict[str, str], submission: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_holder(folder, submission="try-1", **elsewhere)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        os.utime(file, ns=(len(naps), len(naps)))

    monkeypatch.setattr(lease.time, "sleep", sleep)
    monkeypatch.setattr(lease.time, "monotonic", lambda: float(len(naps)))
    with pytest.raises(LeaseHeld):
        acquire(folder, submission=submission, predecessor_s=40.0)
    assert most - 2 <= len(naps) <= most


def test_starts_by_a_person_have_no_submission(folder: Path) -> None:
    write_holder(folder, submission="")
    with pytest.raises(LeaseHeld):
        acquire(folder, submission="", predecessor_s=LONG_S)


def test_a_lease_of_an_earlier_version_names_its_holder(folder: Path) -> None:
    file = write_holder(folder)
    content = json.loads(file.read_text())
    del content["submission"]
    file.write_text(json.dumps(content))
    with pytest.raises(LeaseHeld, match=f"in use by process {os.getpid()}"):
        acquire(folder)


def test_time_in_which_the_watcher_was_suspended_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_holder(folder, host="another")
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 20:
            os.utime(file, ns=(1, 1))

    monkeypatch.setattr(lease.time, "sleep", sleep)
    monkeypatch.setattr(lease.time, "monotonic", lambda: 1000.0 * len(naps))  # suspended for 1,000 s at every nap
    with pytest.raises(LeaseHeld):
        acquire(folder, expires_s=60)
    assert len(naps) == 20


def test_a_holder_notices_that_it_was_succeeded(folder: Path) -> None:
    notified = threading.Event()
    first = acquire(folder, renew_every_s=0.01, on_lost=notified.set)
    first.check()
    os.link(write_holder(folder.parent / "other", host="another"), folder / "00000002.json")
    assert notified.wait(60)
    assert first.lost
    with pytest.raises(LeaseLost, match=r"taken over by process [0-9]+ on another"):
        first.check()
    first.release()
    found = holder(folder)  # the other's is untouched
    assert found is not None
    assert found.host == "another"


def test_an_old_listing_of_a_shared_folder_is_no_loss(folder: Path) -> None:
    acquire(folder).release()
    second = acquire(folder, renew_every_s=LONG_S)
    (folder / f"{second.generation:08d}.json").rename(folder / "hidden")  # as an NFS client's cache may have it
    os.link(write_holder(folder.parent / "other", host="another"), folder / f"{second.generation - 1:08d}.json")
    second.claim.check()


def test_a_check_sees_what_the_next_renewal_would(folder: Path) -> None:
    first = acquire(folder, renew_every_s=LONG_S)
    os.link(write_holder(folder.parent / "other", host="another"), folder / "00000002.json")
    assert not first.lost
    with pytest.raises(LeaseLost):
        first.claim.check()  # in another process of the run
    with pytest.raises(LeaseLost):
        first.check()
    assert first.lost
    first.release()


UNREADABLE = [b"", b"{", b"null", b"[]", b"\0" * 300, b'{"uuid": "u"}', b"\xff\xfe", b"[" * 100_000]


def changed_holder(**changes: object) -> bytes:
    return json.dumps({**dataclasses.asdict(Holder.this_process()), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [*UNREADABLE, *(changed_holder(pid=pid) for pid in (-1, 0, 2**31, 2**64, True, "1", None))],
    ids=map(str, range(len(UNREADABLE) + 7)),  # the contents differ from process to process
)
def test_a_lease_that_cannot_be_read_is_taken_over_once_it_is_not_renewed(folder: Path, content: bytes) -> None:
    write_holder(folder).write_bytes(content)
    with acquire(folder, expires_s=0.05) as held:
        assert held.generation == 2


def test_the_holder_of_a_lease_that_cannot_be_read_keeps_it_as_long_as_it_renews_it(folder: Path) -> None:
    with acquire(folder, renew_every_s=0.02) as held:
        (folder / "00000001.json").write_text('{"uuid":')
        with pytest.raises(LeaseHeld, match="a process that cannot be identified") as caught:
            acquire(folder, expires_s=LONG_S)
        assert "kill" not in str(caught.value)
        held.check()


def test_a_lease_that_cannot_be_opened_is_not_taken(folder: Path) -> None:
    file = write_holder(folder)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(StorageError, match="is a named pipe") as caught:
        acquire(folder, expires_s=0.01)
    assert caught.value.path == str(file)
    file.unlink()
    file.write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        acquire(file / "lease")


def test_a_process_is_signalled_only_if_it_is_the_holder(folder: Path, start: Start) -> None:
    process = start(HOLD, folder, 5)
    assert line(process) == "1"
    found = holder(folder)
    assert isinstance(found, Holder)
    assert not dataclasses.replace(found, process_start="1").signal(signal.SIGKILL)  # a later process with its pid
    assert process.poll() is None
    assert found.signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not found.signal(signal.SIGKILL)


@pytest.mark.parametrize("pid", [0, -1, -2, 2**31])
def test_numbers_that_mean_no_process_or_many_are_no_holder(pid: int) -> None:
    with pytest.raises(ValueError, match=f"there is no process {pid}"):
        dataclasses.replace(Holder.this_process(), pid=pid)


def test_of_many_that_want_a_dead_holders_lease_exactly_one_gets_it(folder: Path, start: Start) -> None:
    write_holder(folder, process_start="1")
    processes = [start(TRY, folder) for _ in range(6)]
    assert [line(process) for process in processes] == ["ready"] * 6
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(line(process) for process in processes) == ["HELD"] * 5 + ["WON 2"]


# Children take the lease again and again. Whoever has it makes a file that must not be there yet, and removes it; then
# it gives the lease back or dies holding it. Exit codes: 0 had it, 1 it was held, 2 was not alone.
STRESS = """
import os, random, sys
from pathlib import Path
from launcher.run.lease import LeaseHeld, acquire

folder, number_of_turns, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
codes = []
while codes.count(0) < number_of_turns:
    dies = draw.random() < 0.5
    child = os.fork()
    if child == 0:
        try:
            lease = acquire(folder, expires_s=3600)
        except LeaseHeld:
            os._exit(1)
        inside = folder.parent / "inside"
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            os._exit(2)
        log = os.open(folder.parent / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(log, f"{lease.generation}\\n".encode())
        inside.unlink()
        if not dies:
            lease.release()
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes.count(0), len(codes) - codes.count(0) - codes.count(1))
"""


def test_holders_that_come_go_and_die_in_a_crowd_are_always_alone(folder: Path, start: Start) -> None:
    folder.mkdir(parents=True)
    crowd = [start(STRESS, folder, 15, seed) for seed in range(4)]
    assert [line(process) for process in crowd] == ["15 0"] * 4
    generations = [int(text) for text in (folder.parent / "log").read_text().split()]
    assert len(generations) == 60
    assert generations == sorted(set(generations))


# For each number that it reads: a process is killed before that disk operation of taking and releasing the lease.
KILLED = """
import os, signal, sys
from pathlib import Path
from launcher.run.lease import acquire

seen = 0
def count(event, arguments):
    global seen
    if event in {"open", "os.mkdir", "os.link", "os.remove", "os.rename", "os.utime", "os.listdir", "os.scandir"}:
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

for kill_at in map(int, sys.stdin):
    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        acquire(Path(sys.argv[1]), expires_s=3600).release()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_kill_at_any_moment_of_taking_or_releasing_leaves_a_lease_that_can_be_taken(
    folder: Path, start: Start
) -> None:
    process, codes = start(KILLED, folder), [-signal.SIGKILL]
    assert process.stdin is not None
    while codes[-1] == -signal.SIGKILL:
        process.stdin.write(f"{len(codes)}\n")
        process.stdin.flush()
        codes.append(int(line(process)))
        with acquire(folder, expires_s=LONG_S) as lease:
            assert [path.name for path in folder.iterdir()] == [f"{lease.generation:08d}.json"]  # nothing is left over
    assert codes[-1] == 0  # a kill before every operation, until there are no more
    assert len(codes) > 10


def test_a_fork_of_the_holder_does_not_release_the_lease(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = acquire(folder)
    with monkeypatch.context() as patch:
        patch.setattr(lease.os, "getpid", lambda: 1)
        own.release()
    assert holder(folder) is not None
    own.release()
    assert holder(folder) is None
