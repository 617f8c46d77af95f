"""The classes that a trained model predicts for image files, read as an evaluation of its run reads images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.errors import UsageError
from launcher.inference.evaluate import device_here, threads_of, user_code_errors
from launcher.inference.names import class_names, for_outputs
from launcher.inference.trained import Saved
from resnet_dist.errors import DataError
from resnet_dist.inference import TrainedModel
from resnet_dist.inference.images import image_files, index_of_files
from resnet_dist.inference.predictions import probabilities_of
from resnet_dist.training.device import Worker


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Predicted:
    """What the model says about an image file: its likeliest classes, or why there are none."""

    path: str
    guesses: tuple[Guess, ...] = ()
    problem: str = ""


def predict(saved: Saved, trained: TrainedModel, paths: Sequence[str], num_guesses: int) -> Iterator[Predicted]:
    """The predictions for all files, in order; `paths` are files, and folders whose images are taken, sorted by path.

    The pixels and logits are those of an evaluation of the run with the same batches. A file that is missing or no
    image has a `problem`, and so has a folder that cannot be read or has no images. Raises UsageError for an empty
    name.
    """
    if "" in paths:
        raise UsageError("IMAGE: a name is empty. Allowed: files and folders; . is the current folder")
    names = for_outputs(class_names(saved, trained.classes), trained.recipe.model.num_classes)
    device = device_here()
    worker = Worker(0, 1, device, threads_of(saved, 1, device))
    recipe = trained.recipe
    data = dataclasses.replace(recipe.data, root="/", source="imagefolder", known_bad=None)
    trained = dataclasses.replace(trained, recipe=dataclasses.replace(recipe, data=data))
    found = list(_expanded(paths))
    files = [one.path for one in found if not one.problem]
    predicted = _predicted(trained, worker, names, files, num_guesses) if files else iter(())
    yield from (one if one.problem else next(predicted) for one in found)


def _expanded(paths: Sequence[str]) -> Iterator[Predicted]:
    """The files that `paths` name, without guesses, and the folders with problems."""
    for path in paths:
        if not Path(path).is_dir():
            yield Predicted(path)
            continue
        try:
            files = image_files(path)
        except DataError as error:
            yield Predicted(path, problem=error.problem)
            continue
        if not files:
            yield Predicted(path, problem="is a folder without images")
        yield from map(Predicted, files)


def _predicted(
    trained: TrainedModel, worker: Worker, names: Sequence[str], files: Sequence[str], num_guesses: int
) -> Iterator[Predicted]:
    index = index_of_files([os.path.abspath(file) for file in files]).with_exif(trained.recipe.data.exif)  # noqa: PTH100
    with user_code_errors(trained.recipe):
        for batch, probabilities in probabilities_of(trained, index, worker):
            rows = iter(probabilities)
            for number, position in enumerate(batch.positions.tolist()):
                file = files[position]
                if number in batch.broken:
                    problem = index.problems.get(position, batch.broken[number].problem)
                    yield Predicted(file, problem=problem.partition(";")[0])  # the rest is advice for a data set
                else:
                    yield _of(file, next(rows), names, num_guesses)


def _of(file: str, probabilities: NDArray[np.float64], names: Sequence[str], num_guesses: int) -> Predicted:
    if not np.isfinite(probabilities).all():
        return Predicted(file, problem="the outputs of the model are not finite")
    order = np.argsort(-probabilities, kind="stable")[:num_guesses].tolist()
    return Predicted(file, tuple(Guess(names[label], float(probabilities[label])) for label in order))
