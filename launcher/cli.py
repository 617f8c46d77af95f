"""`python -m launcher VERB` and the console script `launcher`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher import streams, train
from launcher.arguments import Parser
from launcher.commands import (
    cancel,
    compare,
    config_init,
    config_show,
    doctor,
    evaluate,
    export,
    list_runs,
    logs,
    plan,
    predict,
    prepare_verbs,
    render,
    status,
    study,
    submit,
    watch,
)
from launcher.commands import report as reports
from launcher.config import load as configs
from launcher.exit_codes import ExitCode
from launcher.signals import StopSignals
from launcher.train import report


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
        return train.main(arguments[1:], prog="launcher train", stop=stop)
    try:
        given = _parser().parse_args(arguments, argparse.Namespace(stop=stop))
        return int(given.run(given))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and streams.lost_output() is not None:
            return 0  # `main` says so
        config = getattr(given, "config", None)
        return report(error if config is None else configs.in_users_lines(error, config, given.overrides))


def _parser() -> Parser:
    parser = Parser(prog="launcher", description="One YAML file trains a ResNet, from a laptop's CPU to many GPUs.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)

    verbs.add_parser("train", help="train a config (the same as python -m launcher.train)")

    verb = verbs.add_parser("demo", help="train on handwritten digits on this machine, in a few minutes")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="override a key of configs/digits_cpu.yaml")
    verb.add_argument("--folder", type=Path, default=Path("~/resnet_demo"), help="of images and runs (%(default)s)")
    verb.set_defaults(run=_demo)

    modules = (
        plan,
        prepare_verbs,
        study,
        doctor,
        render,
        submit,
        status,
        logs,
        watch,
        cancel,
        list_runs,
        reports,
        compare,
        evaluate,
        predict,
        export,
    )
    for module in modules:
        module.add_parser(verbs)

    verb = verbs.add_parser("config", help="write a config, show it with all defaults, or the schema of all keys")
    kinds = verb.add_subparsers(title="what", metavar="WHAT", required=True, parser_class=Parser)
    config_init.add_parser(kinds)
    config_show.add_parsers(kinds)
    return parser


def _demo(given: argparse.Namespace) -> int:
    from launcher.commands.demo import run_demo

    return run_demo(given.folder.expanduser().absolute(), given.overrides, given.stop)


if __name__ == "__main__":
    sys.exit(main())
