"""Checks are answered in bounded time, whatever hangs or breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from launcher.checks.finding import Check, Finding, failed, passed, require, run_checks, skipped, warned, worst
from launcher.errors import ClusterUnavailable


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """Something to wait for in vain; what hangs is let go when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def waiting_for(event: threading.Event) -> Finding:
    event.wait()
    return passed("hung", "at last")


def test_findings_come_in_the_order_of_the_checks() -> None:
    several = Check("several", lambda: [passed("a", ""), warned("b", "", "")], 5)
    names = [finding.name for finding in run_checks([several, Check("c", lambda: passed("c", ""), 5)], 10)]
    assert names == ["a", "b", "c"]


def test_a_check_that_hangs_fails_and_the_others_are_answered(hang: threading.Event) -> None:
    checks = [Check("hung", lambda: waiting_for(hang), 0.05), Check("next", lambda: passed("next", ""), 5)]
    hung, following = run_checks(checks, 30)
    assert (hung.status, hung.found) == ("fail", "no answer within 0.05 s")
    assert following.status == "pass"


def test_all_checks_together_are_bounded_and_what_no_time_remains_for_is_skipped(hang: threading.Event) -> None:
    started = time.monotonic()
    findings = run_checks([Check(f"hung {number}", lambda: waiting_for(hang), 60) for number in range(5)], 0.2)
    assert time.monotonic() - started < 10  # five minutes, if each were given its own time
    assert [finding.status for finding in findings] == ["fail", "skipped", "skipped", "skipped", "skipped"]
    assert "no time left" in findings[1].found


def test_quick_leaves_out_what_is_slow() -> None:
    (finding,) = run_checks([Check("slow", lambda: failed("slow", "", ""), 5, slow=True)], 10, quick=True)
    assert finding == skipped("slow", "left out by --quick")


def test_a_package_that_a_check_cannot_import_is_a_finding() -> None:
    def imports() -> Finding:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    (finding,) = run_checks([Check("data", imports, 5)], 10)
    assert (finding.name, finding.status) == ("data", "fail")
    assert "No module named 'torchvision'" in finding.found


def test_a_disk_error_is_a_finding_and_a_bug_of_ours_is_raised() -> None:
    def refuse() -> Finding:
        raise OSError(5, "Input/output error")

    (finding,) = run_checks([Check("disk", refuse, 5)], 10)
    assert finding.status == "fail"
    assert "Input/output error" in finding.found
    with pytest.raises(ZeroDivisionError):
        run_checks([Check("mistake", lambda: passed("", str(1 // 0)), 5)], 10)


def test_the_worst_status_counts() -> None:
    assert worst([]) == "pass"
    assert worst([passed("a", ""), skipped("b", "")]) == "skipped"
    assert worst([warned("a", "", ""), passed("b", "")]) == "warn"
    assert worst([warned("a", "", ""), failed("b", "", ""), passed("c", "")]) == "fail"


def test_failures_are_raised_and_warnings_are_not() -> None:
    require([passed("a", ""), warned("b", "", "")])
    with pytest.raises(ClusterUnavailable, match=r"ports on n3: all taken\. end them"):
        require([warned("b", "", ""), failed("ports", "all taken", "end them").on("n3")])


def test_a_finding_travels_as_json() -> None:
    finding = warned("disk", "full", "empty it").on("n1")
    assert Finding(**finding.described()) == finding
