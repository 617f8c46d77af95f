"""`launcher export RUN|CHECKPOINT --format F --output FILE`: a trained model as a file for another program."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.commands.target import find_here
from launcher.formatting import count, in_bytes, table
from launcher.inference.export import formats
from launcher.inference.trained import Saved, saved
from resnet_dist.input_files import printable

if TYPE_CHECKING:
    from launcher.inference.export.exporting import Exported

_HELP = "write a trained model as a file for torchvision, timm, safetensors, torch.export or ONNX"


def add_parser(verbs: Any) -> None:
    """RUN|CHECKPOINT --format F --output FILE [--weights W] [--best]"""
    verb = verbs.add_parser("export", help=_HELP)
    verb.add_argument(
        "target", metavar="RUN|CHECKPOINT", help="a run directory, its name, its config, or one of its checkpoints"
    )
    verb.add_argument("--format", required=True, choices=tuple(formats.FORMATS), help="what the file is for")
    verb.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="a new file; FILE.json and FILE.md are written too"
    )
    verb.add_argument(
        "--weights",
        choices=("auto", "model", "ema"),
        default="auto",
        help="auto: the moving average of the weights if the run keeps one; model: the weights of the last step",
    )
    verb.add_argument("--best", action="store_true", help="the kept checkpoint with the highest top-1, not the newest")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Export the model and print what it is and how it was checked."""
    output = given.output.expanduser().absolute()
    formats.chosen(given.format, output)  # before torch is imported, which takes seconds
    found = _saved(given.target, best=given.best)
    formats.network_in(formats.FORMATS[given.format], found.recipe.model)
    from launcher.inference.export.exporting import export

    exported = export(found, given.format, output, given.weights)
    print("\n".join(_lines(found, exported)))
    return 0


def _saved(text: str, *, best: bool) -> Saved:
    """The checkpoint that the command line names. Raises UsageError if there is none."""
    path = Path(text).expanduser().absolute()
    return saved(path if path.is_dir() else find_here(text).path, best=best)


def _lines(found: Saved, exported: Exported) -> Iterator[str]:
    about, accuracy = exported.about, exported.about.accuracy
    size = in_bytes(exported.file.stat().st_size)
    yield from table(
        [
            ["model", f"{printable(about.architecture)}, {count(about.num_classes, 'class')}, {about.which}"],
            ["checkpoint", printable(str(found.checkpoint))],
            ["top-1", about.no_accuracy if accuracy is None else f"{accuracy.top1:.2%} of {accuracy.label}"],
            ["checked", f"in {exported.target}, {exported.agreement.where}:"],
            ["", f"{'tensors equal bit by bit, ' * exported.has_equal_tensors}{exported.agreement.difference}"],
            ["written", f"{exported.file} ({size})"],
            ["", f"{exported.sidecar} (classes, input, accuracy, recipe)"],
            ["", f"{exported.card} (model card)"],
        ]
    )
    yield from exported.remarks
