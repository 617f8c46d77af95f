"""`launcher prepare show CONFIG --step K`: the images of a step as files have them, and as the network sees them."""

from __future__ import annotations

import argparse
from typing import Any

from launcher.arguments import config_arguments


def add_parser(kinds: Any) -> None:
    """show CONFIG [key=value ...] --step K"""
    kind = kinds.add_parser("show", help="a picture of the images of a step: originals, windows, what is trained on")
    config_arguments(kind)
    kind.add_argument("--step", metavar="K", type=int, default=0, help="completed steps before it (%(default)s)")
    kind.set_defaults(run=_run)


def _run(given: argparse.Namespace) -> int:
    return 0
