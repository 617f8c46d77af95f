"""Handlers for SIGTERM, SIGUSR2 and Ctrl-C: save at the next step boundary, then exit."""

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

# A terminal sends Ctrl-C to every process of a command, and a parent (uv run, srun) may pass it on within milliseconds.
# Assumption: a second key press on purpose comes later than this.
SAME_KEY_PRESS_S = 0.25


def _end_at_once() -> None:
    os._exit(ExitCode.INTERRUPTED)


class StopSignals:
    """A context that records stopping signals, and calls `on_stop` for the first of each kind.

    Repeated signals are ignored, except for a second Ctrl-C, which calls `on_again`: by default the process exits.
    Several signals at once count as one request; Python does not keep their order. Outside of the main thread, where
    Python allows no signal handlers, the context has no effect.
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
