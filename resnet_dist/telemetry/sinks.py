"""Sinks made of other sinks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from resnet_dist.telemetry.metrics_file import Sink

log = logging.getLogger(__name__)


class Several:
    """Passes each record on to several sinks, in their order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, record: Mapping[str, object]) -> None:
        """Write to all; the first error ends it."""
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        """Close all, whatever any of them raises; the first error is raised then."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self._sinks):
                stack.callback(sink.close)


class Unfailing:
    """A sink that cannot end the run: the first error of `sink` is logged as a warning, and later ones are ignored.

    It goes on writing, since the reason (a full disk, a server that is down) may end.
    """

    def __init__(self, name: str, sink: Sink) -> None:
        self._name, self._sink, self._has_failed = name, sink, False

    def write(self, record: Mapping[str, object]) -> None:
        """Write, if that is possible."""
        self.attempt(lambda: self._sink.write(record))

    def close(self) -> None:
        """Close, if that is possible."""
        self.attempt(self._sink.close)

    def attempt(self, action: Callable[[], object]) -> None:
        """Do something with the sink, if that is possible."""
        try:
            action()
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("%s: %s: %s. The run goes on without", self._name, type(error).__name__, error)


@contextlib.contextmanager
def closing(sink: Sink) -> Iterator[None]:
    """Close `sink` after the block. An error of the block is not replaced by one of closing, which is logged then."""
    try:
        yield
    except BaseException:
        try:
            sink.close()
        except Exception as error:
            log.warning("after an error, a sink could not be closed either: %s", error)
        raise
    sink.close()
