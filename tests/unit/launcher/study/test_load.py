from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import ConfigError, UsageError
from launcher.study.load import load
from tests.unit.launcher.study.conftest import Write

BAD = {
    "an unknown key": ("gird: {}", "4: gird: unknown key. Allowed: study, name, base, .*, full. Did you mean grid"),
    "an empty grid": ("grid: {}", "4: grid: an empty grid. Allowed: keys with lists of values"),
    "a grid with nothing in it": ("grid:\n", r"4: grid: found nothing \(null\). Allowed: a value, or a file without"),
    "a full version with nothing in it": ("full:\n", r"4: full: found nothing \(null\)"),
    "a key without values": ("grid:\n  seed.x: []", "5: grid.seed.x: an empty list. Allowed: at least one value"),
    "a value in place of a list": ("grid: {batch.size: 32}", "4: grid.batch.size: found 32"),
    "no sets": ("sets: []", "4: sets: an empty list"),
    "no seeds": ("seeds: []", "4: seeds: an empty list"),
    "a seed twice": ("seeds: [1, 2, 1]", r"4: seeds: found \[1, 2, 1\]"),
    "a label that is a number": ("sets:\n  - {label: 3}", r"5: sets\[0\].label: found 3 \(a number\). Allowed: text"),
    "no trials": ("draw: {trials: 0, keys: {a.b: {uniform: [0, 1]}}}", "4: draw.trials: found 0"),
    "two ranges": (
        "draw: {trials: 2, keys: {a.b: {uniform: [0.0, 1.0], log_uniform: [0.1, 1.0]}}}",
        "4: draw.keys.a.b: found 2 ranges. Allowed: one of uniform, log_uniform",
    ),
    "a logarithm of 0": (
        "draw: {trials: 2, keys: {a.b: {log_uniform: [0.0, 1.0]}}}",
        r"4: draw.keys.a.b.log_uniform: found \[0.0, 1.0\] .*both above 0",
    ),
    "a range without values": ("draw: {trials: 2, keys: {a.b: {uniform: [1.0, 1.0]}}}", "the smaller one first"),
    "halving at the end": ("halving: {at: [1.0]}", r"4: halving.at: found \[1.0\]"),
    "halving backwards": ("halving: {at: [0.5, 0.25]}", "4: halving.at: found .* ascending"),
    "halving that keeps all": ("halving: {at: [0.5], keep: 1.0}", "4: halving.keep: found 1.0"),
    "tuning a key that is not in the grid": (
        "grid: {batch.size: [8]}\ntune: {keys: [batch.sise]}",
        '5: tune.keys: found "batch.sise", which is not in the grid. Allowed: batch.size. Did you mean batch.size',
    ),
    "tuning and halving": (
        "grid: {batch.size: [8]}\ntune: {keys: [batch.size]}\nhalving: {at: [0.5]}",
        "6: halving: given together with tune. Allowed: one of the two",
    ),
    "no metrics": ("metrics: []", "4: metrics: an empty list"),
    "a line without x": (
        "figures:\n  - {kind: line, y: top1}",
        r"5: figures\[0\].x: missing for a figure of kind line",
    ),
    "a curve with x": ("figures:\n  - {kind: curve, y: train.loss, x: batch.size}", r"figures\[0\].x: given"),
    "another kind": ("figures:\n  - {kind: pie, y: top1}", r"5: figures\[0\].kind: found .* line, bar, curve, layers"),
    "no seeds to tune with": (
        "grid: {batch.size: [8]}\ntune: {keys: [batch.size], seeds: []}",
        "5: tune.seeds: an empty list",
    ),
    "a mistake in full": ("full:\n  grid: {}", "5: grid: an empty grid"),
    "another name in full": ("full: {name: other}", "4: full.name: this key cannot change"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_refused_with_file_line_key_and_what_is_allowed(write_study: Write, case: str) -> None:
    text, message = BAD[case]
    file = write_study(text)
    with pytest.raises(ConfigError, match=f"{file}:.*{message}"):
        load(file)


@pytest.mark.parametrize("seeds", ["[]", "[1, 1]"])
def test_seeds_without_a_tuning_are_one_mistake(write_study: Write, seeds: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(write_study(f"seeds: {seeds}"))
    assert [problem.key for problem in raised.value.problems] == ["seeds"]


def test_a_full_version_that_the_file_does_not_have_is_refused(write_study: Write) -> None:
    file = write_study("seeds: [0]")
    with pytest.raises(ConfigError, match=f"{file}:1: the file has no `full` section.* Allowed: without --full, or"):
        load(file, full=True)


def test_a_file_of_another_version_is_refused(write_study: Write) -> None:
    file = write_study("")
    file.write_text(file.read_text().replace("study: 1", "study: 2"))
    with pytest.raises(ConfigError, match=r"study.yaml:1: study: found 2 \(a number\). Allowed: study: 1"):
        load(file)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        load(tmp_path / "study.yaml")


def test_the_folder_of_a_study_is_in_its_storage_or_that_of_the_base(write_study: Write, tmp_path: Path) -> None:
    assert load(write_study("")).folder == tmp_path / "runs" / "small"
    assert load(write_study("storage: elsewhere")).folder == tmp_path / "elsewhere" / "small"


def test_the_full_version_replaces_keys_merges_overrides_and_has_its_own_folder(write_study: Write) -> None:
    file = write_study(
        "overrides: {duration: 4 steps, seed: 3}\ngrid: {batch.size: [8]}\nseeds: [0]\n"
        "full:\n  overrides: {duration: 400 steps}\n  grid:\n    batch.size: [8, 16]\n"
    )
    preview, full = load(file), load(file, full=True)
    assert preview.study.grid == {"batch.size": (8,)}
    assert preview.folder.name == "small"
    assert full.study.grid == {"batch.size": (8, 16)}
    assert full.folder.name == "small-full"
    assert full.study.overrides == {"duration": "400 steps", "seed": 3}
    assert full.study.seeds == (0,)
    assert full.place("grid.batch.size") == f"{file}:10"
    assert full.place("overrides.duration") == f"{file}:8"
    assert full.place("overrides.seed") == f"{file}:4"
