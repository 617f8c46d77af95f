"""Writes the results of a study into its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.run.environment import environment
from launcher.study import figures
from launcher.study import results as tables
from launcher.study.page import page
from launcher.study.results import Results
from resnet_dist.checkpoint.disk import replace_whole, storage_errors

CSV, JSON, PAGE = "results.csv", "results.json", "report.html"
FIGURES = "figures"


def write(results: Results, command: Sequence[str]) -> list[str]:
    """Write CSV, JSON, figures and page; returns lines that say where. Raises StorageError."""
    folder = results.plan.file.folder
    facts = _facts(command)
    made = [(CSV, tables.to_csv(results)), (JSON, tables.to_json(results, facts))]
    drawn = []
    images: list[tuple[str, bytes]] = []
    if figures.is_available():
        for number, figure in enumerate(results.plan.file.study.figures):
            image = figures.draw(figure, results)
            if image is not None:
                name = figures.file_name(number, figure)
                images += [(f"{FIGURES}/{name}.{suffix}", content) for suffix, content in image.items()]
                drawn.append((figure, image["svg"].decode()))
    made.append((PAGE, page(results, drawn, facts)))
    for name, content in [*((name, text.encode()) for name, text in made), *images]:
        _write(folder / name, content)
    lines = [f"report   {folder / PAGE}", f"data     {folder / CSV}, {JSON}"]
    if images:
        lines.append(f"figures  {folder / FIGURES}")
    if results.plan.file.study.figures and not figures.is_available():
        lines.append(figures.MISSING)
    return lines


def _facts(command: Sequence[str]) -> dict[str, Any]:
    here = environment()
    kept = ("time", "python", "packages", "system", "num_cpus", "git")
    return {"command": shlex.join(command), "environment": {key: here[key] for key in kept}}


def _write(file: Path, content: bytes) -> None:
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(file, content)
