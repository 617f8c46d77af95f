"""The results of an evaluation: as JSON, and as text for a terminal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from launcher.formatting import count, table
from launcher.inference.accuracy import interval_text, label_of, wilson_interval
from launcher.inference.evaluate import Evaluated
from launcher.inference.names import human_names
from resnet_dist.data.names import shown, some
from resnet_dist.inference.images import Images
from resnet_dist.inference.predictions import Predictions
from resnet_dist.inference.statistics import (
    Calibration,
    ClassResult,
    Confusion,
    calibration,
    class_results,
    confusions,
    worst,
)
from resnet_dist.telemetry.json_lines import without_non_finite

MISTAKES = 24  # that are listed and drawn
_CONFUSIONS = 100  # in the JSON; the matrix has all
_LINES = 5  # of each list in a terminal


@dataclass(frozen=True)
class Results:
    """What an evaluation has found, on rank 0."""

    found: Evaluated
    images: Images
    predictions: Predictions

    @classmethod
    def of(cls, found: Evaluated) -> Results:
        """The results of an evaluation that this process has, as rank 0 or alone."""
        assert found.images is not None
        assert found.predictions is not None
        return cls(found, found.images, found.predictions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, one for each output of the model."""
        return self.images.index.classes

    @cached_property
    def num_correct(self) -> int:
        """The number of images whose class is predicted."""
        return int((self.predictions.predicted == self.predictions.labels).sum())

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of top-1; None if it is not finite."""
        top1, num_samples = self.found.evaluation.top1, self.found.evaluation.num_samples
        return wilson_interval(top1, num_samples) if math.isfinite(top1) and num_samples else None

    @cached_property
    def human(self) -> Mapping[str, str]:
        """English names of ImageNet's classes; empty for others."""
        return human_names(self.names)

    @cached_property
    def classes(self) -> list[ClassResult]:
        """The result of each class, by label."""
        return class_results(self.predictions, len(self.names))

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The pairs of classes that are confused, the most frequent first."""
        return confusions(self.predictions)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration; None if no prediction is finite."""
        return calibration(self.predictions)

    @cached_property
    def mistakes(self) -> list[int]:
        """The numbers of the worst mistakes in `predictions`."""
        return [int(number) for number in worst(self.predictions, MISTAKES)]

    @cached_property
    def broken(self) -> list[str]:
        """The broken images, which are left out."""
        index = self.images.index
        rows = np.setdiff1d(np.arange(len(index)), self.predictions.rows)
        return [index.paths[row] for row in rows.tolist()]

    def named(self, label: int) -> str:
        """A class for a person: its English name too, if it is one of ImageNet's."""
        name = self.names[label]
        return f"{self.human[name]} ({name})" if name in self.human else shown(name)


def plain(results: Results) -> dict[str, Any]:
    """All results in JSON's types; numbers that are not finite are null, as is top5 of a model of up to 5 classes."""
    found, evaluation, names = results.found, results.found.evaluation, results.names
    data, errors = found.data, results.calibration
    content = {
        "checkpoint": str(found.checkpoint),
        "step": found.step,
        "label": {
            "weights": found.weights,
            "resolution": data.resolution,
            "crop": data.evaluation_crop,
            "precision": found.precision,
            "flip": found.flip,
            "data": data.root,
            "source": data.source,
            "num_samples": evaluation.num_samples,
            "num_bad": evaluation.num_bad,
            "num_left_out": results.images.num_left_out,
            "batch_norm": "running statistics",
        },
        "top1": evaluation.top1,
        "top1_interval": results.interval,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "num_correct": results.num_correct,
        "num_nonfinite": evaluation.num_nonfinite,
        "metrics": dict(evaluation.metrics),
        "workers": found.num_workers,
        "device": found.device,
        "calibration": None if errors is None else asdict(errors),
        "classes": [_class(results, one) for one in results.classes],
        "confusions": [
            {"true": names[one.label], "predicted": names[one.predicted], "num_samples": one.num_samples}
            for one in results.confusions[:_CONFUSIONS]
        ],
        "mistakes": [mistake(results, number) for number in results.mistakes],
        "broken": results.broken,
        "missing_classes": list(results.images.missing),
        "extra_classes": list(results.images.extra),
    }
    finite: dict[str, Any] = without_non_finite(content)
    return finite


