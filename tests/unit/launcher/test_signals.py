"""What several signals mean together, and which Ctrl-C is a second one. Nobody waits: the clock is the test's."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest

from launcher import signals as module
from launcher.exit_codes import ExitCode
from launcher.signals import SAME_KEY_PRESS_S, StopSignals, blocked

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
ALL = (*SCHEDULERS, signal.SIGINT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", list(itertools.permutations(ALL)), ids=str)
def test_several_at_once_are_one_request_with_the_schedulers_code_in_any_order(numbers: tuple[int, ...]) -> None:
    told: list[int] = []
    with StopSignals() as stop, stop.listen(told.append):
        for number in numbers * 3:
            send(number)
    assert (stop.stopped, stop.received, stop.exit_code) == (True, numbers[0], ExitCode.STOPPED)
    assert told == list(numbers)  # each kind once


def test_ctrl_c_alone_is_a_person() -> None:
    with StopSignals() as stop:
        assert not stop.stopped
        send(signal.SIGINT)
    assert (stop.stopped, stop.exit_code) == (True, ExitCode.INTERRUPTED)


def test_what_reaches_several_processes_and_is_passed_on_is_one_key_press(clock: list[float]) -> None:
    with StopSignals() as stop:
        for _ in range(5):
            send(signal.SIGINT)
            clock[0] += SAME_KEY_PRESS_S / 10
    assert stop.stopped


def test_a_second_key_press_interrupts_the_users_program_also_after_a_schedulers_signal(clock: list[float]) -> None:
    with StopSignals():
        send(signal.SIGTERM)
        clock[0] += 60
        send(signal.SIGINT)
        clock[0] += SAME_KEY_PRESS_S
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_child_leaves_the_second_key_press_to_its_parent(clock: list[float]) -> None:
    with StopSignals("ignore"):
        send(signal.SIGINT)
        clock[0] += 60
        send(signal.SIGINT)


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in ALL]
    with StopSignals():
        pass
    assert [signal.getsignal(number) for number in ALL] == before


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            send(signal.SIGHUP)
        assert not stop.stopped
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ALL)
def test_a_child_that_was_started_with_blocked_signals_receives_them_once_it_handles_them(number: int) -> None:
    lines = f"import os; from launcher.signals import StopSignals; os.kill(os.getpid(), {number})"
    with blocked():
        child = subprocess.Popen(
            [sys.executable, "-c", f"{lines}; print(StopSignals('ignore').install().received)"], stdout=subprocess.PIPE
        )
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output.split()) == (0, [str(int(number)).encode()])


def test_code_that_installs_handlers_of_its_own_does_not_replace_them() -> None:
    with StopSignals() as stop, stop.kept():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        set_signal = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        signal.signal(signal.SIGUSR1, set_signal)
        send(signal.SIGTERM)
    assert stop.stopped


def test_the_answer_says_what_happens_next(capfd: pytest.CaptureFixture[str]) -> None:
    answers = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with StopSignals() as stop:
            stop.answer("saving at the next step")
            send(number)
            send(number)
        answers.append(capfd.readouterr().err)
    assert answers == [
        "SIGTERM received: saving at the next step\n",
        "Ctrl-C: saving at the next step; Ctrl-C again ends without saving\n",
    ]


# A process of a run that sends itself signals; the last line of the program is what a test gives.
PROGRAM = """
import os, signal, sys, threading, time
from launcher import signals
stop = signals.take_over()
def send(number): os.kill(os.getpid(), number)
"""


def program(lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM + lines], capture_output=True, text=True, timeout=60)


def test_a_second_key_press_ends_a_process_of_a_run_after_what_its_listeners_do_newest_first() -> None:
    done = program(
        """
lock = threading.Lock()
def say(text): return lambda: print(text, flush=True)
def fail(): raise OSError("full")
with stop.listen(on_end=say("lease")), stop.listen(on_end=fail), stop.listen(on_end=say("child")), lock:
    send(signal.SIGINT)
    time.sleep(signals.SAME_KEY_PRESS_S)
    send(signal.SIGINT)
    time.sleep(60)
"""
    )
    assert (done.returncode, done.stdout.split()) == (130, ["child", "lease"])
    assert "Traceback" not in done.stderr
    assert "error: OSError: full" in done.stderr


def test_a_signal_to_a_process_and_its_forks_ends_no_fork() -> None:
    done = program(
        """
started, start = os.pipe()
with stop.listen():
    if (child := os.fork()) == 0:
        os.write(start, b".")
        time.sleep(2 * signals.SAME_SIGNAL_S)
        os._exit(7)
    os.read(started, 1)
    for process in (child, os.getpid()): os.kill(process, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.stopped)
"""
    )
    assert done.stdout == "7 True\n"


def test_a_signal_to_a_fork_alone_ends_it() -> None:
    done = program(
        """
started, start = os.pipe()
with stop.listen():
    if (child := os.fork()) == 0:
        os.write(start, b".")
        time.sleep(3600)
    os.read(started, 1)  # Python forgets signals that arrive while it forks
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.stopped)
"""
    )
    assert (done.stdout, done.stderr) == ("-15 False\n", "")


def test_a_callback_that_hangs_does_not_keep_the_process() -> None:
    done = program(
        """
signals.END_S = 0.1
with stop.listen(on_end=lambda: time.sleep(3600)):
    send(signal.SIGINT)
    time.sleep(signals.SAME_KEY_PRESS_S)
    send(signal.SIGINT)
"""
    )
    assert done.returncode == 130


@pytest.mark.parametrize("number", SCHEDULERS)
def test_a_process_that_ends_keeps_its_exit_code_whatever_arrives(number: int) -> None:
    done = program(
        f"""
class Late:  # deleted while the interpreter ends, after Python has restored the default actions
    def __init__(self): self.kill = os.kill
    def __del__(self): self.kill(os.getpid(), {number})
import builtins
builtins.late = Late()
stop.ignore()
sys.exit(75)
"""
    )
    assert done.returncode == 75


@pytest.mark.parametrize(("argument", "output"), [("a.yaml", "checking the config ...\n"), ("--help", "")])
def test_a_command_that_trains_says_what_it_begins_with(argument: str, output: str) -> None:
    code = "from launcher import signals; signals.take_over(signals.OPENING)"
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (output, "")


def test_the_handlers_are_there_before_anything_that_takes_long_is_imported() -> None:
    imported = program("print(sorted({'pydantic', 'yaml', 'torch', 'numpy', 'launcher.api'} & set(sys.modules)))")
    assert imported.stdout == "[]\n"
