"""Loading of trained weights: the state dicts of torchvision, timm and others."""

from __future__ import annotations

import argparse
import functools
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_dist.errors import DataError, MissingPackage, RecipeError
from resnet_dist.models.resnet import ResNet
from resnet_dist.recipe.architectures import MODELS

_KEY = "model.weights"
_ALLOWED = (
    "weights of this architecture: a .pt, .pth or .pth.tar file of torch.save, a .safetensors file, or a checkpoint or"
    " run directory"
)
_SUFFIXES = (".pt", ".pth", ".tar")
_LISTED = 5  # names in a message; the rest are counted

# Where files of training programs keep the state dict, preferred first: the average of the weights is what they
# evaluate. timm: state_dict_ema, state_dict. torchvision's references: model_ema, model. Others: model_state_dict.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_AVERAGES = ("state_dict_ema", "model_ema")
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel (also AveragedModel) and torch.compile
_COUNT = "n_averaged"  # a buffer of torch's AveragedModel beside the model

_log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, path: str, num_classes: int, read: Callable[[str], Mapping[str, Tensor]] | None = None
) -> tuple[str, ...]:
    """Copy the state dict in `path` into `model`, except a head of another size.

    The head is the model's last linear layer with `num_classes` outputs. If the file has a head of another number of
    classes, or none, the model's head keeps its initial weights, with a warning, and the names of its parameters are
    returned. `read` returns the tensors in `path`; the default is `read_state_dict`.

    Raises RecipeError if the file holds something else, or if any other names or shapes differ; DataError if it is
    damaged; MissingPackage for a .safetensors file if safetensors is not installed. The model is unchanged after an
    error.
    """
    given = (read_state_dict if read is None else read)(path)
    own = model.state_dict()
    left_out = _untrained_head(model, num_classes, given)
    # Files of torch before 0.4.1 lack this counter, which only batch norm without a momentum uses.
    counters = {
        f"{name}.num_batches_tracked" for name, module in model.named_modules() if isinstance(module, _NormBase)
    }
    missing = sorted(own.keys() - given.keys() - counters - set(left_out))
    others = [name for name in own if name in given and name not in left_out and own[name].shape != given[name].shape]
    shapes = [f"{name} {list(given[name].shape)} (the model's is {list(own[name].shape)})" for name in others]
    hint = functools.partial(network_of, given)
    _refuse("lacks", missing, path, hint)
    _refuse("has names that the model does not have:", sorted(given.keys() - own.keys()), path, hint)
    _refuse("has tensors of another shape:", shapes, path, hint)
    model.load_state_dict({name: tensor for name, tensor in given.items() if name not in left_out}, strict=False)
    has_head = all(name in given for name in left_out)
    for problem, names in (
        (f"has {'a head of another number of classes' if has_head else 'no head'}, which starts untrained", left_out),
        ("lacks counters of batch norms, which start at 0", sorted(counters & own.keys() - given.keys())),
    ):
        if names:
            example = f"{names[0]}, {_shape(given, names[0])} in the file and {_shape(own, names[0])} in the model"
            num = len(names)
            _log.warning("%s %s: %d of the model's %d tensors, for example %s", path, problem, num, len(own), example)
    return left_out


def network_of(given: Mapping[str, Tensor]) -> str:
    """The built-in network whose names and shapes are those of `given`, whatever its number of classes, or ""."""
    shapes = _shapes(given)
    for name, architecture in MODELS.items():
        with torch.device("meta"):
            network = ResNet(architecture, num_classes=2)
        if _shapes(network.state_dict()) == shapes:
            return name
    return ""


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors in a file of weights by name, on the CPU. Raises as `load_weights` does.

    The state dict may be inside a dict of a training program, beside its epoch and optimizer, and its names may begin
    with `module.`. Of two state dicts the moving average is taken, with a warning. Pickles are loaded with
    `weights_only`, so they cannot run code.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(_KEY, f"{path}: no such file", _ALLOWED)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix not in _SUFFIXES:
        raise RecipeError(_KEY, f"{path}: unknown format {file.suffix!r}", _ALLOWED)
    loaded = _unpickled(file)
    if not isinstance(loaded, Mapping):
        raise RecipeError(_KEY, f"{path}: contains an object of type {type(loaded).__name__}", _ALLOWED)
    state = _state_dict_in(path, loaded)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    _refuse("contains values that are not tensors:", [str(name) for name in state if str(name) not in tensors], path)
    return _without_wrapper(tensors)


