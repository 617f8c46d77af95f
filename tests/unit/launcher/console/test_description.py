"""What a run says about itself when it begins to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.console.description import description, optimization, peak_lr_text
from resnet_dist.recipe.durations import Duration

WriteConfig = Callable[..., Path]


def test_all_that_decides_about_the_result_is_said_in_six_lines(write_config: WriteConfig) -> None:
    config = configs.load(
        write_config(),
        [
            "batch.size=128",
            "batch.num_micro_batches=2",
            "batch_norm.span=32",
            "model.name=resnet20",
            "optimizer.name=sgd",
            "optimizer.weight_decay=5e-4",
            "regularization.label_smoothing=0.1",
            "regularization.mixup=0.2",
            "ema.decay=0.999",
            "schedule={base_lr: 0.1, warmup: 1 epoch, decay: cosine}",
            "duration=10 epochs",
        ],
    )
    lines = description(config, 2, step=40, total_steps=113, num_samples=1442)
    assert [line[:11].rstrip() for line in lines] == ["duration", "model", "data", "batch", "optimizer", "peak LR"]
    assert lines[0] == "duration   10 epochs = 113 steps, 40 of them done"
    steps = dataclasses.replace(config, duration=Duration.parse("113 steps"))
    assert description(steps, 2, step=0, total_steps=113, num_samples=1442)[0] == "duration   113 steps"
    assert lines[3] == "batch      128 = 2 workers x 32 x 2 micro-batches, batch norm over 32"
    assert lines[4] == "optimizer  sgd, momentum 0.9, weight decay 0.0005, label smoothing 0.1, mixup 0.2, ema 0.999"
    assert lines[5] == "peak LR    0.05 = base LR 0.1 x 128 / 256, warm-up 1 epoch, then cosine"


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ("{peak_lr: 17.0, decay: constant}", "17"),
        ("{base_lr: 0.1, scaling: none, decay: constant}", "0.1 = base LR, not scaled"),
        ("{base_lr: 0.1, decay: constant}", "3.2 = base LR 0.1 x 8,192 / 256"),
    ],
)
def test_the_scaling_of_the_learning_rate_is_shown(schedule: str, text: str, write_config: WriteConfig) -> None:
    config = configs.load(write_config(), [f"schedule={schedule}", "batch.size=8192", "batch_norm.span=64"])
    assert peak_lr_text(config) == text


def test_no_regularizer_is_named_that_is_off(write_config: WriteConfig) -> None:
    config = configs.load(write_config(), ["optimizer={name: sgd, nesterov: true}"])
    assert list(optimization(config)) == ["sgd", "Nesterov momentum 0.9"]
