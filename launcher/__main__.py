"""`python -m launcher VERB` and the console script `launcher`."""

import sys

from launcher import signals

TRAINING = ("train", "demo", "study")


def main() -> int:
    """Run the verb of this process's command line; returns its exit code."""
    arguments = sys.argv[1:]
    stop = signals.take_over() if arguments[:1] and arguments[0] in TRAINING else None
    from launcher import cli  # a quarter of a second, in which signals are handled already

    code = cli.main(arguments, stop)
    if stop is not None:
        stop.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())
