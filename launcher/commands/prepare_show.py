"""`launcher prepare show CONFIG --step K`: a picture of the images of a step, as files have them and as trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launcher.arguments import config_arguments
from launcher.config import load as configs
from launcher.errors import UsageError
from resnet_dist.checkpoint.disk import reason
from resnet_dist.errors import DataError

MOST_IMAGES = 200  # in one picture, which is then 27,000 pixels high


def add_parser(kinds: Any) -> None:
    """show CONFIG [key=value ...] [--step K] [--split train|val] [--rank R] [--num N] [--output FILE.png]"""
    kind = kinds.add_parser("show", help="a picture of the images of a step: files, windows, and what is trained on")
    config_arguments(kind)
    kind.add_argument("--step", metavar="K", type=int, help="the step after K completed steps (default: 0)")
    kind.add_argument("--split", choices=("train", "val"), default="train", help="val: the images of an evaluation")
    kind.add_argument("--rank", metavar="R", type=int, default=0, help="the worker that has the images (%(default)s)")
    kind.add_argument("--num", metavar="N", type=int, default=12, help="number of images (%(default)s)")
    kind.add_argument("--output", metavar="FILE.png", type=Path, help="default: NAME-step-K.png or NAME-val.png")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    if given.split == "val" and given.step is not None:
        raise UsageError("--step: an evaluation has the same images after every step. Allowed: without --split val")
    if given.output is not None and given.output.suffix.lower() != ".png":
        raise UsageError(f"--output {given.output}: Allowed: a file NAME.png")
    from launcher.prepare import (
        contact_sheet,
        samples_of_step,  # torch: seconds that other verbs should not pay
    )

    config = configs.load(given.config, given.overrides)
    _check_range("--num", given.num, MOST_IMAGES)
    _check_range("--rank", given.rank, config.workers.most - 1, least=0)
    step, (train, val) = given.step or 0, samples_of_step.splits(config)
    if given.split == "val":
        found, where = samples_of_step.evaluated(config, val, given.rank, given.num), "val"
    else:
        num_steps = config.duration.steps(batch_size=config.batch.size, num_samples=len(train))
        _check_range("--step", step, num_steps - 1, least=0)
        found, where = samples_of_step.trained(config, train, step, given.rank, given.num), f"step {step}"
    file = given.output or Path(f"{config.name}-{where.replace(' ', '-')}.png")
    title = f"{config.name}, {where}, worker {given.rank} of {config.workers.most}"
    sheet = contact_sheet.draw(found.samples, [title, found.described])
    try:
        sheet.save(file)
    except OSError as error:
        raise DataError(str(file), f"cannot be written: {reason(error)}") from error
    print(f"{file}: {len(found.samples)} images, {sheet.width} x {sheet.height} pixels")
    return 0


def _check_range(option: str, number: int, most: int, *, least: int = 1) -> None:
    if not least <= number <= most:
        raise UsageError(f"{option} {number}: Allowed: a whole number from {least} to {most}")
