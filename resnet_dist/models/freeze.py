"""Layers that are not trained: `model.freeze`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import nearest_name

_KEY = "model.freeze"


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop the training of the modules and parameters in `names`, in place.

    A name stands for everything whose name it is or begins with, by whole parts between dots: `layer1` for
    `layer1.0.conv1.weight`, not for `layer10`. Their parameters get `requires_grad` False. Their batch norms, and those
    of which all parameters are named, are put into evaluation mode: they normalise with their running statistics, which
    do not change.

    Raises RecipeError for a name that the model does not have, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = [name for name, module in modules.items() if isinstance(module, _NormBase)]
    known = set(itertools.chain.from_iterable(map(_beginnings, (*parameters, *norms))))
    for name in names:
        if name not in known:
            raise _unknown(name, known)
    frozen = {name for name in parameters if _is_in(name, names)}
    shared = {id(parameters[name]) for name in frozen}  # a parameter may have several names
    if parameters and not any(p.requires_grad and id(p) not in shared for p in parameters.values()):
        found = f"found {', '.join(names)}: all {len(parameters)} parameters are frozen, and nothing is left to train"
        raise RecipeError(_KEY, found, f"names that leave some of them: {', '.join(_tops(parameters))}")
    for name in frozen:
        parameters[name].requires_grad_(False)
    for name in norms:
        own = [f"{name}.{key}" if name else key for key, _ in modules[name].named_parameters(recurse=False)]
        if _is_in(name, names) or (own and frozen.issuperset(own)):
            modules[name].eval()


def _beginnings(name: str) -> Iterator[str]:
    """The name and what it begins with, by whole parts: a name without them would freeze nothing."""
    parts = name.split(".")
    return (".".join(parts[: number + 1]) for number in range(len(parts)) if name)


def _is_in(name: str, prefixes: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def _unknown(name: str, known: set[str]) -> RecipeError:
    near = nearest_name(name, sorted(known))
    hint = f". Did you mean {near}?" if near else ""
    return RecipeError(_KEY, f'found "{name}", which the model does not have', f"{', '.join(_tops(known))}{hint}")


def _tops(names: Iterable[str]) -> Iterator[str]:
    """The first parts of names: the modules of the model itself."""
    yield from sorted({name.split(".")[0] for name in names})