def mistake(results: Results, number: int) -> dict[str, Any]:
    """One prediction with its image, in JSON's types."""
    found, names = results.predictions, results.names
    label, predicted = int(found.labels[number]), int(found.predicted[number])
    return {
        "path": results.images.index.paths[int(found.rows[number])],
        "true": names[label],
        "predicted": None if predicted < 0 else names[predicted],
        "probability": float(found.probabilities[number]),
        "probability_of_true": float(found.of_labels[number]),
    }


def lines(results: Results) -> Iterator[str]:
    """The results for a person, in lines that fit into the terminal."""
    found, evaluation = results.found, results.found.evaluation
    yield shown(str(found.checkpoint))
    yield from table(list(_label(results)), indent=2)
    yield ""
    interval = f"; 95 %: {interval_text(results.interval)}" if results.interval else ""
    top1 = f"{_percent(evaluation.top1)}  ({results.num_correct:,} of {evaluation.num_samples:,}{interval})"
    rows = [["step", f"{found.step:,}"], ["top-1", top1]]
    if math.isfinite(evaluation.top5):
        rows.append(["top-5", _percent(evaluation.top5)])
    rows.append(["loss", f"{evaluation.loss:.4f}"])
    rows += [[shown(name), f"{value:.4g}"] for name, value in evaluation.metrics.items()]
    if (errors := results.calibration) is not None:
        mean = float(np.nanmean(results.predictions.probabilities))
        rows.append(["calibration", f"error {_percent(errors.error)}; mean probability {_percent(mean)}"])
    yield from table(rows, indent=2)
    yield from _classes(results)
    if results.confusions:
        yield "\nmost confused"
        pairs = [
            [_short(results.named(one.label)), _short(results.named(one.predicted)), f"{one.num_samples:,}"]
            for one in results.confusions[:_LINES]
        ]
        yield from table([["IS", "TAKEN FOR", "IMAGES"], *pairs], indent=2)


def _label(results: Results) -> Iterator[list[str]]:
    found, data, images = results.found, results.found.data, results.images
    yield ["data", shown(data.root or data.source)]
    label = label_of(
        num_samples=found.evaluation.num_samples,
        resolution=data.resolution,
        crop=data.evaluation_crop,
        weights=found.weights,
        precision=found.precision,
        num_bad=len(results.broken),
        noun="image",  # those of `data`, which may be another data set
    )
    yield ["measured on", label]
    if found.flip:
        yield ["flip", "mean of the probabilities of each image and its mirror image"]
    if results.broken:
        yield ["left out", f"{count(len(results.broken), 'broken image')}: {some(results.broken)}"]
    if images.extra:
        unknown = f"{count(len(images.extra), 'class')} that the model does not know: {some(images.extra)}"
        yield ["left out", f"{count(images.num_left_out, 'image')} of {unknown}"]
    if images.missing:
        yield ["no images of", f"{count(len(images.missing), 'class')} of the model: {some(images.missing)}"]
    if found.precise_batch_norm:
        yield ["batch norm", "running statistics; the run's own evaluations have precise ones"]


def _classes(results: Results) -> Iterator[str]:
    with_images = [one for one in results.classes if one.num_samples]
    ranked = sorted(with_images, key=lambda one: (one.num_correct / one.num_samples, one.label))
    if len(ranked) <= 2 * _LINES:
        parts = {"classes": ranked}
    else:
        parts = {"worst classes": ranked[:_LINES], "best classes": ranked[: -_LINES - 1 : -1]}
    for title, some_classes in parts.items():
        yield f"\n{title}"
        rows = [
            [_short(results.named(one.label)), _percent(one.accuracy), f"{one.num_correct:,} of {one.num_samples:,}"]
            for one in some_classes
        ]
        yield from table([["CLASS", "RIGHT", "IMAGES"], *rows], indent=2)


def _class(results: Results, one: ClassResult) -> dict[str, Any]:
    name = results.names[one.label]
    human = {"name": results.human[name]} if name in results.human else {}
    found = asdict(one) | {"accuracy": one.accuracy, "precision": one.precision}
    return {"class": name, **human, **found}


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f} %" if math.isfinite(value) else "not finite"


def _short(name: str) -> str:
    """A name that leaves room for two more columns in the terminal."""
    room = max(8, (shutil.get_terminal_size().columns - 16) // 2)
    return name if len(name) <= room else f"{name[: room - 3]}..."
