"""`launcher export RUN|CHECKPOINT --format F --output FILE`: a trained model as a file for another program."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.commands import checkpoint_target
from launcher.formatting import count, in_bytes
from launcher.inference.export import formats
from resnet_dist.input_files import printable

if TYPE_CHECKING:
    from launcher.inference.export.exporting import Exported

_HELP = "write a trained model as a file for torchvision, timm, safetensors, torch.export or ONNX"


def add_parser(verbs: Any) -> None:
    """RUN|CHECKPOINT --format F --output FILE [--weights W] [--best]"""
    verb = verbs.add_parser("export", help=_HELP)
    checkpoint_target.add_arguments(verb)
    verb.add_argument("--format", required=True, choices=tuple(formats.FORMATS), help="what the file is for")
    verb.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="a new file; FILE.json and FILE.md are written too"
    )
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Export the model, and print what it is and how it was checked."""
    output = given.output.expanduser().absolute()
    formats.chosen(given.format, output)  # before torch is imported, which takes seconds
    found = checkpoint_target.find(given)
    formats.network_in(formats.FORMATS[given.format], found.recipe.model)
    print(_line("checkpoint", printable(str(found.checkpoint))), flush=True)
    from launcher.inference.export.exporting import export

    print("\n".join(_lines(export(found, given.format, output, given.weights))))
    return 0


def _line(title: str, text: str) -> str:
    return f"{title:<12}{text}"


def _lines(exported: Exported) -> Iterator[str]:
    about, accuracy = exported.about, exported.about.accuracy
    yield _line("model", f"{printable(about.architecture)}, {count(about.num_classes, 'class')}, {about.which}")
    yield _line("top-1", about.no_accuracy if accuracy is None else f"{accuracy.top1:.2%} of {accuracy.label}")
    yield _line("checked", f"in {exported.target}, {exported.agreement.where}:")
    yield _line("", f"{'tensors equal bit by bit, ' * exported.has_equal_tensors}{exported.agreement.difference}")
    yield _line("written", f"{exported.file} ({in_bytes(exported.file.stat().st_size)})")
    yield _line("", f"{exported.sidecar} (classes, input, accuracy, recipe)")
    yield _line("", f"{exported.card} (model card)")
    yield from exported.remarks
