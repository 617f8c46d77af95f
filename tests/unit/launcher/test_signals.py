"""What several signals mean together, and which Ctrl-C is a second one. Nobody waits: the clock is the test's."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from launcher import signals as module
from launcher.exit_codes import ExitCode
from launcher.signals import SAME_KEY_PRESS_S, StopSignals

SCHEDULERS = (signal.SIGTERM, signal.SIGUSR2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", list(itertools.permutations([*SCHEDULERS, signal.SIGINT])), ids=str)
def test_several_at_once_are_one_wish_with_the_schedulers_code_in_any_order(numbers: tuple[int, ...]) -> None:
    told: list[int] = []
    with StopSignals(told.append, pytest.fail) as signals:
        for number in numbers * 3:
            send(number)
    assert (signals.stopped, signals.received, signals.exit_code) == (True, numbers[0], ExitCode.STOPPED)
    assert told == list(numbers)  # each kind once


def test_ctrl_c_alone_is_a_person() -> None:
    with StopSignals() as signals:
        assert not signals.stopped
        send(signal.SIGINT)
    assert (signals.stopped, signals.exit_code) == (True, ExitCode.INTERRUPTED)


def test_what_reaches_several_processes_and_is_passed_on_is_one_key_press(clock: list[float]) -> None:
    again: list[float] = []
    with StopSignals(on_again=lambda: again.append(clock[0])):
        for _ in range(5):
            send(signal.SIGINT)
            clock[0] += SAME_KEY_PRESS_S / 10
    assert again == []


def test_a_second_key_press_is_one_also_after_a_schedulers_signal(clock: list[float]) -> None:
    again: list[float] = []
    with StopSignals(on_again=lambda: again.append(clock[0])):
        send(signal.SIGTERM)
        clock[0] += 60
        send(signal.SIGINT)
        assert again == []
        clock[0] += SAME_KEY_PRESS_S
        send(signal.SIGINT)
    assert len(again) == 1


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (*SCHEDULERS, signal.SIGINT)]
    with StopSignals():
        pass
    assert [signal.getsignal(number) for number in (*SCHEDULERS, signal.SIGINT)] == before
