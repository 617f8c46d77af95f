from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.study.checks import check, missing_images
from tests.unit.launcher.study.conftest import MakePlan

GRID = "grid: {batch.size: [8, 16], optimizer.nesterov: [false, true]}\n"
BAD = {
    "a metric that does not exist": (
        "metrics: [top1, los]",
        r'5: metrics\[1\]: found "los". Allowed: top1, top5, loss, .*Did you mean loss',
    ),
    "a metric of the training split that is not evaluated": (
        "metrics: [gap]",
        r'5: metrics\[0\]: found "gap", and the runs are not evaluated on the training split.*evaluate.train',
    ),
    "a metric to compare": ("compare: {metric: accuracy, baseline: {batch.size: 8}}", '5: compare.metric: found "acc'),
    "a baseline that does not vary": (
        "compare: {baseline: {model.name: resnet20}}",
        "5: compare.baseline.model.name: found .*, which the study does not vary. Allowed: batch.size, optimizer",
    ),
    "a baseline that no run has": (
        "compare:\n  baseline: {batch.size: 9}",
        "6: compare.baseline.batch.size: found 9, which no run has. Allowed: 8, 16",
    ),
    "x that does not vary": ("figures: [{kind: bar, x: seed, y: top1}]", r'5: figures\[0\].x: found "seed"'),
    "by that does not vary": ("figures: [{kind: curve, y: train.loss, by: size}]", r'5: figures\[0\].by: found "size"'),
    "a curve of a metric": ("figures: [{kind: curve, y: top1}]", r"5: figures\[0\].y: .*Allowed: train.FIELD"),
    "a line of a metric that does not exist": ("figures: [{kind: line, x: batch.size, y: top}]", r"5: figures\[0\].y"),
    "combinations at one place": (
        "figures: [{kind: line, x: batch.size, y: top1, by: batch.size}]",
        r"5: figures\[0\].by: two combinations have the same x and the same line: size 8, nesterov false; size 8, nest",
    ),
    "a tuning by a metric that does not exist": ("tune: {keys: [batch.size], by: topp1}", '5: tune.by: found "topp1"'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_name_that_does_not_fit_is_refused(make_plan: MakePlan, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ConfigError, match=f"study.yaml:{message}"):
        check(make_plan(GRID + text))


@pytest.mark.parametrize(
    "text",
    [
        "overrides: {evaluate.train: true}\nmetrics: [gap, train_loss, train.gradient_norm, seconds]",
        "metrics: [top1, 'my_module:measure', zeros]",
        "figures: [{kind: line, x: batch.size, y: top1, by: optimizer.nesterov}]",
        "figures: [{kind: line, x: batch.size, y: top1, by: [optimizer.nesterov]}]",
        "figures: [{kind: layers, y: gradient_norm}, {kind: curve, y: eval.top1}]",
        "tune: {keys: [batch.size]}\nfigures: [{kind: line, x: optimizer.nesterov, y: top1, by: []}]",
        "compare: {baseline: {batch.size: 8, optimizer.nesterov: true}}",
    ],
)
def test_names_that_fit_are_accepted(make_plan: MakePlan, text: str) -> None:
    check(make_plan(GRID + text))


def test_images_that_are_missing_are_one_error_with_the_command_that_writes_them(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan("grid: {data.root: [images, other, a b/digits]}\nseeds: [0, 1]")
    (tmp_path / "images" / "train").mkdir(parents=True)
    assert missing_images(plan.runs[:2]) is None
    text = str(missing_images(plan.runs))
    assert text == (
        f"{tmp_path}/other/train, {tmp_path}/a b/digits/train: no such folder, and 4 runs would train on its images; "
        f"to write them: launcher prepare digits '{tmp_path}/a b/digits'"
    )


def test_images_that_are_not_in_a_folder_are_not_missing(make_plan: MakePlan) -> None:
    assert missing_images(make_plan("").runs) is not None
    assert missing_images(make_plan("overrides: {data.source: 'my_module:images'}").runs) is None
    assert missing_images(make_plan("overrides: {data.root: 's3://bucket/images'}").runs) is None
