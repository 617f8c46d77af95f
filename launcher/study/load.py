"""From a study file to a Study, or to one error with every mistake."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config import load as configs
from launcher.config import paths
from launcher.config.builder import Builder
from launcher.config.dotted_keys import flatten
from launcher.config.yaml_source import Document, describe
from launcher.errors import ConfigError, Problem
from launcher.study.schema import VERSION, Draw, Halving, Study
from resnet_dist.recipe.requirements import nearest_name
from resnet_dist.recipe.schema import plain

FULL = "full"  # the section whose keys replace others with --full
NAME_PATTERN_ALLOWED = "letters, digits, . _ and -, a letter or digit first, 60 at most"
_MAX_NAME = 60
_MAX_TRIALS = 10_000


@dataclass(frozen=True)
class StudyFile:
    """A study and where its keys were given."""

    path: Path
    study: Study
    document: Document
    base: Path  # absolute
    folder: Path  # storage/name; with --full storage/name-full
    is_full: bool

    def place(self, key: str) -> str:
        """FILE:LINE of a key of the study file."""
        return self.document.place(key)


def load(path: str | os.PathLike[str], *, full: bool = False) -> StudyFile:
    """The study in the YAML file at `path`; with `full`, the keys of its section `full` apply.

    Raises UsageError if there is no such file, ConfigError for invalid contents.
    """
    document = configs.read(path)
    version = document.data.get("study")
    if type(version) is not int or version != VERSION:  # other versions have other keys: check nothing else
        allowed = f"study: {VERSION}, the version of a study file that this launcher reads"
        raise ConfigError([Problem(document.place("study"), "study", f"found {describe(version)}", allowed)])
    preview, complete = _without_full(document), _with_full(document)
    problems = {str(problem): problem for problem in _empty(document)}
    if full and FULL not in document.data:
        missing = f"the file has no `{FULL}` section, which --full trains"
        problem = Problem(document.whole, "", missing, f"without --full, or a file with a section `{FULL}`")
        problems[str(problem)] = problem
    studies = []
    for one in (preview, complete):  # a mistake in `full` is found without --full, too
        builder = Builder(one, Study)
        studies.append(builder.build())
        found = [*builder.problems, *(_problems(studies[-1], one) if builder.fits else ())]
        problems |= {str(problem): problem for problem in found}
    if problems:
        raise ConfigError(list(problems.values()))
    study: Study = studies[full]
    document = complete if full else preview
    file = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    base = Path(paths.absolute(study.base, file.parent))
    folder = _storage(study, document, file.parent, base) / (f"{study.name}-{FULL}" if full else study.name)
    return StudyFile(file, study, document, base, folder, full)


def smallest_is_best(metric: str, best: str | None) -> bool:
    """Whether the smallest value of a metric is the best one: by `best`, or by its name.

    >>> smallest_is_best("loss", None), smallest_is_best("train_loss", None), smallest_is_best("top1", None)
    (True, True, False)
    """
    return best == "smallest" if best is not None else "loss" in metric


def _storage(study: Study, document: Document, folder: Path, base: Path) -> Path:
    given = study.storage
    if given is not None:
        path = paths.absolute(given, folder)
        problem = paths.problem("storage", given, path)
        if problem is not None:
            raise ConfigError([Problem(document.place("storage"), "storage", *problem)])
        return Path(path)
    written = flatten(configs.read(base).data).get("storage")
    if not isinstance(written, str):
        found = f"missing, and {base} has none"
        raise ConfigError([Problem(document.place("storage"), "storage", found, "a folder")])
    return Path(paths.absolute(written, base.parent))


def _empty(document: Document) -> Iterator[Problem]:
    """Keys without a value, such as `grid:` with nothing under it. (In `full`, null takes a section out.)"""
    for key, value in document.data.items():
        if value is None:
            yield Problem(document.place(key), key, f"found {describe(None)}", "a value, or a file without this key")


def _without_full(document: Document) -> Document:
    data = {key: value for key, value in document.data.items() if key != FULL}
    return dataclasses.replace(document, data=data)


def _with_full(document: Document) -> Document:
    """The document with the keys of `full` in place of others; `overrides` are merged key by key."""
    full = document.data.get(FULL)
    if full is None:
        return _without_full(document)
    if not isinstance(full, Mapping):
        raise ConfigError([Problem(document.place(FULL), FULL, f"found {describe(full)}", "a section of keys")])
    fixed = [Problem(document.place(f"{FULL}.{key}"), f"{FULL}.{key}", "this key cannot change", "any other key")
             for key in ("study", "name", FULL) if key in full]  # fmt: skip
    if fixed:
        raise ConfigError(fixed)
    data, merged = dict(document.data), {**full}
    if isinstance(full.get("overrides"), Mapping) and isinstance(data.get("overrides"), Mapping):
        merged["overrides"] = {**flatten(data["overrides"]), **flatten(full["overrides"])}
    replaced = [key for key in full if key != "overrides"]
    places = {key: place for key, place in document.places.items() if not _is_in(key, replaced)}
    texts = {key: text for key, text in document.texts.items() if not _is_in(key, replaced)}
    start = f"{FULL}."
    places |= {key.removeprefix(start): place for key, place in document.places.items() if key.startswith(start)}
    texts |= {key.removeprefix(start): text for key, text in document.texts.items() if key.startswith(start)}
    made = Document({**data, **merged}, places, document.whole, texts)
    return _without_full(made)


def _is_in(key: str, sections: list[str]) -> bool:
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _problems(study: Study, document: Document) -> Iterator[Problem]:
    """Mistakes of the study's own keys; those of run configs are found by `launcher.study.plan`."""

    def problem(key: str, found: str, allowed: str, suggestion: str = "") -> Problem:
        return Problem(document.place(key), key, found, allowed, suggestion)

    name = study.name
    if not (0 < len(name) <= _MAX_NAME and name.isascii() and name[0].isalnum() and
            all(letter.isalnum() or letter in "._-" for letter in name)):  # fmt: skip
        yield problem("name", f"found {describe(name)}", NAME_PATTERN_ALLOWED)
    if study.grid is not None and not study.grid:
        yield problem("grid", "an empty grid", "keys with lists of values, for example model.residual: [true, false]")
    for key, values in (study.grid or {}).items():
        if not values:
            yield problem(f"grid.{key}", "an empty list", "at least one value")
    if study.sets is not None and not study.sets:
        yield problem("sets", "an empty list", "at least one set of keys")
    for number, keys in enumerate(study.sets or ()):
        label = keys.get("label", "")
        if not isinstance(label, str):
            yield problem(f"sets[{number}].label", f"found {describe(label)}", "text")
    for key, seeds in (("seeds", study.seeds), *([("tune.seeds", study.tune.seeds)] if study.tune else [])):
        if not seeds:
            yield problem(key, "an empty list", "at least one seed")
        elif len(set(seeds)) < len(seeds):
            yield problem(key, f"found {describe(list(seeds))}: a seed twice", "each seed once")
    if study.draw is not None:
        yield from _draw_problems(study.draw, problem)
    if study.halving is not None:
        yield from _halving_problems(study.halving, problem)
    if study.tune is not None:
        if study.halving is not None:
            yield problem("halving", "given together with tune", "one of the two")
        for number, key in enumerate(study.tune.keys):
            if key not in (study.grid or {}):
                yield problem("tune.keys", f'found "{key}", which is not in the grid', ", ".join(study.grid or {}) or
                              "keys of a grid", nearest_name(key, study.grid or {}))  # fmt: skip
            if key in study.tune.keys[:number]:
                yield problem("tune.keys", f'found "{key}" twice', "each key once")
        if not study.tune.keys:
            yield problem("tune.keys", "an empty list", "keys of the grid")
    if not study.metrics:
        yield problem("metrics", "an empty list", "at least one metric, for example top1")
    if study.compare is not None and not study.compare.baseline:
        yield problem("compare.baseline", "no key", "keys of the grid or the sets with a value")
    for number, figure in enumerate(study.figures):
        if (figure.kind in ("line", "bar")) != (figure.x is not None):
            found, allowed = ("missing", "a key that varies") if figure.x is None else ("given", "x for line and bar")
            yield problem(f"figures[{number}].x", f"{found} for a figure of kind {figure.kind}", allowed)


