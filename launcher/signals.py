"""Handlers for SIGTERM, SIGUSR2, SIGHUP and Ctrl-C: save at the next step boundary, then exit."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Literal, Self

from launcher import streams
from launcher.exit_codes import ExitCode

OPENING = "checking the config"  # what a command that trains begins with
_SHORT = {"-h", "--help", "--dry-run"}  # commands with these train nothing
_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR2", "SIGHUP", "SIGINT") if hasattr(signal, name))

# A terminal sends Ctrl-C to every process of a command, and a parent (uv run, srun) may pass it on within milliseconds.
# Assumption: a second key press on purpose comes later than this.
SAME_KEY_PRESS_S = 0.25
SAME_SIGNAL_S = 0.2  # assumption: a signal to all processes of a group reaches them within this time
END_S = 15.0  # for the callbacks of a second Ctrl-C: longer than a shutdown of Ray takes


class StopSignals:
    """Records the signals that ask this process to stop, from `install` on, or inside of a context.

    Repeated signals are ignored, except for a second Ctrl-C. Several signals at once count as one request; Python does
    not keep their order. Outside of the main thread, where Python allows no signal handlers, there is no effect.

    `second`: what a second Ctrl-C does. "end": the callbacks `on_end` of all listeners run, newest first, in a thread
    and for at most `END_S`, and the process exits with 130. "raise": KeyboardInterrupt. "ignore": nothing.
    `announce`: write to standard error how a signal is answered.
    """

    def __init__(self, second: Literal["end", "raise", "ignore"] = "raise", *, announce: bool = True) -> None:
        self._second, self._announce = second, announce
        self._received: list[int] = []
        self._pressed_at: float | None = None
        self._pid = os.getpid()
        self._seen_by_forks = mmap.mmap(-1, 1)  # 1 once a signal has arrived here
        self._ending = False
        self._previous: dict[int, object] = {}
        self._listeners: list[tuple[Callable[[int], None], Callable[[], None]]] = []  # on_stop, on_end
        self._answer = "stopping before the first step"

    @property
    def stopped(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self._received)

    @property
    def received(self) -> int | None:
        """The number of the first signal."""
        return next(iter(self._received), None)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that stopped: 130 after Ctrl-C only, 75 after a signal of a scheduler."""
        return ExitCode.INTERRUPTED if set(self._received) == {signal.SIGINT} else ExitCode.STOPPED

    def install(self) -> Self:
        """Handle the signals from now on. Those that arrived while they were `blocked` are handled at once."""
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._previous[number] = signal.signal(number, self._handle)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        return self

    def reinstall(self) -> None:
        """Restore the handlers of `install` after code that has replaced them, also without Python's knowledge."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignore further requests until this process has ended: Python restores the default actions while it ends."""
        self._seen_by_forks[0] = 0  # exit handlers end forks with SIGTERM
        for number in self._previous:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)

    def __enter__(self) -> Self:
        return self.install()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def listen(
        self, on_stop: Callable[[int], None] = lambda number: None, on_end: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Call `on_stop` for the first signal of each kind in the block, and `on_end` for a second Ctrl-C."""
        listener = on_stop, on_end
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def answer(self, text: str) -> None:
        """What a signal leads to from now on, for the person who sends it."""
        self._answer = text

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the handlers against code in the block that replaces them, as ray.init() does."""
        set_handler = signal.signal

        def keep(number: int, handler: object) -> object:
            return signal.getsignal(number) if number in self._previous else set_handler(number, handler)  # type: ignore[arg-type]

        signal.signal = keep  # type: ignore[assignment]
        try:
            yield
        finally:
            signal.signal = set_handler

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._handle_in_fork(number)
            return
        self._seen_by_forks[0] = 1
        first_press = number == signal.SIGINT and self._pressed_at is None
        if first_press:
            self._pressed_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - (self._pressed_at or 0.0) >= SAME_KEY_PRESS_S:
            self._press_again()
        if number in self._received:
            return
        if first_press:
            again = "" if self._second == "ignore" else "; Ctrl-C again ends without saving"
            self._say(f"Ctrl-C: {self._answer}{again}")
        elif not self._received:
            self._say(f"{signal.Signals(number).name} received: {self._answer}")
        self._received.append(number)
        for on_stop, _on_end in list(self._listeners):
            on_stop(number)

    def _handle_in_fork(self, number: int) -> None:
        """Ignore a signal that this process's parent has received too, and needs its forks to save; else end."""
        end = time.monotonic() + SAME_SIGNAL_S
        while not self._seen_by_forks[0]:
            if time.monotonic() >= end:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            time.sleep(0.01)

    def _press_again(self) -> None:
        if self._second == "raise":
            raise KeyboardInterrupt
        if self._second == "end":
            if not self._ending:
                self._ending = True
                self._say("Ctrl-C again: ending without saving")
                # The main thread may hold a lock that a callback needs: it waits here, but not for ever.
                thread = threading.Thread(target=self._call_on_end, daemon=True)
                thread.start()
                thread.join(END_S)
            os._exit(ExitCode.INTERRUPTED)

    def _call_on_end(self) -> None:
        for _, on_end in reversed(self._listeners):
            try:
                on_end()
            except Exception as error:
                self._say(f"error: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        if self._announce:
            begin = "\n" if self._pressed_at is not None and os.isatty(2) else ""  # the terminal has written ^C
            if streams.is_terminal(sys.stderr):  # there may be a line of progress, too
                begin = streams.CLEAR_LINE
            streams.write_now(f"{begin}{text}\n")


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals: a process that is started in the block receives them once it has called `install`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_over(opening: str | None = None) -> StopSignals:
    """Make this process one of a run: its output cannot fail, and it handles signals. For the start of a command.

    `opening`: what the command begins with, for the person who waits for its imports; None if nothing is to be said.
    """
    streams.protect()
    leads = os.environ.get("RANK", "0") == "0"
    stop = StopSignals("end", announce=leads).install()
    if leads and opening is not None and not _SHORT & set(sys.argv):
        streams.show_opening(opening)
    return stop
