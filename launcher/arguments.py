"""Command line parsers: argparse with this project's exit codes."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from launcher.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError in place of exiting with 2."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the usage."""
        if dashed := re.search(r"unrecognized arguments:.*?--([a-z_.]+=\S+)", message):
            message += f". Allowed: keys of a config without dashes: {dashed[1]}"
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but accept `key=value` after options, too; argparse only takes consecutive ones."""
        overrides = [action for action in self._actions if action.dest == "overrides" and action.nargs == "*"]
        for action in overrides:
            action.required = False  # else argparse names it among the arguments that are missing
        found, rest = super().parse_known_args(args, namespace)
        if overrides:
            found.overrides = [*found.overrides, *(text for text in rest if not text.startswith("-"))]
            rest = [text for text in rest if text.startswith("-")]
        return found, rest


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG [key=value ...]"""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, for example configs/digits_cpu.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. batch.size=256")


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG [key=value ...] [--resume auto|never|must] [--profile FIRST:LAST]"""
    config_arguments(parser)
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: resume from the newest checkpoint, if any; never: fail if there is one; must: fail without one",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="trace these steps with torch's profiler and write a trace and a table (log.profile)",
    )
