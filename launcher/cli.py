"""`python -m launcher VERB` and the console script `launcher`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import streams
from launcher.arguments import Parser
from launcher.config import load as configs
from launcher.exit_codes import ExitCode
from launcher.signals import StopSignals

# The modules of launcher.commands by verb, in the order of `launcher --help`.
VERBS = {
    "plan": "plan",
    "prepare": "prepare_verbs",
    "study": "study",
    "doctor": "doctor",
    "render": "render",
    "submit": "submit",
    "status": "status",
    "logs": "logs",
    "watch": "watch",
    "cancel": "cancel",
    "list": "list_runs",
    "report": "report",
    "compare": "compare",
    "evaluate": "evaluate",
    "predict": "predict",
    "export": "export",
    "config": "config_verbs",
}


def main(arguments: Sequence[str] | None = None, stop: StopSignals | None = None) -> int:
    """Run a verb; returns its exit code. `stop`: the signals that this process handles already."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, stop)
    finally:  # also after SystemExit of the parser
        if (lost := streams.lost_output()) is not None:
            streams.discard_output()
            if not isinstance(lost, BrokenPipeError):  # `launcher compare A B | head` is no error
                print(f"error: the output cannot be written: {lost.strerror}", file=sys.stderr, flush=True)
                sys.exit(ExitCode.UNAVAILABLE)


def _run(arguments: Sequence[str], stop: StopSignals | None) -> int:
    given = argparse.Namespace(config=None)
    if arguments[:1] == ["train"]:  # has its own parser, which accepts options anywhere
        from launcher import train

        return train.main(arguments[1:], prog="launcher train", stop=stop)
    try:
        given = parser_of(arguments).parse_args(arguments, argparse.Namespace(stop=stop))
        return int(given.run(given))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and streams.lost_output() is not None:
            return 0  # `main` says so
        from launcher.train import report

        config = getattr(given, "config", None)
        return report(error if config is None else configs.in_users_lines(error, config, given.overrides))


def parser_of(arguments: Sequence[str] = ()) -> Parser:
    """The parser of a command line. Only the module of its verb is imported, which makes a verb start fast."""
    parser = Parser(prog="launcher", description="One YAML file trains a ResNet, from a laptop's CPU to many GPUs.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)

    verbs.add_parser("train", help="train a config (the same as python -m launcher.train)")

    verb = verbs.add_parser("demo", help="train on handwritten digits on this machine, in a few minutes")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="override a key of configs/digits_cpu.yaml")
    verb.add_argument("--folder", type=Path, default=Path("~/resnet_demo"), help="of images and runs (%(default)s)")
    verb.set_defaults(run=_demo)

    first = next(iter(arguments), "")
    for name in [VERBS[first]] if first in VERBS else VERBS.values():
        importlib.import_module(f"launcher.commands.{name}").add_parser(verbs)
    return parser


def _demo(given: argparse.Namespace) -> int:
    from launcher.commands.demo import run_demo

    return run_demo(given.folder.expanduser().absolute(), given.overrides, given.stop)


if __name__ == "__main__":
    sys.exit(main())
