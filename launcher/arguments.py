"""Command lines: argparse with this project's exit code for a wrong one."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from launcher.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line, with what is allowed."""
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but `key=value` may stand after options, too: argparse takes them in one row only."""
        found, rest = super().parse_known_args(args, namespace)
        if any(action.dest == "overrides" and action.nargs == "*" for action in self._actions):
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
        help="auto: go on from the newest checkpoint, if any; never: refuse to; must: fail without one",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="look into these steps with torch's profiler: a trace and a table in the run directory (log.profile)",
    )
