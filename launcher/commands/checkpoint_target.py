"""The trained model that a command line names: `RUN|CHECKPOINT [--weights W] [--best]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from launcher.inference.trained import Saved, saved
from launcher.run.named import CONFIGS, find_here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN|CHECKPOINT [--weights W] [--best]"""
    parser.add_argument(
        "target", metavar="RUN|CHECKPOINT", help="a run directory, its name, its config, or one of its checkpoints"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "model", "ema"),
        default="auto",
        help="auto: the moving average of the weights if the run keeps one; model: the weights of the last step",
    )
    parser.add_argument(
        "--best", action="store_true", help="the kept checkpoint with the highest top-1, not the newest"
    )


def find(given: argparse.Namespace) -> Saved:
    """The checkpoint that the command line names. Raises UsageError, or CheckpointError if it is damaged."""
    path = Path(os.path.abspath(Path(given.target).expanduser()))  # noqa: PTH100 - resolve() would follow links
    is_path = path.exists() and path.suffix not in CONFIGS
    return saved(path if is_path else find_here(given.target).path, best=given.best)