def _unpickled(file: Path) -> object:
    """The content of a file of torch.save. Raises RecipeError if it holds other objects than tensors."""
    try:
        # timm and torchvision's references keep their command line as a Namespace, a plain container.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # Its formats: a zip file, and before torch 1.6 pickles, which begin with their protocol.
        begins_well = zipfile.is_zipfile(file) or file.read_bytes()[:1] == b"\x80"
        if isinstance(error, pickle.UnpicklingError) and begins_well:
            problem = f"{file}: not a file of tensors only ({_first_line(error)})"
            allowed = f"{_ALLOWED}; save such a file again with torch.save(model.state_dict(), ...)"
            raise RecipeError(_KEY, problem, allowed) from error
        # torch takes any other file for a pickle, and advises to load it without weights_only
        said = f" ({_first_line(error)})" if begins_well else ""
        problem = f"is damaged, or not a file of torch.save{said}; copy it again ({_KEY})"
        raise DataError(str(file), problem) from error


def _state_dict_in(path: str, loaded: Mapping[object, object]) -> Mapping[object, object]:
    """The state dict in the content of a file: the content itself, or one of its values."""
    nested = [key for key in _NESTED if isinstance(loaded.get(key), Mapping)]
    if not nested:
        return loaded
    chosen = loaded[nested[0]]
    assert isinstance(chosen, Mapping)
    if nested[0] in _AVERAGES and len(nested) > 1:
        text = "%s has %s and %s: the moving average of the weights, %s, is used"
        _log.warning(text, path, nested[0], nested[1], nested[0])
    return chosen


def _without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that wrappers of the model add to all names."""
    for prefix in _WRAPPERS * 2:  # one may be inside the other
        wrapped = {name: tensor for name, tensor in state.items() if name != _COUNT}
        if wrapped and all(name.startswith(prefix) for name in wrapped):
            state = {name.removeprefix(prefix): tensor for name, tensor in wrapped.items()}
    return state


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingPackage(_KEY, "safetensors", "pip install safetensors") from error
    try:
        return _without_wrapper(load_file(file))
    except SafetensorError as error:
        problem = f"is damaged, or not a safetensors file ({_first_line(error)}); copy it again ({_KEY})"
        raise DataError(str(file), problem) from error


def _untrained_head(model: nn.Module, num_classes: int, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the head's parameters if the file has none, or one that differs only in the number of classes."""
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not heads:
        return ()
    prefix, head = heads[-1]
    parameters = {f"{prefix}.{name}" if prefix else name: parameter for name, parameter in head.named_parameters()}
    if prefix and not any(name in given for name in parameters):
        return tuple(parameters)
    if any(name not in given or given[name].dim() == 0 for name in parameters):
        return ()
    same_but_classes = all(given[name].shape[1:] == parameter.shape[1:] for name, parameter in parameters.items())
    classes = {given[name].shape[0] for name in parameters}
    if not same_but_classes or len(classes) != 1 or classes == {num_classes}:
        return ()
    return tuple(parameters)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, without counters of batch norm, and without the number of classes of the head."""
    return {
        name: tuple(tensor.shape[1:] if name.startswith("fc.") else tensor.shape)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _refuse(problem: str, names: list[str], path: str, fits: Callable[[], str] = lambda: "") -> None:
    """Raise RecipeError, with the first of `names`, unless it is empty. `fits` finds the network that would fit."""
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        found = f"{path} {problem} {', '.join(names[:_LISTED])}{more}"
        network = fits()
        if network:
            raise RecipeError(_KEY, f"{found}. They are weights of {network}", f"model.name {network}", ("model.name",))
        raise RecipeError(_KEY, found, _ALLOWED)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
