"""Sinks made of sinks: what fails, and what goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from resnet_dist.telemetry.sinks import Several, Unfailing, closing

RECORD = {"kind": "train", "step": 1}


class Recorder:
    """A sink that fails on request."""

    def __init__(self, *fails: str) -> None:
        self.fails, self.did = fails, list[str]()

    def write(self, record: Mapping[str, object]) -> None:
        self._do("write")

    def close(self) -> None:
        self._do("close")

    def _do(self, what: str) -> None:
        self.did.append(what)
        if what in self.fails:
            raise OSError(28, f"no space to {what}")


def test_all_sinks_get_a_record_and_all_are_closed_whatever_one_raises() -> None:
    first, second, third = Recorder(), Recorder("close"), Recorder()
    several = Several([first, second, third])
    several.write(RECORD)
    with pytest.raises(OSError, match="no space to close"):
        several.close()
    assert [sink.did for sink in (first, second, third)] == [["write", "close"]] * 3


def test_an_unfailing_sink_warns_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sink = Recorder("write", "close")
    unfailing = Unfailing("TensorBoard", sink)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            unfailing.write(RECORD)
        unfailing.close()
    assert sink.did == ["write"] * 3 + ["close"]
    assert caplog.messages == ["TensorBoard: OSError: [Errno 28] no space to write. The run goes on without"]


def test_an_error_of_closing_does_not_hide_that_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="diverged"), closing(Recorder("close")):
        raise ValueError("diverged")
    assert "no space to close" in caplog.text


def test_an_error_of_closing_alone_is_raised() -> None:
    with pytest.raises(OSError, match="no space to close"), closing(Recorder("close")):
        pass
