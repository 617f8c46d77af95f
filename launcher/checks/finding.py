"""What a check says, and how checks are run: each in a bounded time, whatever hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from launcher.errors import ClusterUnavailable, LauncherError
from resnet_dist.errors import TrainingError

Status = Literal["pass", "warn", "fail", "skipped"]
STATUSES: tuple[Status, ...] = ("pass", "skipped", "warn", "fail")  # from good to bad


@dataclass(frozen=True)
class Finding:
    """The answer of one check. `advice` says what to do; it is there for warn and fail."""

    name: str
    status: Status
    found: str
    advice: str = ""
    host: str = ""  # empty: this host, or all of them

    def on(self, host: str) -> Finding:
        """The same, said of `host`."""
        return replace(self, host=host)

    def described(self) -> dict[str, Any]:
        """As JSON; `Finding(**described)` is the same finding."""
        return asdict(self)


def passed(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "pass", found)


def warned(name: str, found: str, advice: str) -> Finding:
    """The run can do without, slower or with less safety."""
    return Finding(name, "warn", found, advice)


def failed(name: str, found: str, advice: str) -> Finding:
    """The run would fail, hang or give wrong numbers."""
    return Finding(name, "fail", found, advice)


def skipped(name: str, why: str) -> Finding:
    """Not looked at."""
    return Finding(name, "skipped", why)


@dataclass(frozen=True)
class Check:
    """One question. `run` answers with one finding or several and may hang: it is given `seconds`, and then left."""

    name: str
    run: Callable[[], Finding | Iterable[Finding]]
    seconds: float
    slow: bool = False  # left out by --quick


def run_checks(checks: Sequence[Check], seconds: float, quick: bool = False) -> list[Finding]:
    """The findings of all checks, in order, within `seconds` altogether.

    A check that does not answer in its time fails, and the thread that it hangs in is left behind. Those that no time
    remains for are skipped, and say so.
    """
    deadline = time.monotonic() + seconds
    findings: list[Finding] = []
    for check in checks:
        left = deadline - time.monotonic()
        if quick and check.slow:
            findings.append(skipped(check.name, "left out by --quick"))
        elif left <= 0:
            findings.append(skipped(check.name, f"no time was left of {seconds:g} s for all checks"))
        else:
            findings += _answer(check, min(check.seconds, left))
    return findings


def _answer(check: Check, seconds: float) -> list[Finding]:
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            answer = check.run()
            box["findings"] = [answer] if isinstance(answer, Finding) else list(answer)
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if "findings" in box:
        findings: list[Finding] = box["findings"]
        return findings
    error = box.get("error")
    if error is None:
        return [
            failed(check.name, f"no answer within {seconds:.3g} s", "look at what it waits for: a disk, a GPU, DNS")
        ]
    if isinstance(error, OSError | RuntimeError | LauncherError | TrainingError):
        said = f"{type(error).__name__}: {error}"
        return [failed(check.name, f"could not be carried out: {said}", "mend what is named, then run doctor again")]
    raise error  # a mistake of ours


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status of all; pass where there is none."""
    return max((finding.status for finding in findings), key=STATUSES.index, default="pass")


def require(findings: Iterable[Finding]) -> None:
    """Raise ClusterUnavailable that names what failed and what to do; warnings pass."""
    bad = [finding for finding in findings if finding.status == "fail"]
    if bad:
        said = (
            f"{finding.name}{f' on {finding.host}' * bool(finding.host)}: {finding.found}. {finding.advice}"
            for finding in bad
        )
        raise ClusterUnavailable("the machines are not fit for the run\n" + "\n".join(f"  {line}" for line in said))


def number(count: int, noun: str) -> str:
    """A count with its noun: `1 GPU`, `2 GPUs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_bytes(count: float) -> str:
    """A size for a person, in powers of 1024.

    >>> in_bytes(3 * 2**30), in_bytes(100), in_bytes(64 * 2**20)
    ('3.0 GiB', '100 B', '64.0 MiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.1f} {units[power]}"
