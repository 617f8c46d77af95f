"""What must fit the runs of a study: the names of metrics, of the baseline and of keys of figures; and their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError, Problem
from launcher.formatting import count, listed
from launcher.planning.images import prepare_command
from launcher.study.plan import Plan, PlannedRun, shown
from launcher.study.schema import Figure
from launcher.study.state import OF_EVALUATION, OF_RUN, OF_TRAINING_SPLIT, TRAIN
from resnet_dist.errors import DataError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.references import FORM, is_reference
from resnet_dist.recipe.requirements import nearest_name

_FORM_OF_CURVES = "train.FIELD or eval.FIELD of the records, for example train.loss, eval.top1"


def check(plan: Plan) -> None:
    """Raise ConfigError with all names that do not fit the runs of the study."""
    study = plan.file.study
    problems: list[Problem] = []
    for number, name in enumerate(study.metrics):
        problems += _metric(plan, f"metrics[{number}]", name)
    for key, section in (("tune.by", study.tune), ("halving.by", study.halving)):
        if section is not None:
            problems += _metric(plan, key, section.by, of_user=False)
    if study.compare is not None:
        problems += _metric(plan, "compare.metric", study.compare.metric)
        problems += _values(plan, "compare.baseline", study.compare.baseline)
    for number, figure in enumerate(study.figures):
        problems += _figure(plan, f"figures[{number}]", figure)
    if problems:
        raise ConfigError(problems)


def missing_images(runs: Sequence[PlannedRun]) -> DataError | None:
    """The error of runs whose folder of training images is not on this machine; None if all are."""
    data_of_runs = [run.config.data for run in runs if run.config.data.source == "imagefolder"]
    of_folders = [data for data in data_of_runs if not is_address(data.root)]
    roots = [data.root for data in of_folders if not (Path(data.root) / "train").is_dir()]
    if not roots:
        return None
    different = list(dict.fromkeys(roots))
    text = f"no such folder, and {count(len(roots), 'run')} would train on its images"
    commands = [command for command in map(prepare_command, different) if command]
    advice = f"; to write them: {'; '.join(commands)}" if commands else ""
    return DataError(listed([str(Path(root) / "train") for root in different]), f"{text}{advice}")


def _metric(plan: Plan, key: str, name: str, *, of_user: bool = True) -> Iterator[Problem]:
    """A metric must exist: a known name, a field of the train records, or a function of the user or its result."""
    study = plan.file.study
    if is_reference(name) and of_user:
        return
    known = [*OF_EVALUATION, *OF_TRAINING_SPLIT, *OF_RUN]
    has_own = any(map(is_reference, study.metrics)) or any(run.config.evaluate.metrics for run in plan.runs)
    if name in OF_TRAINING_SPLIT:
        if not all(run.config.evaluate.train for run in plan.runs):
            found = f'found "{name}", and the runs are not evaluated on the training split'
            yield Problem(plan.file.place(key), key, found, "overrides: {evaluate.train: true}, or another metric")
    elif name not in known and not name.startswith(TRAIN) and not has_own:
        allowed = f"{', '.join(known)}, {TRAIN}FIELD of the train records, or {FORM}"
        yield Problem(plan.file.place(key), key, f'found "{name}"', allowed, nearest_name(name, known))


def _figure(plan: Plan, key: str, figure: Figure) -> Iterator[Problem]:
    if figure.kind in ("line", "bar"):
        yield from _metric(plan, f"{key}.y", figure.y, of_user=False)
    elif figure.kind == "curve" and not (figure.y.startswith(("train.", "eval.")) and figure.y[-1] != "."):
        yield Problem(plan.file.place(f"{key}.y"), f"{key}.y", f'found "{figure.y}"', _FORM_OF_CURVES)
    by = (figure.by,) if isinstance(figure.by, str) else figure.by or ()
    varying = _varying(plan)
    for name, part in (("x", [figure.x] if figure.x is not None else []), ("by", by)):
        for one in part:
            if one not in varying:
                yield _not_varying(plan, f"{key}.{name}", one, varying)
    if figure.by is not None and figure.kind in ("line", "bar"):
        yield from _pooled(plan, key, figure, by)


def _pooled(plan: Plan, key: str, figure: Figure, by: Sequence[str]) -> Iterator[Problem]:
    """Two combinations at one place of the figure would be averaged."""
    tuned = plan.file.study.tune.keys if plan.file.study.tune else ()
    seen: dict[tuple[str, ...], str] = {}
    shows_tuned = any(name in tuned for name in (figure.x, *by))
    for point in plan.points:
        place = tuple(shown(point.value(name)) for name in (figure.x, *by) if name is not None)
        text = point.text() if shows_tuned else point.text(leaving_out=tuned)
        if seen.setdefault(place, text) != text:
            found = f"two combinations have the same x and the same line: {seen[place]}; {text}"
            yield Problem(plan.file.place(f"{key}.by"), f"{key}.by", found, "all keys that vary")
            return


def _values(plan: Plan, key: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Each key must vary, and one of its values be the given one."""
    varying = _varying(plan)
    for name, value in values.items():
        if name not in varying:
            yield _not_varying(plan, f"{key}.{name}", name, varying)
        elif shown(value) not in varying[name]:
            found, allowed = f"found {shown(value)}, which no run has", ", ".join(varying[name])
            yield Problem(plan.file.place(f"{key}.{name}"), f"{key}.{name}", found, allowed)


def _varying(plan: Plan) -> dict[str, list[str]]:
    """The keys that the study varies, with their values as text."""
    found: dict[str, list[str]] = {}
    for point in plan.points:
        for key, value in {**point.overrides, **point.axes}.items():
            values = found.setdefault(key, [])
            if shown(value) not in values:
                values.append(shown(value))
    return found


def _not_varying(plan: Plan, key: str, name: str, varying: Mapping[str, object]) -> Problem:
    found = f'found "{name}", which the study does not vary'
    return Problem(plan.file.place(key), key, found, ", ".join(varying) or "no key", nearest_name(name, varying))
