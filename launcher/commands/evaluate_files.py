"""The files of `launcher evaluate --output FOLDER`.

evaluation.json    all results but the matrix          mistakes.png       the worst mistakes, as pictures
classes.csv        a line per class                    confusion.csv      a line per class: what it is taken for
predictions.csv    a line per image                    confusion.png      the same as a picture, of few classes
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from launcher.inference.results import Results, mistake
from launcher.prepare import contact_sheet
from launcher.prepare.contact_sheet import Sample
from resnet_dist.checkpoint.disk import reason
from resnet_dist.data import BatchRequest, Index
from resnet_dist.data.crops import evaluation_windows
from resnet_dist.data.decoding.cpu import pillow_window
from resnet_dist.data.loader import HostBatch, decoder_for, evaluation_batches
from resnet_dist.data.storage.files import Files, files_of
from resnet_dist.errors import DataError
from resnet_dist.inference.statistics import confusion_row

_MOST_DRAWN = 40  # classes of the matrix as a picture: their names can be read
_WITHOUT_MATPLOTLIB = "confusion.png is not drawn: it needs matplotlib (pip install 'resnet-launcher[figures]')"


def write(folder: Path, results: Results, content: dict[str, Any]) -> list[str]:
    """Write all files into `folder`, and return what a person should know. Raises DataError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
        _write_csv(folder / "classes.csv", _classes(content))
        _write_csv(folder / "confusion.csv", _confusion(results))
        _write_csv(folder / "predictions.csv", _predictions(results))
        names = ["evaluation.json", "classes.csv", "confusion.csv", "predictions.csv"]
        notes = []
        if results.mistakes and results.found.data.source != "synthetic":
            mistakes_sheet(results).save(folder / "mistakes.png")
            names.append("mistakes.png")
        if len(results.names) <= _MOST_DRAWN:
            try:
                _draw_confusion(folder / "confusion.png", results)
                names.append("confusion.png")
            except ImportError:
                notes.append(_WITHOUT_MATPLOTLIB)
    except OSError as error:
        raise DataError(str(error.filename or folder), f"cannot be written: {reason(error)}") from error
    return [f"written to {folder}: {', '.join(names)}", *notes]


def mistakes_sheet(results: Results) -> Image.Image:
    """The worst mistakes as one picture, the surest first."""
    found, numbers = results.predictions, results.mistakes
    data = results.found.data
    chosen = results.images.index.take(found.rows[numbers])
    files, num_threads = files_of(chosen, data), torch.get_num_threads()
    decoder = decoder_for(data, device=torch.device("cpu"), num_threads=num_threads, max_batch_size=len(numbers))
    batch = next(evaluation_batches(chosen, files, 1, 0, len(numbers), data, decoder))
    windows = evaluation_windows(chosen.heights, chosen.widths, data.evaluation_crop)
    samples = [
        _sample(results, number, batch, row, windows[row], _whole(chosen, files, row))
        for row, number in enumerate(numbers)
    ]
    title = f"{results.found.checkpoint}: the mistakes with the highest probabilities"
    label = f"{data.resolution} pixels, central crop {data.evaluation_crop:g}, step {results.found.step:,}"
    return contact_sheet.draw(samples, [title, label])


def _sample(
    results: Results, number: int, batch: HostBatch, row: int, window: NDArray[np.int32], whole: Image.Image | None
) -> Sample:
    about, found = mistake(results, number), results.predictions
    label, predicted = int(found.labels[number]), int(found.predicted[number])
    sample_id = int(found.rows[number])
    return Sample(
        position=sample_id,
        sample_id=sample_id,
        path=about["path"],
        classes=(),
        window=tuple(window.tolist()),
        flipped=False,
        original=whole,
        seen=Image.fromarray(batch.images[row].permute(1, 2, 0).cpu().numpy()),
        caption=(
            f"taken for {results.named(predicted)}: {about['probability']:.1%}",
            f"is {results.named(label)}: {about['probability_of_true']:.1%}",
            about["path"],
        ),
    )


def _whole(index: Index, files: Files, row: int) -> Image.Image | None:
    """The whole image of a sample; None if it cannot be read any more."""
    ids = np.array([row])
    window = np.array([[0, 0, index.heights[row], index.widths[row]]], np.int32)
    request = BatchRequest.of(index, files, ids, ids, window, np.zeros(1, np.bool_), 1)
    try:
        return Image.fromarray(pillow_window(request, 0, request.encoded(0)[0]))
    except DataError:
        return None


def _write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        csv.writer(stream).writerows(rows)


def _classes(content: dict[str, Any]) -> Iterator[Sequence[object]]:
    keys = ("class", "name", "num_samples", "num_correct", "accuracy", "num_predicted", "precision")
    yield keys
    for one in content["classes"]:
        yield [one.get(key, "") for key in keys]


def _confusion(results: Results) -> Iterator[Sequence[object]]:
    yield ["class", *results.names]
    for label, name in enumerate(results.names):
        yield [name, *confusion_row(results.predictions, label, len(results.names)).tolist()]


def _predictions(results: Results) -> Iterator[Sequence[object]]:
    yield ["path", "true", "predicted", "probability", "probability_of_true"]
    for number in range(len(results.predictions)):
        yield list(mistake(results, number).values())


def _draw_confusion(file: Path, results: Results) -> None:
    """The matrix as a picture: the fraction of each class's images. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    num = len(results.names)
    counts = np.stack([confusion_row(results.predictions, label, num) for label in range(num)])
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.35 * num
    figure, axes = pyplot.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    names = [results.named(label).replace("$", r"\$") for label in range(num)]
    axes.set_xticks(range(num), names, rotation=90)
    axes.set_yticks(range(num), names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if parts[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8)
    axes.set_title(f"top-1 {results.found.evaluation.top1:.2%} of {results.found.evaluation.num_samples:,} images")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
