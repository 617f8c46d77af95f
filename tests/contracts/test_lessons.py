"""The pages in docs/lessons say what their data say, and the studies in configs/studies are complete."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lessons import data, pages
from benchmarks.lessons.data import Measured
from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.studies import LESSONS
from launcher.config import load as config
from launcher.study import load as studies
from launcher.study.plan import plan

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "studies"
BASE = FOLDER / "base.yaml"
STUDIES = sorted(set(FOLDER.glob("*.yaml")) - {BASE})
ALL = list(LESSONS.values())
MOST_LINES = 75  # of a page: one screen
MOST_BYTES = 60_000  # of a figure
UPDATE = "update it: make lessons"


def by_name(value: Path | Lesson) -> str:
    return value.study if isinstance(value, Lesson) else value.stem


def text_of(lesson: Lesson) -> str:
    return pages.page_file(lesson).read_text(encoding="utf-8")


def content_of(lesson: Lesson) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(pages.data_file(lesson).read_text(encoding="utf-8"))
    return content


def test_every_study_has_a_lesson() -> None:
    assert [path.stem for path in STUDIES] == sorted(LESSONS)
    assert {path.stem for path in pages.LESSONS.glob("*.md")} - {"README"} == set(LESSONS)


def test_the_base_of_the_studies_is_a_run_on_one_cpu() -> None:
    run = config.load(BASE)
    assert (run.place, run.workers.most, run.resources.gpus_per_worker) == ("local", 1, 0)


@pytest.mark.parametrize("path", STUDIES, ids=by_name)
def test_a_preview_and_its_full_version_have_runs_whose_keys_exist(path: Path) -> None:
    preview, full = plan(studies.load(path)), studies.load(path, full=True)
    assert full.study != preview.file.study
    seeds = preview.file.study.seeds
    assert len(seeds) >= 3, "an interval needs seeds"
    assert full.study.seeds[: len(seeds)] == seeds
    assert len(full.study.hypothesis) > 50
    assert preview.file.study.name == path.stem


@pytest.mark.parametrize("path", STUDIES, ids=by_name)
def test_the_runs_of_a_full_version_are_valid(path: Path) -> None:
    full = studies.load(path, full=True)
    one_seed = dataclasses.replace(full, study=dataclasses.replace(full.study, seeds=(0,), tune=None))
    assert plan(one_seed).runs


@pytest.mark.parametrize("path", STUDIES, ids=by_name)
def test_a_study_begins_with_its_question_and_commands(path: Path) -> None:
    comment = path.read_text(encoding="utf-8").partition("\nstudy:")[0]
    assert "?" in comment.splitlines()[0]
    for command in (f"python -m launcher study configs/studies/{path.name}", f"{path.name} --full"):
        assert command in comment


@pytest.mark.parametrize("lesson", ALL, ids=by_name)
def test_a_page_shows_its_data(lesson: Lesson) -> None:
    text = text_of(lesson)
    assert text == pages.page(text, lesson, data.read(pages.data_file(lesson))), UPDATE


@pytest.mark.parametrize("lesson", ALL, ids=by_name)
def test_a_page_has_a_question_a_figure_limits_a_command_and_a_source(lesson: Lesson) -> None:
    text = text_of(lesson)
    assert re.match(r"# [^\n]+\?\n", text)
    assert f"(figures/{lesson.study}.svg)" in text
    assert "## What this does not show" in text
    assert f"    python -m launcher study configs/studies/{lesson.study}.yaml" in text
    assert re.search(r"(19|20)\d\d", text.partition("## Run it")[2]), "the year of a paper"
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("lesson", ALL, ids=by_name)
def test_the_words_of_a_page_outside_its_block_hold_no_result(lesson: Lesson) -> None:
    text = text_of(lesson)
    before, _, rest = text.partition(pages.BEGIN)
    assert not re.search(r"\d\s*(%|points)", before + rest.partition(pages.END)[2])


@pytest.mark.parametrize("lesson", ALL, ids=by_name)
def test_a_figure_was_drawn_from_the_data_on_the_page(lesson: Lesson) -> None:
    figure = pages.figure_file(lesson).read_text(encoding="utf-8")
    assert pages.fingerprint(pages.data_file(lesson)) in figure, UPDATE
    assert len(figure.encode()) < MOST_BYTES


@pytest.mark.parametrize("lesson", ALL, ids=by_name)
def test_the_data_are_those_of_the_study(lesson: Lesson) -> None:
    content = content_of(lesson)
    file = studies.load(FOLDER / f"{lesson.study}.yaml", full=content["full"])
    assert content["hypothesis"] == file.study.hypothesis
    assert {run["seed"] for run in content["runs"]} == set(file.study.seeds)
    points = {json.dumps(dict(point.axes)) for point in plan(file).points}
    assert {json.dumps(run["values"]) for run in content["runs"]} == points


def test_the_list_of_lessons_shows_the_data() -> None:
    text = (pages.LESSONS / "README.md").read_text(encoding="utf-8")
    assert text == pages.index(text, LESSONS), UPDATE


def test_the_readme_names_the_lessons() -> None:
    assert "(docs/lessons/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_depth_lesson_is_rebuilt_from_its_data(tmp_path: Path) -> None:
    lesson = LESSONS["depth"]
    (tmp_path / "data").mkdir()
    shutil.copy(pages.data_file(lesson), pages.data_file(lesson, tmp_path))
    before, _, rest = text_of(lesson).partition(pages.BEGIN)
    empty = f"{before}{pages.BEGIN}\n{pages.END}{rest.partition(pages.END)[2]}"
    assert pages.page(empty, lesson, data.read(pages.data_file(lesson, tmp_path))) == text_of(lesson)
    assert pages.figure(lesson, tmp_path).startswith(b"<?xml")


def test_the_depth_lesson_says_the_mean_of_each_network() -> None:
    lesson = LESSONS["depth"]
    for depth in (8, 20, 56):
        row = next(line for line in text_of(lesson).splitlines() if line.startswith(f"| {depth} |"))
        for residual, column in ((True, 2), (False, 3)):
            top1 = [
                run["metrics"]["top1"]
                for run in content_of(lesson)["runs"]
                if run["values"] == {"model.name": f"resnet{depth}", "model.residual": residual}
            ]
            assert row.split("|")[column].startswith(f" {100 * sum(top1) / len(top1):.1f} ± ")


def test_the_verdict_of_the_depth_lesson_follows_the_data() -> None:
    lesson, content = LESSONS["depth"], content_of(LESSONS["depth"])

    def with_plain_56(top1: list[float], loss: list[float]) -> str:
        changed = json.loads(json.dumps(content))
        for run in changed["runs"]:
            if run["values"] == {"model.name": "resnet56", "model.residual": False}:
                run["metrics"] |= {"top1": top1[run["seed"]], "training_loss": loss[run["seed"]]}
        return " ".join(lesson.findings(Measured(changed))) + lesson.answer(Measured(changed))

    assert "degradation" in with_plain_56([0.30, 0.31, 0.32], [2.0, 2.1, 2.2])
    assert "overfitting." in with_plain_56([0.30, 0.31, 0.32], [0.1, 0.1, 0.11])
    spread = with_plain_56([0.3, 0.9, 0.99], [0.1, 2.0, 0.3])
    assert "degradation)" not in spread
    assert spread.count("inconclusive") >= 2
