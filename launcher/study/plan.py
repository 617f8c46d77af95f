"""The runs of a study: every combination of its sets, draws and grid, for every seed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.config.dotted_keys import flatten
from launcher.config.schema import Place, RunConfig
from launcher.config.yaml_source import Document
from launcher.errors import ConfigError, Problem
from launcher.run.directory import RunDirectory
from launcher.study.load import StudyFile
from resnet_dist.recipe.schema import plain

MAX_NAME = 100  # characters of the name of a run, as in `launcher.config.rules`
MAX_RUNS = 10_000
LABEL, TRIAL = "label", "trial"  # what distinguishes sets and draws, beside the keys of the grid

# Keys that a study sets itself, and what sets them.
_OWN = {
    "name": "the key name of the study; each run gets its own name from its values",
    "storage": "the key storage of the study",
    "seed": "the key seeds of the study",
    "place": "--place on the command line",
    "schema": "the key schema of the base config",
}
_IS_OWN = "the runs of a study do not take this key"


@dataclass(frozen=True)
class Point:
    """A combination: what distinguishes it from the others, and its overrides of the base config, by dotted key."""

    axes: Mapping[str, Any]
    overrides: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """The value of a key that varies: of an axis, or of a key that a set gives; None if it has none."""
        return self.axes.get(key, self.overrides.get(key))

    def text(self, leaving_out: Sequence[str] = ()) -> str:
        """The combination for a person: `residual true, model resnet8`."""
        parts = [
            shown(value) if key == LABEL else f"{short(key, self.axes)} {shown(value)}"
            for key, value in self.axes.items()
            if key not in leaving_out
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study. `number` is its position in the plan."""

    number: int
    name: str
    point: Point
    seed: int
    config: RunConfig

    @property
    def directory(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(Path(self.config.storage), self.name)


@dataclass(frozen=True)
class Plan:
    """All runs of a study, in their order: by combination, then by seed."""

    file: StudyFile
    runs: tuple[PlannedRun, ...]

    @property
    def points(self) -> list[Point]:
        """All combinations, in their order."""
        return list({run.point.text(): run.point for run in self.runs}.values())

    @property
    def num_runs(self) -> int:
        """How many of the runs are trained at most: all, or the candidates of a tuning and the best ones."""
        tune, seeds = self.file.study.tune, self.file.study.seeds
        if tune is None:
            return len(self.runs)
        num_groups = len({point.text(leaving_out=tune.keys) for point in self.points})
        return len(self.points) * len(tune.seeds) + num_groups * len(set(seeds) - set(tune.seeds))

    @property
    def may_diverge(self) -> bool:
        """Whether a loss that is not finite is a result: by the key of the study, and in a tuning."""
        return self.file.study.may_diverge or self.file.study.tune is not None

    @property
    def axes(self) -> list[str]:
        """The keys that distinguish the combinations."""
        return list(dict.fromkeys(key for run in self.runs for key in run.point.axes))


def short(key: str, among: Mapping[str, Any] | Sequence[str]) -> str:
    """The last part of a dotted key, or the section of a name; with the part before it if another key ends alike.

    >>> short("schedule.peak_lr", ["schedule.peak_lr"]), short("model.name", ["model.name", "optimizer.name"])
    ('peak_lr', 'model')
    >>> short("optimizer.momentum", ["optimizer.momentum", "averaging.momentum"])
    'optimizer.momentum'
    """
    last = _last(key)
    alike = [other for other in among if _last(other) == last]
    return last if len(alike) <= 1 else ".".join(key.split(".")[-2:])


def _last(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]


def shown(value: object) -> str:
    """A value as YAML writes it; of a section its name.

    >>> shown(True), shown(0.05), shown({"name": "lars", "momentum": 0.9}), shown(None)
    ('true', '0.05', 'lars', 'null')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    return json.dumps(plain(value))


def plan(file: StudyFile, overrides: Sequence[str] = (), place: Place = "local") -> Plan:
    """The runs of a study, each with a checked config. `overrides` (`key=value`) apply to every run.

    Raises UsageError for an override that cannot be read, ConfigError with all problems.
    """
    given = yaml_source.apply_overrides(Document({}, {}, "command line"), overrides)
    common, common_places = fixed(file, overrides)
    problems = list(_contradictions(file, given))
    if problems:
        raise ConfigError(problems)
    runs: list[PlannedRun] = []
    found: dict[str, Problem] = {}
    named: dict[str, tuple[Point, str]] = {}
    seeds = sorted({*file.study.seeds, *(file.study.tune.seeds if file.study.tune else ())})
    for point, places, number in _points(file):
        where = next(iter(places.values()), file.document.whole)
        for seed in seeds:
            name = _name(point, seed, file.study.draw.keys if file.study.draw else {})  # the trial names its values
            if name in named:
                other, place_of_other = named[name]
                key = _key_of_name(file, point, other, number)
                text = f"two runs would have the name {name}, this one and that of {place_of_other}"
                allowed = "values or labels that differ in letters, digits or dots"
                problem = Problem(file.place(key), key, text, allowed)
                found[str(problem)] = problem
                continue
            named[name] = point, where
            if len(runs) == MAX_RUNS:
                raise ConfigError([Problem(file.document.whole, "", f"more than {MAX_RUNS:,} runs", "a smaller study")])
            if len(name) > MAX_NAME:
                problem = Problem(where, "", f"the name of a run has {len(name)} characters: {name}",
                                  f"at most {MAX_NAME}: sets with a short label")  # fmt: skip
                found[str(problem)] = problem
                continue
            own = {"storage": str(file.folder / "runs"), "name": name, "seed": seed, "place": place}
            try:
                config = configs.load(
                    file.base,
                    {**common, **point.overrides, **own},
                    places={**common_places, **places, "seed": file.place("seeds")},
                )
            except ConfigError as error:
                found |= {str(problem): problem for problem in error.problems}
                continue
            runs.append(PlannedRun(len(runs), name, point, seed, config))
    if found:
        raise ConfigError(list(found.values()))
    return Plan(file, tuple(runs))


def fixed(file: StudyFile, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The overrides of all runs, of the file and of the command line, and their places."""
    given = yaml_source.apply_overrides(Document({}, {}, "command line"), overrides)
    of_file = flatten(file.study.overrides)
    of_command = flatten(given.data)
    places = {key: file.place(f"overrides.{key}") for key in of_file}
    return {**of_file, **of_command}, {**places, **{key: given.place(key) for key in of_command}}


def _key_of_name(file: StudyFile, point: Point, other: Point, number: int) -> str:
    """The key to change in the study file, so that the two combinations have different names."""
    grid = file.study.grid or {}
    differing = next((key for key in point.axes if shown(point.axes[key]) != shown(other.axes.get(key))), None)
    if differing in grid:
        return f"grid.{differing}"
    if file.study.sets is not None and LABEL in file.study.sets[number]:
        return f"sets[{number}].{LABEL}"
    return f"sets[{number}]" if file.study.sets is not None else "grid"


def _points(file: StudyFile) -> Iterator[tuple[Point, dict[str, str], int]]:
    """All combinations, with the place of each of their overrides and the number of their set."""
    study = file.study
    grid = study.grid or {}
    sets = list(enumerate(study.sets)) if study.sets is not None else [(0, None)]
    trials = range(study.draw.trials) if study.draw is not None else [None]
    for (number, one), trial in itertools.product(sets, trials):
        axes: dict[str, Any] = {}
        overrides: dict[str, Any] = {}
        places: dict[str, str] = {}
        if one is not None:
            keys = flatten({key: value for key, value in one.items() if key != LABEL})
            axes[LABEL] = one.get(LABEL) or "_".join(f"{short(key, keys)}-{shown(keys[key])}" for key in keys)
            overrides |= keys
            places |= {key: file.place(f"sets[{number}].{key}") for key in keys}
        if trial is not None and study.draw is not None:
            from launcher.study.draws import drawn  # needs numpy, which most verbs of the launcher do without

            values = drawn(study.draw, trial)
            axes |= {TRIAL: trial, **values}
            overrides |= values
            places |= {key: file.place(f"draw.keys.{key}") for key in values}
        for combination in itertools.product(*grid.values()):
            of_grid = dict(zip(grid, combination, strict=True))
            yield (
                Point({**axes, **of_grid}, {**overrides, **of_grid}),
                {**places, **{key: file.place(f"grid.{key}") for key in of_grid}},
                number,
            )


def _name(point: Point, seed: int, leaving_out: Mapping[str, Any]) -> str:
    parts = []
    for key, value in point.axes.items():
        if key not in leaving_out:
            text = re.sub(r"[^A-Za-z0-9.-]+", "_", shown(value)).strip("_")
            parts.append(text if key == LABEL else f"{short(key, point.axes)}-{text}")
    return re.sub(r"^[^A-Za-z0-9]+", "", "_".join([*parts, f"seed-{seed}"]))


def _contradictions(file: StudyFile, given: Document) -> Iterator[Problem]:
    """Keys that are given twice, or that a study sets itself."""
    study = file.study
    of_sets = {key: f"sets[{number}].{key}" for number, one in enumerate(study.sets or ())
               for key in flatten({name: value for name, value in one.items() if name != LABEL})}  # fmt: skip
    varied = [
        {key: f"grid.{key}" for key in study.grid or {}},
        of_sets,
        {key: f"draw.keys.{key}" for key in (study.draw.keys if study.draw else {})},
    ]
    overrides = {key: f"overrides.{key}" for key in flatten(study.overrides)}
    for keys in (*varied, overrides):
        for key, where in keys.items():
            if key in _OWN:
                yield Problem(file.place(where), where, _IS_OWN, _OWN[key])
    for key in flatten(given.data):
        if key in _OWN:
            yield Problem(given.place(key), key, _IS_OWN, _OWN[key])
    pairs = [(one, other) for one, other in itertools.combinations(varied, 2)]
    pairs += [(overrides, varied[0]), (overrides, varied[2])]  # a set may change what `overrides` gives to the others
    for one, other in pairs:
        for key, where in other.items():
            if twice := _same(key, one):
                found = f"given twice: here and as {one[twice]} ({file.place(one[twice])})"
                yield Problem(file.place(where), where, found, "each key once")
    for key in flatten(given.data):
        for keys in varied:
            if twice := _same(key, keys):
                found = f"the study varies this key ({file.place(keys[twice])})"
                yield Problem(given.place(key), key, found, "keys that the study does not vary")


def _same(key: str, keys: Mapping[str, str]) -> str:
    """The one of `keys` that is `key`, a section around it or a key in it; empty without one."""
    inside = (other for other in keys if other == key or other.startswith(f"{key}.") or key.startswith(f"{other}."))
    return next(inside, "")
