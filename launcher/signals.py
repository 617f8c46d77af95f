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

SAME_KEY_PRESS_S = 0.5  # assumption: nobody presses a key twice on purpose in this time, nor reads what the first did


class StopSignals:
    """While it is entered, the first stopping signal is remembered and told to `on_stop`; repeats are ignored.

    A second SIGINT ends the process at once: whoever presses Ctrl-C twice means it. One that comes together with the
    first is the same key press: a terminal tells every process, and one that starts others passes it on. Outside the
    main thread, where Python allows no handlers, entering does nothing.
    """

    def __init__(self, on_stop: Callable[[int], None] = lambda number: None) -> None:
        self._on_stop = on_stop
        self._received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, object] = {}

    @property
    def stopped(self) -> bool:
        """Whether any has come."""
        return self._received is not None

    @property
    def received(self) -> int | None:
        """The first one's number."""
        return self._received

    @property
    def exit_code(self) -> ExitCode:
        """What a run that stopped for the signal returns."""
        return ExitCode.INTERRUPTED if self._received == signal.SIGINT else ExitCode.STOPPED

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
            self._on_stop(number)
        elif number == self._received == signal.SIGINT and time.monotonic() - self._received_at > SAME_KEY_PRESS_S:
            os._exit(ExitCode.INTERRUPTED)
