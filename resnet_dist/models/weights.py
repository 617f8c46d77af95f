"""Loading of trained weights."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_dist.errors import MissingPackage, RecipeError

_KEY = "model.weights"
_ALLOWED = "a state dict of this architecture: a .pt or .pth file of torch.save, or a .safetensors file"
_LISTED = 5  # names in a message; the rest are counted

_log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str, num_classes: int) -> tuple[str, ...]:
    """Copy the state dict in `path` into `model`, except a head of another size.

    The head is the model's last linear layer with `num_classes` outputs. If the file's head has another number of
    classes, the model's head keeps its initial weights, with a warning, and the names of its parameters are returned.

    Raises RecipeError if the file cannot be read, or if any other names or shapes differ; MissingPackage for a
    .safetensors file if safetensors is not installed. The model is unchanged after an error.
    """
    given = read_state_dict(path)
    own = model.state_dict()
    left_out = _head_of_another_size(model, num_classes, given)
    # Files of torch before 0.4.1 lack this counter, which only batch norm without a momentum uses.
    counters = {
        f"{name}.num_batches_tracked" for name, module in model.named_modules() if isinstance(module, _NormBase)
    }
    _refuse("lacks", sorted(own.keys() - given.keys() - counters), path)
    _refuse("has names that the model does not have:", sorted(given.keys() - own.keys()), path)
    others = [name for name in own if name in given and name not in left_out and own[name].shape != given[name].shape]
    shapes = [f"{name} {list(given[name].shape)} (the model's is {list(own[name].shape)})" for name in others]
    _refuse("has tensors of another shape:", shapes, path)
    model.load_state_dict({name: tensor for name, tensor in given.items() if name not in left_out}, strict=False)
    for problem, names in (
        ("has a head of another number of classes, which starts untrained", left_out),
        ("lacks counters of batch norms, which start at 0", sorted(counters & own.keys() - given.keys())),
    ):
        if names:
            example = f"{names[0]}, {_shape(given, names[0])} in the file and {_shape(own, names[0])} in the model"
            num = len(names)
            _log.warning("%s %s: %d of the model's %d tensors, for example %s", path, problem, num, len(own), example)
    return left_out


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors in a .pt, .pth or .safetensors file by name, on the CPU. Raises as `load_weights` does.

    Pickles are loaded with `weights_only`, so they cannot run code.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(_KEY, f"{path}: no such file", _ALLOWED)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix not in (".pt", ".pth"):
        raise RecipeError(_KEY, f"{path}: unknown format {file.suffix!r}", _ALLOWED)
    try:
        loaded: object = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RecipeError(_KEY, f"{path}: not a file of tensors only ({_first_line(error)})", _ALLOWED) from error
    if not isinstance(loaded, Mapping):
        raise RecipeError(_KEY, f"{path}: contains an object of type {type(loaded).__name__}", _ALLOWED)
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    _refuse("contains values that are not tensors:", others, path)
    return {str(name): tensor for name, tensor in loaded.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingPackage(_KEY, "safetensors", "pip install safetensors") from error
    try:
        return load_file(file)
    except SafetensorError as error:
        raise RecipeError(_KEY, f"{file}: not a safetensors file ({_first_line(error)})", _ALLOWED) from error


def _head_of_another_size(model: nn.Module, num_classes: int, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the head's parameters if those in the file differ only in the number of classes, else ()."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not heads:
        return ()
    prefix, head = heads[-1]
    parameters = {f"{prefix}.{name}" if prefix else name: parameter for name, parameter in head.named_parameters()}
    if any(name not in given or given[name].dim() == 0 for name in parameters):
        return ()
    same_but_classes = all(given[name].shape[1:] == parameter.shape[1:] for name, parameter in parameters.items())
    classes = {given[name].shape[0] for name in parameters}
    if not same_but_classes or len(classes) != 1 or classes == {num_classes}:
        return ()
    return tuple(parameters)


def _refuse(problem: str, names: list[str], path: str) -> None:
    """Raise RecipeError, with the first of `names`, unless it is empty."""
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise RecipeError(_KEY, f"{path} {problem} {', '.join(names[:_LISTED])}{more}", _ALLOWED)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
