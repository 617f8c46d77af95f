"""What a run without Ray records of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.config import load as configs
from launcher.console import Progress
from launcher.local.run import _begin
from launcher.run.directory import RunDirectory
from launcher.run.progress import micro_batches_before


def test_the_next_driver_finds_the_number_of_micro_batches(
    write_config: Callable[..., Path], small_run: RunDirectory
) -> None:
    config = configs.load(write_config())
    _begin(config, small_run, "auto", Progress(), 0, 1, (), 4)
    assert micro_batches_before(small_run) == 4


def test_the_run_directory_has_the_span_as_a_number(write_config: Callable[..., Path], small_run: RunDirectory) -> None:
    config = configs.load(write_config("batch_norm: {span: auto}"), ["batch.size=192"])
    begun = _begin(config, small_run, "auto", Progress(), 0, 1, (), None)
    assert begun.start.config.batch_norm.span == 64
    assert configs.load(small_run.config).batch_norm.span == 64
