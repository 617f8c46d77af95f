"""What SIGTERM, SIGUSR2 and Ctrl-C mean to a run: save at the next step boundary, then end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from launcher.exit_codes import ExitCode

_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR2", "SIGINT") if hasattr(signal, name))

# A terminal tells every process of a command of one key press, and one that starts others (uv run, srun) may pass it
# on, within milliseconds. Assumption: nobody presses a key twice on purpose faster than this.
SAME_KEY_PRESS_S = 0.25


def _end_at_once() -> None:
    os._exit(ExitCode.INTERRUPTED)


class StopSignals:
    """While it is entered, stopping signals are remembered, and the first of each kind is told to `on_stop`.

    Repeats are ignored, but for a second key press of Ctrl-C, which means it: it calls `on_again`, which ends the
    process. Several signals that come together are one wish, in whatever order: Python itself does not keep theirs.
    Outside the main thread, where Python allows no handlers, entering does nothing.
    """

    def __init__(
        self, on_stop: Callable[[int], None] = lambda number: None, on_again: Callable[[], None] = _end_at_once
    ) -> None:
        self._on_stop, self._on_again = on_stop, on_again
        self._received: list[int] = []
        self._pressed_at: float | None = None
        self._previous: dict[int, object] = {}

    @property
    def stopped(self) -> bool:
        """Whether any has come."""
        return bool(self._received)

    @property
    def received(self) -> int | None:
        """The first one's number."""
        return next(iter(self._received), None)

    @property
    def exit_code(self) -> ExitCode:
        """What a run that stopped for them returns: 130 where a person alone has asked, 75 where a scheduler has."""
        return ExitCode.INTERRUPTED if set(self._received) == {signal.SIGINT} else ExitCode.STOPPED

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._pressed_at is not None and now - self._pressed_at >= SAME_KEY_PRESS_S:
                self._on_again()
            if self._pressed_at is None:
                self._pressed_at = now
        if number not in self._received:
            self._received.append(number)
            self._on_stop(number)
