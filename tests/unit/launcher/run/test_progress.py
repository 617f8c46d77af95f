"""What is made of an attempt for the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.config import load as configs
from launcher.config.schema import with_micro_batches
from launcher.recovery.history import describe_failure
from launcher.run.progress import LostWork
from resnet_dist.errors import DivergedError


def test_the_span_that_auto_chose_outlives_another_number_of_micro_batches(write_config: Callable[..., Path]) -> None:
    overrides = ["batch.size=192", "batch.num_micro_batches=auto"]
    config = with_micro_batches(configs.load(write_config(), overrides), 2)
    assert config.batch.num_micro_batches == 2
    assert config.batch_norm.span == 64  # of 192; for the 96 of a micro-batch, auto would be 48


def test_a_number_of_micro_batches_that_is_given_stays(write_config: Callable[..., Path]) -> None:
    config = configs.load(write_config(), ["batch.size=192", "batch.num_micro_batches=2"])
    assert with_micro_batches(config, 3) is config


def test_only_a_divergence_that_other_samples_may_help_has_a_step_to_pass_over() -> None:
    loss = LostWork(first_step=0, last_step=7, saved_step=5, seconds=1.0)
    assert describe_failure(DivergedError(7, float("nan")), 1, loss, None).bad_step == 7
    assert describe_failure(DivergedError(7, 1.0, "the loss scale", by_samples=False), 1, loss, None).bad_step is None
