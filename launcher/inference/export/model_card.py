"""The model card: a page in Markdown with a YAML header, as Hugging Face's hub shows it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from launcher.formatting import count
from launcher.inference.accuracy import interval_text
from launcher.inference.export import loading_code
from launcher.inference.export.comparison import Agreement
from launcher.inference.export.description import Description
from launcher.inference.export.formats import Name
from resnet_dist.input_files import printable
from resnet_dist.recipe.schema import Recipe

_CLASSES_SHOWN = 20
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "onnx": "onnx"}  # the hub's names; others: pytorch


def model_card(
    format: Name, network: str, about: Description, recipe: Recipe, agreement: Agreement, file: str, sidecar: str
) -> str:
    """The card of the file named `file`, whose description is in `sidecar`. `network`: its name in the target."""
    return "\n".join(
        (
            *_header(format, about),
            f"# {_text(about.name)}",
            "",
            f"{_text(about.architecture)} for the classification of images into {count(about.num_classes, 'class')},"
            f" trained on {_text(about.data)}. `{_code(file)}` has the format of {format}.",
            "",
            "## Accuracy",
            "",
            *_accuracy(about),
            "",
            "## Use",
            "",
            "Load the model:",
            "",
            *_python(loading_code.loading(format, network, about, recipe, file)),
            *(line for remark in loading_code.remarks(format, about) for line in (remark, "")),
            "Prepare an image exactly as the evaluation did, and name its class:",
            "",
            *_python(loading_code.preparing(about)),
            *_python(loading_code.predicting(sidecar)),
            *_input(about),
            "",
            f"`{_code(sidecar)}` has the names of the classes, these numbers and the whole recipe as JSON.",
            *_inside(format),
            "",
            "## Classes",
            "",
            *_classes(about),
            "",
            "## Training",
            "",
            *_table(_training(about, recipe)),
            "",
            "## Environment",
            "",
            *_table({key: str(value) for key, value in about.trained_with.items()}),
            "",
            "## Limits",
            "",
            *_limits(about, agreement, format),
            "",
            "## Licence",
            "",
            "None is given. Add one to the header of this file before you publish the model; the licence of the"
            " training images may restrict the choice.",
            "",
        )
    )


def _header(format: Name, about: Description) -> Iterator[str]:
    content: dict[str, Any] = {
        "library_name": _LIBRARIES.get(format, "pytorch"),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "resnet", "resnet-launcher"],
    }
    if about.accuracy is not None:
        label, task = about.accuracy.label, {"type": "image-classification"}
        metrics = [{"type": "accuracy", "name": f"top-1 ({label})", "value": round(about.accuracy.top1, 4)}]
        if about.accuracy.top5 is not None:
            metrics.append({"type": "accuracy", "name": f"top-5 ({label})", "value": round(about.accuracy.top5, 4)})
        kind = "imagenet-1k" if about.names != about.classes else "imagefolder"  # the hub's names of data sets
        result = {"task": task, "dataset": {"name": about.data, "type": kind, "split": "val"}, "metrics": metrics}
        content |= {"metrics": ["accuracy"], "model-index": [{"name": about.name, "results": [result]}]}
    yield "---"
    yield "# license: add the licence's name, for example apache-2.0"
    yield yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120).rstrip()
    yield "---"
    yield ""


def _accuracy(about: Description) -> Iterator[str]:
    found = about.accuracy
    if found is None:
        yield f"Not measured for these weights: {about.no_accuracy}."
        return
    top5 = "" if found.top5 is None else f", top-5 **{found.top5:.2%}**"
    yield f"Top-1 **{found.top1:.2%}**{top5}: {found.label}, after {count(found.step, 'step')}."
    if found.interval is not None:
        yield f"With this number of images, top-1 is uncertain: {interval_text(found.interval)} (95 %, Wilson)."


def _python(code: str) -> Iterator[str]:
    yield from ("```python", code, "```", "")


def _input(about: Description) -> Iterator[str]:
    given = about.input
    side = given["shape"][1]
    yield (
        f"The input is an RGB image of {side} x {side} pixels: the central square whose side is {given['crop']:g}"
        f" times the shorter side, resized with bilinear interpolation and antialiasing, scaled to [0, 1], normalised"
        f" with mean {given['mean']} and standard deviation {given['std']}. `Resize({round(side / given['crop'])})` and"
        f" `CenterCrop({side})` give nearly the same."
    )


def _inside(format: Name) -> Iterator[str]:
    where = {
        "safetensors": "the metadata of the file (`safe_open(...).metadata()`)",
        "onnx": "the metadata of the file (`session.get_modelmeta().custom_metadata_map`)",
        "torch.export": "the file (`torch.export.load(..., extra_files={'metadata.json': ''})`)",
    }.get(format)
    if where is not None:
        yield f"The same is in {where}."


def _classes(about: Description) -> Iterator[str]:
    if not about.classes:
        yield "The names of the classes were not recorded."
        return
    shown = ", ".join(f"{number} `{_code(name)}`" for number, name in enumerate(about.names[:_CLASSES_SHOWN]))
    more = len(about.classes) - _CLASSES_SHOWN
    yield shown + (f", and {more:,} more" if more > 0 else "")


def _training(about: Description, recipe: Recipe) -> dict[str, str]:
    data, optimizer, schedule = recipe.data, recipe.optimizer, recipe.schedule
    decay = {"weight decay": optimizer.weight_decay}
    strengths = {key.replace("_", " "): value for key, value in asdict(recipe.regularization).items()}
    regularization = [f"{key} {value:g}" for key, value in {**decay, **strengths}.items() if value]
    rows = {
        "length": f"{recipe.duration}; these weights: step {about.step:,}",
        "batch": f"{recipe.batch.size:,} images",
        "optimizer": f"{optimizer.name}, momentum {optimizer.momentum:g}",
        "learning rate": f"{_rate(recipe)}, warm-up {schedule.warmup}, decay {schedule.decay}",
        "regularization": ", ".join(regularization) or "none",
        "training images": f"{', '.join(map(str, dict.fromkeys(data.training_resolutions)))} px, random crops of"
        f" {data.crop_area[0]:g} to {data.crop_area[1]:g} of the area, {'flipped' if data.flip else 'not flipped'},"
        f" augmentation {data.augmentation.name}",
        "moving average of the weights": "none" if recipe.ema.decay is None else f"decay {recipe.ema.decay:g}",
        "initial weights": "random" if recipe.model.weights is None else str(about.recipe["model"]["weights"]),
        "precision": recipe.precision,
        "seed": str(recipe.seed),
    }
    return {key: printable(value) for key, value in rows.items()}


def _rate(recipe: Recipe) -> str:
    schedule = recipe.schedule
    if schedule.peak_lr is not None:
        return f"peak LR {schedule.peak_lr:g}"
    if schedule.scaling == "table":
        return "peak LR from the published runs"
    scaled = f" x {recipe.batch.size} / 256" if schedule.scaling == "linear" else ""
    return f"peak LR {schedule.base_lr:g}{scaled}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    if not rows:
        yield "Not recorded."
        return
    yield "| | |"
    yield "|---|---|"
    for key, value in rows.items():
        yield f"| {_text(key)} | {_text(value)} |"


def _limits(about: Description, agreement: Agreement, format: Name) -> Iterator[str]:
    yield (
        f"- The model knows {count(about.num_classes, 'class')}: an image of anything else is given one of them. Its"
        " probabilities are not calibrated."
    )
    yield (
        "- The accuracy was measured on the val split of the data set that it was trained on, which may have been used"
        " to choose the recipe; other images can give a lower one. Bias between groups of images was not examined."
    )
    yield f"- Checked in {format} when it was exported, {agreement.where}: {agreement.difference}."


def _text(value: str) -> str:
    """Text of others in Markdown: no HTML, tables, code, links or emphasis come from it."""
    escaped = html.escape(printable(value), quote=False)
    return "".join(f"\\{one}" if one in "\\`*_[]|#" else one for one in escaped)


def _code(value: str) -> str:
    """Text of others between backticks."""
    return printable(value).replace("`", "'").replace("|", "/")
