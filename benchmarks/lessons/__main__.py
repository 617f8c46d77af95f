"""Rewrite the lessons in docs/lessons from the data of their studies.

    python -m benchmarks.lessons                    pages and figures, from docs/lessons/data
    python -m benchmarks.lessons --run              carry out all studies before (the previews)
    python -m benchmarks.lessons --run depth blocks --full

A study goes on where it stopped: runs that are finished are not repeated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.lessons import data, pages
from benchmarks.lessons.data import CPU_SECONDS, JOBS
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.studies import LESSONS
from launcher.study import load as studies

ROOT = Path(__file__).parents[2]


def carry_out(lesson: Lesson, *, full: bool) -> None:
    """Train the runs of a study, and write its data. Raises CalledProcessError if the study fails."""
    file = f"configs/studies/{lesson.study}.yaml"
    folder = studies.load(ROOT / file, full=full).folder
    command = [sys.executable, "-m", "launcher", "study", file, "--jobs", str(JOBS), *(["--full"] if full else [])]
    before, counter = _cpu_seconds(), folder / CPU_SECONDS
    try:
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:  # a study may take several sessions
        used = float(counter.read_text(encoding="utf-8")) if counter.exists() else 0.0
        counter.write_text(f"{used + _cpu_seconds() - before:.1f}\n", encoding="utf-8")
    measured = data.of_study(folder, curves=lesson.curves, layers=lesson.layers)
    target = pages.data_file(lesson)
    target.parent.mkdir(parents=True, exist_ok=True)
    data.write(measured, target)


def _cpu_seconds() -> float:
    """The CPU time of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def rewrite(lesson: Lesson) -> None:
    """Write the page and the figure of a lesson from its data."""
    file, picture = pages.page_file(lesson), pages.figure_file(lesson)
    measured = data.read(pages.data_file(lesson))
    file.write_text(pages.page(file.read_text(encoding="utf-8"), lesson, measured), encoding="utf-8")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(pages.figure(lesson))
    print(file, picture, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=list(LESSONS), help="their names (default: all)")
    parser.add_argument("--run", action="store_true", help="carry out the studies before")
    parser.add_argument("--full", action="store_true", help="their full versions, an hour or more each")
    given = parser.parse_args()
    if unknown := sorted(set(given.studies) - set(LESSONS)):
        parser.error(f"there is no study {', '.join(unknown)}; allowed: {', '.join(LESSONS)}")
    for name in given.studies:
        if given.run:
            carry_out(LESSONS[name], full=given.full)
        rewrite(LESSONS[name])
    file = pages.LESSONS / "README.md"
    file.write_text(pages.index(file.read_text(encoding="utf-8"), LESSONS), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
