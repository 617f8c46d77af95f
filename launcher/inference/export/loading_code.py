"""The lines of Python that load an exported file, prepare an image and name its class: for the model card."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.inference.export.description import DEFAULT_EPSILON, Description
from launcher.inference.export.formats import TORCHVISION, Name
from launcher.inference.export.programs import INPUT
from resnet_dist.recipe.architectures import MODELS, architecture_of
from resnet_dist.recipe.schema import ModelRecipe, Recipe

# What a network's modules depend on; the other keys of `model` only change its weights.
_SHAPING = (
    *("name", "num_classes", "residual", "width", "block", "shortcut", "normalisation"),
    *("activation_order", "arguments"),
)


def loading(format: Name, network: str, about: Description, recipe: Recipe, file: str) -> str:
    """Code that makes `model`, a function from images float32 [n, 3, height, width] to logits, from the file `file`.

    `network` is its name in the target of the format.
    """
    classes, norm, imports = about.num_classes, _norm_layer(about), _imports(about)
    if format == "torchvision":
        return f"""{imports}
import torchvision

model = torchvision.models.{network}(num_classes={classes}{norm})
model.load_state_dict(torch.load({file!r}, weights_only=True))
model.eval()"""
    if format == "timm":
        return f"""{imports}
import timm

model = timm.create_model(
    {network!r}, num_classes={classes}, checkpoint_path={file!r}{norm},
    pretrained_cfg_overlay={timm_config(about)!r},
)
model.eval()"""
    if format == "torch.export":
        return f"import torch\n\nmodel = torch.export.load({file!r}).module()"
    if format == "onnx":
        return f"""import onnxruntime
import torch

session = onnxruntime.InferenceSession({file!r})
model = lambda images: torch.from_numpy(session.run(None, {{{INPUT!r}: images.numpy()}})[0])"""
    return f"""{_network(about, recipe)}
model.load_state_dict(load_file({file!r}))
model.eval()"""


def remarks(format: Name, about: Description) -> Iterator[str]:
    """What a user of the file must know beyond the code."""
    if format in ("torchvision", "timm") and _norm_layer(about):
        yield (
            f"Batch norm has an epsilon of {about.epsilon:g}, which a state dict does not hold: make the network with"
            f" norm_layer=functools.partial(torch.nn.BatchNorm2d, eps={about.epsilon!r}), not with {format}'s default."
        )
    if about.recipe["precision"] == "float64":
        yield "The model was trained in float64; the weights in the file are rounded to float32."


def timm_config(about: Description) -> dict[str, object]:
    """What timm makes its transforms from."""
    return {
        "input_size": tuple(about.input["shape"]),
        "mean": tuple(about.input["mean"]),
        "std": tuple(about.input["std"]),
        "crop_pct": about.input["crop"],
        "interpolation": about.input["interpolation"],
    }


def preparing(about: Description) -> str:
    """Code that makes `batch`, the input of the network, from the image "photo.jpg", as the run's evaluation does."""
    crop, side = about.input["crop"], about.input["shape"][1]
    turned = about.input["exif"] == "apply"
    return f"""from PIL import Image{", ImageOps" if turned else ""}
from torchvision.transforms.v2 import functional as F

image = {"ImageOps.exif_transpose(Image.open('photo.jpg'))" if turned else "Image.open('photo.jpg')"}.convert("RGB")
side = max(round({crop!r} * min(image.size)), 1)
left, top = (image.width - side) // 2, (image.height - side) // 2
pixels = F.resize(F.pil_to_tensor(image.crop((left, top, left + side, top + side))), [{side}, {side}], antialias=True)
batch = F.normalize(pixels / 255, {about.input["mean"]!r}, {about.input["std"]!r})[None]"""


def predicting(file: str) -> str:
    """Code that prints the most probable classes. `file`: the JSON file with the description."""
    return f"""import json
from pathlib import Path

import torch

with torch.no_grad():
    probabilities = model(batch).softmax(dim=1)[0]
names = json.loads(Path({file!r}).read_text())["names"] or range(len(probabilities))
for probability, label in zip(*probabilities.topk(min(5, len(probabilities)))):
    print(f"{{probability:6.1%}}  {{names[label]}}")"""


def _norm_layer(about: Description) -> str:
    """The argument for another epsilon than the target's own, which a state dict does not hold."""
    if about.epsilon in (None, DEFAULT_EPSILON):
        return ""
    return f", norm_layer=functools.partial(torch.nn.BatchNorm2d, eps={about.epsilon!r})"


def _imports(about: Description) -> str:
    return "import functools\n\nimport torch" if _norm_layer(about) else "import torch"


def _network(about: Description, recipe: Recipe) -> str:
    """Code that makes the network with untrained weights."""
    model = recipe.model
    own = architecture_of(model) if model.name in MODELS else None
    if same := [name for name in TORCHVISION if MODELS[name] == own]:
        return f"""{_imports(about)}
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{same[0]}(num_classes={about.num_classes}{_norm_layer(about)})"""
    default = ModelRecipe()
    given = {key: value for key in _SHAPING if (value := getattr(model, key)) != getattr(default, key)}
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    code = f"""import torch
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe
from safetensors.torch import load_file

model = build_model(ModelRecipe({arguments}), seed=0)"""
    if recipe.batch_norm.epsilon is None:
        return code
    return f"""{code}
for module in model.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        module.eps = {recipe.batch_norm.epsilon!r}"""
