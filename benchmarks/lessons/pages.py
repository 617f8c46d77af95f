"""Writes the data of the studies into docs/lessons: a block of each page, the list of lessons, and the figures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.lessons import data, drawing
from benchmarks.lessons.data import JOBS, Measured
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.wording import duration

LESSONS = Path(__file__).parents[2] / "docs" / "lessons"
BUSY = 1.2  # wall time / time on free CPUs from which on others have used them, too
BEGIN = "<!-- from the data: make lessons -->"
END = "<!-- end -->"
_BLOCK = re.compile(rf"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def data_file(lesson: Lesson, folder: Path = LESSONS) -> Path:
    """The data of a lesson."""
    return folder / "data" / f"{lesson.study}.json"


def figure_file(lesson: Lesson, folder: Path = LESSONS) -> Path:
    """The figure of a lesson."""
    return folder / "figures" / f"{lesson.study}.svg"


def page_file(lesson: Lesson, folder: Path = LESSONS) -> Path:
    """The page of a lesson."""
    return folder / f"{lesson.study}.md"


def fingerprint(file: Path) -> str:
    """What the metadata of a figure say about its data."""
    return f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"


def figure(lesson: Lesson, folder: Path = LESSONS) -> bytes:
    """The figure of a lesson, from its data."""
    file = data_file(lesson, folder)
    measured = data.read(file)
    return drawing.svg(lesson.study, lesson.draw(measured), lesson.panels, fingerprint(file))


def block(lesson: Lesson, measured: Measured) -> str:
    """The part of a page that the data decide: figure, hypothesis, table, findings and duration."""
    hypothesis = " ".join(measured.content["hypothesis"].split())
    rows = lesson.table(measured)
    return "\n".join(
        [
            "",
            f"![{lesson.study}](figures/{lesson.study}.svg)",
            "",
            f"*Hypothesis, written before:* {hypothesis}",
            "",
            f"| {' | '.join(rows[0])} |",
            f"|{'---|' * len(rows[0])}",
            *(f"| {' | '.join(row)} |" for row in rows[1:]),
            "",
            *(f"- {finding}" for finding in lesson.findings(measured)),
            "",
            _how(measured),
            "",
        ]
    )


def _how(measured: Measured) -> str:
    """How the numbers were measured, and what they mean."""
    content = measured.content
    kind = "Full version" if content["full"] else "Preview"
    seeds = len({run["seed"] for run in content["runs"] if run["counts"]})
    took = f"Here they took {duration(content['wall_seconds'])}"
    if content["wall_seconds"] > BUSY * measured.seconds:
        took += f", since other programs used the {content['num_cpus']} CPUs as well"
    return (
        f"{kind}: {len(content['runs'])} runs. They used {content['cpu_seconds']:,} s of CPU time: "
        f"{duration(measured.seconds)} on {JOBS} free CPUs. {took} ({content['time'][:10]}). Numbers are means over "
        f"{seeds} seeds ± half of the 95 % interval; differences are paired by seed, with their 95 % interval in "
        "parentheses. An interval that includes 0 is inconclusive. The intervals are "
        f"[t-intervals](README.md#how-to-read-the-numbers): with {seeds} seeds they may go below 0 % and above 100 %."
    )


def page(text: str, lesson: Lesson, measured: Measured) -> str:
    """`text` of a lesson's page with the block of the data. Raises ValueError without a place for it."""
    return _replaced(text, block(lesson, measured), lesson.study)


def index(text: str, lessons: Mapping[str, Lesson], folder: Path = LESSONS) -> str:
    """`text` of docs/lessons/README.md with the list of lessons: question, answer and duration."""
    rows = ["", "| question | answer of these short runs | on two free CPUs |", "|---|---|---|"]
    for lesson in lessons.values():
        file = page_file(lesson, folder)
        title = _TITLE.search(file.read_text(encoding="utf-8"))
        measured = data.read(data_file(lesson, folder))
        answer = lesson.answer(measured)
        rows.append(
            f"| [{title[1] if title else lesson.study}]({file.name}) | {answer} | {duration(measured.seconds)} |"
        )
    return _replaced(text, "\n".join([*rows, "", ""]), "README")


def _replaced(text: str, new: str, name: str) -> str:
    if len(_BLOCK.findall(text)) != 1:
        raise ValueError(f"{name}.md needs one block between {BEGIN} and {END}")
    return _BLOCK.sub(lambda _: new, text)
