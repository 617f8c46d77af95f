"""Export a trained model: write it, load it in the target, compare the outputs, and only then give it its name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError
from launcher.inference.evaluate import model_of
from launcher.inference.export import formats, programs, state_dicts
from launcher.inference.export.comparison import Agreement, Images, compared, images_for
from launcher.inference.export.description import Description, described
from launcher.inference.export.formats import Format, Name
from launcher.inference.export.loading_code import remarks, timm_config
from launcher.inference.export.model_card import model_card
from launcher.inference.trained import Saved
from resnet_dist.checkpoint.disk import storage_errors, sync
from resnet_dist.inference import TrainedModel, Weights

_TARGETS: dict[Name, str] = {
    "torchvision": "torchvision.models.{}",
    "timm": "timm's {}",
    "safetensors": "the safetensors package",
    "torch.export": "torch.export.load",
    "onnx": "onnxruntime",
}


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    file: Path
    sidecar: Path  # FILE.json: the description, and what was checked
    card: Path  # FILE.md: the model card
    target: str  # what it was loaded in, for a person
    remarks: tuple[str, ...]  # what a user of the file must know
    about: Description
    agreement: Agreement
    has_equal_tensors: bool  # the file consists of tensors, which were compared bit by bit


def export(saved: Saved, format: str, output: Path, weights: Weights = "auto") -> Exported:
    """Export the model of `saved` to the new file `output`, with OUTPUT.json and OUTPUT.md beside it.

    The weights are float32; those of a float64 run are rounded. The file is loaded with the target's own package first:
    its tensors must be equal to ours bit by bit (formats of tensors), and its outputs within `comparison.TOLERANCE`.
    `output` appears last, and only if this holds.

    Raises UsageError for an unknown format, a package that is missing, a network that the target does not have, an
    `output`, OUTPUT.json or OUTPUT.md that exists, a model that cannot be traced, and outputs that differ; StorageError
    if they cannot be written; and as `Saved.load` does.
    """
    target = formats.chosen(format, output)
    network = formats.network_in(target, saved.recipe.model)
    trained = model_of(saved, weights)
    about, images = described(saved, trained), images_for(saved)
    with _beside(output) as folder:
        file = folder / output.name
        agreement = _written(target, network, file, trained, about, images)
        sidecar, card = formats.beside(file)
        with storage_errors(output.parent):
            sidecar.write_text(_json(target, network, file, about, agreement), encoding="utf-8")
            text = model_card(target.name, network, about, saved.recipe, agreement, output.name, sidecar.name)
            card.write_text(text, encoding="utf-8")
            for one in (sidecar, card, file):  # the model last: where it is, the others are
                sync(one)
                one.replace(output.with_name(one.name))
            sync(output.parent)
    return Exported(
        file=output,
        sidecar=output.with_name(sidecar.name),
        card=output.with_name(card.name),
        target=_TARGETS[target.name].format(network),
        remarks=tuple(remarks(target.name, about)),
        about=about,
        agreement=agreement,
        has_equal_tensors=target.name not in ("torch.export", "onnx"),
    )


def _written(
    target: Format, network: str, file: Path, trained: TrainedModel, about: Description, images: Images
) -> Agreement:
    """Write `file` in the format `target`, and compare it, loaded there, with the model. Raises as `export` does."""
    what = f"--format {target.name}"
    with storage_errors(file):
        if target.name == "torch.export":
            programs.save_program(file, trained, about)
            return compared(trained, programs.with_torch_export(file), images, what)
        if target.name == "onnx":
            programs.save_onnx(file, trained, about)
            return compared(trained, programs.with_onnxruntime(file), images, what)
        if target.name == "safetensors":
            state_dicts.save_safetensors(file, trained, about)
            loaded = state_dicts.with_safetensors(file, trained)
        else:
            state_dicts.save_pth(file, trained)
            in_target = state_dicts.in_timm if target.name == "timm" else state_dicts.in_torchvision
            loaded = in_target(file, network, about)
    state_dicts.check_equal(loaded, trained, what)
    return compared(trained, loaded, images, what)


def _json(target: Format, network: str, file: Path, about: Description, agreement: Agreement) -> str:
    """The content of OUTPUT.json."""
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    packages = ("torch", *target.packages, *(["torchvision"] if target.name == "torchvision" else []))
    content = {
        "file": {"name": file.name, "format": target.name, "size_bytes": file.stat().st_size, "sha256": sha256},
        **({"network": network} if network else {}),
        **about.plain(),
        "checked": {
            "largest_difference": agreement.largest_difference,
            "largest_output": agreement.largest_output,
            "random_images": agreement.num_random,
            "val_images": agreement.num_val,
            "with": {package: importlib.metadata.version(package) for package in packages},
        },
    }
    if target.name == "timm":
        content["pretrained_cfg"] = timm_config(about)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, whose parents are created. It is deleted at the end."""
    folder = output.with_name(f".{output.name}.tmp-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise UsageError(f"--output {output}: {problem}. Allowed: a file in a folder of yours") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
