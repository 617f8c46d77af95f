"""A process that trains one run after the other, so that torch is imported once.

Orders and answers are pickled through two pipes.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from launcher import streams
from launcher.local.child import die_with
from launcher.study.training import Order, RunStop, carry_out


def main(jobs: int, answers: int, parent: int) -> None:
    """Carry out orders until there are no more."""
    streams.protect()
    die_with(parent)
    stop = RunStop("ignore", announce=False).install()
    with Connection(jobs, writable=False) as orders, Connection(answers, readable=False) as answer:
        while True:
            try:
                order: Order = orders.recv()
            except (EOFError, OSError):
                break
            answer.send(carry_out(order, stop, answer.send))
    stop.ignore()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
