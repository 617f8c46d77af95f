"""Errors that leave the process in which they were raised, as text: the user's classes stay behind.

The other process may not have the user's modules, and an exception of the user may not survive pickling: a constructor
with several arguments, a lock, a message of a gigabyte, a `__str__` that raises.
"""

from __future__ import annotations

import dataclasses
import traceback

from launcher.errors import PROJECT, LauncherError, UserCodeError
from resnet_dist.errors import MissingPackage, TrainingError
from resnet_dist.input_files import printable

MAX_CHARACTERS = 10_000  # of a message or a traceback: a person reads its beginning and its end
# The modules of `dependencies` in pyproject.toml that have another name than their package, and all others.
_REQUIRED = {"PIL": "pillow", "yaml": "pyyaml"}
_REQUIRED |= {name: name for name in ("torch", "torchvision", "numpy", "pydantic", "tensorboard", "rich", "textual")}
_OURS = ("launcher", "resnet_dist", "cluster")


def portable(error: BaseException) -> LauncherError | TrainingError:
    """`error` as an error that every process of a run can unpickle: with its message, and without its cause.

    An error of the launcher or of resnet_dist keeps its class and its attributes with plain values. Any other becomes
    a UserCodeError with the name of its class, and its traceback as a note; but a missing package that this project
    requires is MissingPackage.
    """
    error = missing_package(error) or error
    if not isinstance(error, LauncherError | TrainingError):
        found: LauncherError | TrainingError = UserCodeError(type(error).__name__, message_of(error) or "no message")
        found.add_note(traceback_of(error))
        return found
    kind = next(base for base in type(error).__mro__ if _is_ours(base))  # the user may have derived a class
    assert issubclass(kind, LauncherError | TrainingError)
    found = kind.__new__(kind)
    found.args = (message_of(error),)
    found.__dict__.update({name: value for name, value in error.__dict__.items() if _is_plain(value)})
    return found


def missing_package(error: BaseException) -> MissingPackage | None:
    """MissingPackage if `error` says that a package is not installed that every run requires; else None."""
    package = _REQUIRED.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    return None if package is None else MissingPackage(PROJECT, package, f"pip install {package}")


def message_of(error: BaseException) -> str:
    """The message of any exception, in bounded length and as `printable` text."""
    try:
        return _bounded(str(error))
    except Exception as failed:
        return f"its message cannot be shown: __str__ raises {type(failed).__name__}"


def traceback_of(error: BaseException) -> str:
    """The traceback of any exception, with its causes, in bounded length and as `printable` text."""
    return _bounded("".join(traceback.format_exception(error)).rstrip())


def _bounded(text: str) -> str:
    half = MAX_CHARACTERS // 2
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:half]} ... {len(text) - 2 * half:,} characters left out ... {text[-half:]}"
    return printable(text)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _OURS


def _is_plain(value: object) -> bool:
    """Whether a value consists of numbers, text, and dataclasses of this project."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if dataclasses.is_dataclass(value):
        return _is_ours(type(value))
    return type(value) in (str, int, float, bool, type(None))
