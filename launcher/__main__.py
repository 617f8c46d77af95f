"""`python -m launcher VERB` and the console script `launcher`."""

import signal
import sys

from launcher import signals, streams

TRAINING = ("train", "demo", "study")


def main() -> int:
    """Run the verb of this process's command line; returns its exit code."""
    arguments = sys.argv[1:]
    stop = None
    if arguments[:1] and arguments[0] in TRAINING:
        stop = signals.take_over(signals.OPENING)
    else:
        streams.watch_output()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `launcher/__init__.py` has replaced it
    from launcher import cli  # a quarter of a second, in which signals are handled already

    code = cli.main(arguments, stop)
    if stop is not None:
        stop.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())
