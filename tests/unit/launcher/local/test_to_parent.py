"""What a child shows goes to its parent, and never stops the training."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from launcher.local.to_parent import ProgressCall, ToParent


def test_lines_and_records_are_passed_on_but_large_ones_that_nobody_sees() -> None:
    receiving, sending = os.pipe()
    with Connection(receiving, writable=False) as answers, Connection(sending, readable=False) as answer:
        progress = ToParent(answer)
        progress.print("run: starts at step 0")
        progress.record({"kind": "layers", "step": 3})
        progress.record({"kind": "train", "step": 3})
        assert [answers.recv(), answers.recv()] == [
            ProgressCall("print", "run: starts at step 0"),
            ProgressCall("record", {"kind": "train", "step": 3}),
        ]
        assert not answers.poll()


def test_a_parent_that_does_not_read_loses_lines_and_stops_nothing() -> None:
    receiving, sending = os.pipe()
    with Connection(receiving, writable=False) as answers, Connection(sending, readable=False) as answer:
        progress = ToParent(answer)
        for number in range(10_000):
            progress.print(f"line {number}")
        assert answers.recv() == ProgressCall("print", "line 0")
