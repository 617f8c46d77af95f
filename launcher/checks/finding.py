"""The result of a check, and how checks are run: each within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

from launcher.errors import ClusterUnavailable, LauncherError
from resnet_dist.errors import TrainingError
from resnet_dist.input_files import printable

T = TypeVar("T")

CheckStatus = Literal["pass", "warn", "fail", "skipped"]
STATUSES: tuple[CheckStatus, ...] = ("pass", "skipped", "warn", "fail")  # from good to bad


@dataclass(frozen=True)
class Finding:
    """The result of one check. Warnings and failures have `advice`: what to do."""

    name: str
    status: CheckStatus
    found: str
    advice: str = ""
    host: str = ""  # empty: this host, or all hosts

    def on(self, host: str) -> Finding:
        """The same finding on `host`."""
        return replace(self, host=host)

    def described(self) -> dict[str, str]:
        """As JSON; `Finding(**described)` is the same finding."""
        return asdict(self)


def passed(name: str, found: str) -> Finding:
    """A check without a problem."""
    return Finding(name, "pass", found)


def warned(name: str, found: str, advice: str) -> Finding:
    """A problem that makes the run slower or less safe."""
    return Finding(name, "warn", found, advice)


def failed(name: str, found: str, advice: str) -> Finding:
    """A problem with which the run fails, hangs or computes wrong numbers."""
    return Finding(name, "fail", found, advice)


def skipped(name: str, why: str) -> Finding:
    """A check that was not run."""
    return Finding(name, "skipped", why)


def graded(name: str, found: str, advice: str, *, fail: bool = False, warn: bool = False) -> Finding:
    """A failure if `fail`, else a warning if `warn`, else a pass, which needs no advice."""
    if fail:
        return failed(name, found, advice)
    return warned(name, found, advice) if warn else passed(name, found)


@dataclass(frozen=True)
class Check:
    """A check that `run` carries out. It may hang: after `seconds` it counts as failed."""

    name: str
    run: Callable[[], Finding | Iterable[Finding]]
    seconds: float
    slow: bool = False  # left out by --quick


class NoAnswerError(Exception):
    """A function did not return in time."""


def call_within(seconds: float, function: Callable[[], T], name: str) -> T:
    """Call `function` in a thread called `name` and return its result, or raise what it raises.

    Raises NoAnswerError after `seconds`; the thread is left behind.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result.done():
        raise NoAnswerError
    return result.result()


def run_checks(checks: Sequence[Check], seconds: float, quick: bool = False) -> list[Finding]:
    """The findings of all checks, in order, within `seconds` in total.

    A check that exceeds its time limit fails. Checks for which no time is left are skipped.
    """
    deadline = time.monotonic() + seconds
    findings: list[Finding] = []
    for check in checks:
        left = deadline - time.monotonic()
        if quick and check.slow:
            findings.append(skipped(check.name, "left out by --quick"))
        elif left <= 0:
            findings.append(skipped(check.name, f"no time left: all checks together have {seconds:g} s"))
        else:
            findings += _run(check, min(check.seconds, left))
    return findings


def _run(check: Check, seconds: float) -> list[Finding]:
    def findings() -> list[Finding]:
        result = check.run()
        return [result] if isinstance(result, Finding) else list(result)

    try:
        return call_within(seconds, findings, f"check {check.name}")
    except NoAnswerError:
        advice = "find out what it waits for: a disk, a GPU, DNS"
        return [failed(check.name, f"no answer within {seconds:.3g} s", advice)]
    except (ImportError, OSError, RuntimeError, LauncherError, TrainingError) as error:
        found = f"the check failed: {type(error).__name__}: {printable(str(error))}"
        return [failed(check.name, found, "correct this, then run launcher doctor again")]


def worst(findings: Iterable[Finding]) -> CheckStatus:
    """The worst status of all; pass without findings."""
    return max((finding.status for finding in findings), key=STATUSES.index, default="pass")


def require(findings: Iterable[Finding]) -> None:
    """Raise ClusterUnavailable with every failure and what to do; warnings do not count."""
    lines = [
        f"  {finding.name}{f' on {finding.host}' if finding.host else ''}: {finding.found}. {finding.advice}"
        for finding in findings
        if finding.status == "fail"
    ]
    if lines:
        raise ClusterUnavailable("\n".join(["checks of the machines failed", *lines]))
