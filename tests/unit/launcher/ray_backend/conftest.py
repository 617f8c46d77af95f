"""A session of a small run, for drivers without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.console import Progress
from launcher.recovery.notify import Notifier
from launcher.recovery.session import Session
from launcher.run.directory import RunDirectory

MakeSession = Callable[..., Session]


@pytest.fixture
def make_session(write_config: Callable[..., Path], small_run: RunDirectory) -> Iterator[MakeSession]:
    """Make a session of the small run; lines may be added to its config."""
    notifiers: list[Notifier] = []

    def make(*more: str) -> Session:
        config = configs.load(write_config(*more))
        notifiers.append(Notifier(config.notify, small_run))
        return Session(config, small_run, Progress(), notifiers[-1])

    yield make
    for notifier in notifiers:
        notifier.close()


@pytest.fixture
def session(make_session: MakeSession) -> Session:
    return make_session()
