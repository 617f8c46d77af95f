"""`launcher config init|show|schema`."""

from __future__ import annotations

from typing import Any

from launcher.arguments import Parser
from launcher.commands import config_init, config_show


def add_parser(verbs: Any) -> None:
    """init · show · schema"""
    verb = verbs.add_parser("config", help="write a config, show it with all defaults, or the schema of all keys")
    kinds = verb.add_subparsers(title="what", metavar="WHAT", required=True, parser_class=Parser)
    config_init.add_parser(kinds)
    config_show.add_parsers(kinds)