def _draw_problems(draw: Draw, problem: Any) -> Iterator[Problem]:
    if not 1 <= draw.trials <= _MAX_TRIALS:
        yield problem("draw.trials", f"found {draw.trials}", f"a whole number from 1 to {_MAX_TRIALS}")
    if not 0 <= draw.seed < 2**32:
        yield problem("draw.seed", f"found {draw.seed}", "a whole number from 0 to 2^32 - 1")
    if not draw.keys:
        yield problem(
            "draw.keys", "no key", "keys with a range, for example schedule.peak_lr: {log_uniform: [0.01, 1]}"
        )
    for key, one in draw.keys.items():
        given = [name for name, bounds in plain(one).items() if bounds is not None]
        if len(given) != 1:
            yield problem(f"draw.keys.{key}", f"found {len(given)} ranges", "one of uniform, log_uniform")
            continue
        low, high = one.uniform or one.log_uniform or (0.0, 0.0)
        least = 0.0 if one.log_uniform else float("-inf")
        if not least < low < high < float("inf"):
            allowed = f"[smallest, largest]{', both above 0' if one.log_uniform else ''}, the smaller one first"
            yield problem(f"draw.keys.{key}.{given[0]}", f"found {describe([low, high])}", allowed)


def _halving_problems(halving: Halving, problem: Any) -> Iterator[Problem]:
    at = halving.at
    if not at or any(not 0 < fraction < 1 for fraction in at) or list(at) != sorted(set(at)):
        yield problem(
            "halving.at", f"found {describe(list(at))}", "fractions of the run above 0 and below 1, ascending"
        )
    if not 0 < halving.keep < 1:
        yield problem("halving.keep", f"found {halving.keep}", "a fraction above 0 and below 1")
