"""The warnings that `resnet_dist` logs, collected for the record of the run and for the screen."""

from __future__ import annotations

import logging
from collections import deque

_LOGGER = logging.getLogger("resnet_dist")
_MOST = 100  # texts that wait; older ones remain in the worker's log


class LoggedWarnings(logging.Handler):
    """Collects the texts of warnings and errors, from any thread, until `close`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._waiting: deque[str] = deque(maxlen=_MOST)
        _LOGGER.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self._waiting.append(record.getMessage())

    def take(self) -> list[str]:
        """The texts since the last call, oldest first."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def close(self) -> None:
        """Collect nothing more."""
        _LOGGER.removeHandler(self)
        super().close()
