"""`launcher predict RUN|CHECKPOINT IMAGE ...`: the classes of images and their probabilities.

Exit code 0, or 65 if a file is missing or no image: the others are predicted all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launcher.commands import checkpoint_target
from launcher.errors import UsageError
from launcher.exit_codes import ExitCode
from resnet_dist.input_files import printable

if TYPE_CHECKING:
    from launcher.inference.predict import Predicted


def add_parser(verbs: Any) -> None:
    """RUN|CHECKPOINT IMAGE ... [--top K] [--json] [--weights W] [--best]"""
    verb = verbs.add_parser("predict", help="the classes of images and their probabilities, by a trained model")
    checkpoint_target.add_arguments(verb)
    verb.add_argument("images", metavar="IMAGE", nargs="+", help="image files, and folders with images")
    verb.add_argument("--top", metavar="K", type=int, default=5, help="classes per image (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print JSON instead of text")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Predict, and print the classes of each image as they are found."""
    if given.top < 1:
        raise UsageError(f"--top {given.top}: Allowed: a whole number from 1")
    saved = checkpoint_target.find(given)
    from launcher.inference.accuracy import weights_in_words
    from launcher.inference.evaluate import model_of
    from launcher.inference.names import human_names
    from launcher.inference.predict import predict

    trained = model_of(saved, given.weights)
    human = human_names(trained.classes)
    data = trained.recipe.evaluation_data
    about = {"checkpoint": str(saved.checkpoint), "step": trained.step, "weights": trained.weights}
    label = about | {"resolution": data.resolution, "crop": data.evaluation_crop}
    if not given.json:
        pixels = f"{data.resolution} pixels, central crop {data.evaluation_crop:g}"
        print(f"{printable(str(saved.checkpoint))}: {weights_in_words(trained.weights)}, {pixels}")
    images = []
    for found in predict(saved, trained, given.images, given.top):
        images.append(_plain(found, human))
        if given.json:
            continue
        if found.problem:
            print(f"error: {printable(found.path)}: {found.problem}", file=sys.stderr, flush=True)
            continue
        print(printable(found.path))
        for guess in found.guesses:
            name = f"{human[guess.name]} ({guess.name})" if guess.name in human else printable(guess.name)
            print(f"  {guess.probability:7.2%}  {name}", flush=True)
    if given.json:
        print(json.dumps(label | {"images": images}, indent=2))
    return ExitCode.DATA if any("error" in image for image in images) else ExitCode.OK


def _plain(found: Predicted, human: Mapping[str, str]) -> dict[str, Any]:
    if found.problem:
        return {"path": found.path, "error": found.problem}
    guesses = [
        {
            "class": guess.name,
            **({"name": human[guess.name]} if guess.name in human else {}),
            "probability": guess.probability,
        }
        for guess in found.guesses
    ]
    return {"path": found.path, "predictions": guesses}
