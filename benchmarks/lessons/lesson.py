"""What a lesson takes from the data of its study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.lessons.data import Measured
from benchmarks.lessons.drawing import Draw


@dataclass(frozen=True)
class Lesson:
    """A lesson: its study, and how the data become a figure, a table and sentences.

    answer    one sentence for the list of all lessons
    table     the rows of a table, with a first row of names
    findings  sentences
    draw      draws the panels of the figure
    """

    study: str
    answer: Callable[[Measured], str]
    table: Callable[[Measured], list[list[str]]]
    findings: Callable[[Measured], list[str]]
    draw: Callable[[Measured], Draw]
    panels: int = 2
    curves: Sequence[str] = ()  # fields of train records that the data keep
    layers: Sequence[str] = ()  # fields of "layers" records that the data keep
