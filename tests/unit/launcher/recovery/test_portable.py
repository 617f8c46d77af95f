"""Errors that another process can read, whatever the user raises."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import pytest

from launcher.errors import ConfigError, LauncherError, Problem, UserCodeError, WorkerHung
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import rule_for
from launcher.recovery.policy import Retry
from launcher.recovery.portable import MAX_CHARACTERS, portable
from launcher.run.holder import Holder
from launcher.run.lease import LeaseLost
from resnet_dist.errors import DataError, DivergedError, MissingPackage, OutOfMemory, TrainingError


class TwoArgumentsError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class LockedError(Exception):
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("gloo")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as found:
        return found


def test_a_required_package_that_is_missing_is_no_error_of_the_user() -> None:
    found = portable(raised(ModuleNotFoundError("No module named 'yaml'", name="yaml")))
    assert isinstance(found, MissingPackage)
    assert str(found).endswith(
        "needs pyyaml, which is not installed here. Allowed: install it with: pip install pyyaml"
    )
    assert (rule_for(found).exit_code, rule_for(found).retry) == (ExitCode.CONFIG, Retry.NEVER)
    for name in ("requests", "torch.no_such_module", None):
        assert isinstance(portable(raised(ModuleNotFoundError("No module", name=name))), UserCodeError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TwoArgumentsError(1, 2), "TwoArgumentsError: 1 and 2"),
        (LockedError(), "LockedError: has a lock"),
        (UnprintableError(), "UnprintableError: its message cannot be shown: __str__ raises RuntimeError"),
        (ValueError("\x1b[31mred\udcff"), "ValueError: red "),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: no message"),
        (GeneratorExit(), "GeneratorExit: no message"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_user_is_user_code_with_its_class_and_message(error: BaseException, message: str) -> None:
    found = pickle.loads(pickle.dumps(portable(raised(error))))
    assert (type(found), str(found)) == (UserCodeError, message)
    assert rule_for(found).exit_code is ExitCode.USER_CODE
    assert not rule_for(found).blames_node
    assert "in raised" in found.__notes__[0]  # its traceback


def test_a_process_without_the_users_modules_can_read_an_error_that_they_derive_from_ours() -> None:
    script = """
import pickle, sys, threading
from launcher.recovery.portable import portable
from resnet_dist.errors import DataError
class DerivedError(DataError): pass
error = DerivedError("a.jpg", "broken", 7)
error.lock = threading.Lock()
sys.stdout.buffer.write(pickle.dumps(portable(error)))
"""
    found = pickle.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert (type(found), str(found), found.path) == (DataError, "a.jpg (sample 7): broken", "a.jpg")


@pytest.mark.parametrize(
    "error",
    [
        DataError("a.jpg", "broken", 7),
        DivergedError(3, float("inf"), by_samples=False),
        OutOfMemory(1, 4, "CUDA"),
        WorkerHung("host", 2, "step", 7, "no progress", "id"),
        ConfigError([Problem("c.yaml:3", "batch", "8", "16")]),
        LeaseLost("run", Holder.this_process("")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_ours_keeps_its_class_message_and_attributes(error: LauncherError | TrainingError) -> None:
    error.add_note("a note")
    found = pickle.loads(pickle.dumps(portable(error)))
    assert (type(found), str(found), found.__dict__) == (type(error), str(error), error.__dict__)


def test_a_message_and_a_traceback_have_a_bound() -> None:
    error = portable(raised(ValueError("begin" + "x" * 10_000_000 + "end")))
    for text in (str(error), *error.__notes__):
        assert len(text) < MAX_CHARACTERS + 100
        assert text.endswith("end")
        assert "characters left out" in text
