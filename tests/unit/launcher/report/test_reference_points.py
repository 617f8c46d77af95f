"""MLPerf's reference points: the numbers of its own checker, and what they say about runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher.report.reference_points import Check, check, point_of, points, pruned
from launcher.report.run_record import read
from launcher.run.directory import RunDirectory

WriteRun = Callable[..., RunDirectory]

# RCP_Checker("training", "4.0.0", "resnet") of mlperf_logging 4.1.68: batch, RCP Mean, Min Epochs of each row.
OF_CHECKER = [
    (1632, 35.0, 33.80234), (3264, 35.15385, 34.30965), (4096, 39.875, 38.63396), (8192, 41.875, 40.63402),
    (13056, 45.5, 44.67681), (32768, 56.0, 55.44498), (49152, 68.0, 67.21509), (58880, 80.0, 78.96915),
    (65536, 84.5, 83.35581), (67840, 85.84615, 85.18264),
]  # fmt: skip
# Its pruned rows, between which it interpolates: batch, mean, Min Epochs.
INTERPOLATED = [(2048, 35.03922, 33.85826), (8192, 38.63574, 37.81051), (16384, 44.42383, 43.69747)]
IMAGENET = """\
schema: 1
name: {name}
model: {{name: resnet50, num_classes: 1000}}
data: {{root: /imagenet, resolution: 224}}
batch: {{size: {batch}}}
duration: 44 epochs
"""


def test_the_bounds_are_those_of_the_checker() -> None:
    found = [(point.batch, point.mean, point.least) for point in points()]
    assert [batch for batch, *_ in found] == [batch for batch, *_ in OF_CHECKER]
    for own, theirs in zip(found, OF_CHECKER, strict=True):
        assert own[1:] == pytest.approx(theirs[1:], abs=1e-4)


def test_the_points_are_pruned_and_interpolated_as_in_the_checker() -> None:
    kept = pruned(points())
    assert [point.batch for point in kept] == [1632, 3264, 32768, 49152, 67840]
    for batch, mean, least in INTERPOLATED:
        point, _ = point_of(batch, kept)
        assert point is not None
        assert (point.mean, point.least) == pytest.approx((mean, least), abs=1e-4)


def checked(write_run: WriteRun, reached_at: float | None, batch: int = 8192, **more: Any) -> Check | None:
    records: list[dict[str, Any]] = [
        {"kind": "event", "event": "started", "step": 0, "detail": {"num_samples": 1_281_167, **more}}
    ]
    for epoch in range(30, 48):
        top1 = 0.76 if reached_at is not None and epoch >= reached_at else 0.75
        records.append({"kind": "eval", "step": epoch, "epoch": epoch, "top1": top1, "num_samples": 50_000})
    return check(read(write_run(records=records, config=IMAGENET, batch=batch)))


@pytest.mark.parametrize(
    ("reached_at", "words"),
    [
        (37, "75.9 % top-1 after 37.00 epochs: FASTER than MLPerf accepts (a mean of at least 37.81)"),
        (42, "after 42.00 epochs: within what MLPerf accepts (a mean of at least 37.81); the reference runs with this"
             " batch took 41 to 44 epochs"),
        (46, "accepted, and slower than all reference runs with this batch (41 to 44 epochs)"),
        (None, "has not reached 75.9 % top-1; the reference runs did after 38.6 epochs"),
    ],
    ids=["faster", "within", "slower", "never"],
)  # fmt: skip
def test_a_run_may_converge_slower_than_the_reference_and_not_faster(
    write_run: WriteRun, reached_at: float | None, words: str
) -> None:
    found = checked(write_run, reached_at)
    assert found is not None
    assert words in found.verdict


def test_a_batch_above_all_points_has_none(write_run: WriteRun) -> None:
    found = checked(write_run, 42, batch=131_072)
    assert found is not None
    assert found.verdict == "no reference point for a batch of 131,072: the largest one is for 67,840"


def test_other_images_and_networks_are_not_checked(write_run: WriteRun) -> None:
    assert checked(write_run, 42, num_samples=1000) is None
    assert check(read(write_run("digits"))) is None
