"""Functions of the user, named in the config as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable

from resnet_dist.errors import RecipeError

FORM = "package.module:function, importable where training runs (its folder on PYTHONPATH, or installed)"

_REFERENCE = re.compile(r"^[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*$")


def is_reference(name: str) -> bool:
    """Whether `name` has the form `package.module:function`.

    >>> is_reference("my_models.wide:build"), is_reference("resnet50")
    (True, False)
    """
    return _REFERENCE.match(name) is not None


def load_function(key: str, reference: str) -> Callable[..., object]:
    """Import the function or class that `reference` names. `key` is the config's dotted key, for messages.

    Raises RecipeError if the form is wrong, the module or the name does not exist, or the object is not callable. An
    exception raised by the module itself is passed on.
    """
    if not is_reference(reference):
        raise RecipeError(key, f"{reference!r} does not name a function", FORM)
    module_name, function_name = reference.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        # Distinguish a module that does not exist from one that imports a missing package.
        if module_name != missing and not module_name.startswith(f"{missing}."):
            problem = f"module {module_name} imports {missing}, which is not installed here"
            raise RecipeError(key, problem, f"{FORM}; install {missing}") from error
        raise RecipeError(key, f"{reference!r}: there is no module {missing}", FORM) from error
    if not hasattr(module, function_name):
        raise RecipeError(key, f"module {module_name} has no {function_name}", FORM)
    function: object = getattr(module, function_name)
    if not callable(function):
        raise RecipeError(key, f"{reference!r} is of type {type(function).__name__}, which cannot be called", FORM)
    return function


def call_function(key: str, reference: str, /, *args: object, **kwargs: object) -> object:
    """Load `reference` and call it.

    Raises RecipeError as `function_for` does. An exception raised by the function itself is passed on.
    """
    return function_for(key, reference, *args, **kwargs)(*args, **kwargs)


def function_for(key: str, reference: str, /, *args: object, **kwargs: object) -> Callable[..., object]:
    """Load `reference`, a function that will be called with arguments like these.

    Raises RecipeError as `load_function` does, and if the function does not accept these arguments.
    """
    function = load_function(key, reference)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some C functions have no signature
        return function
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = ", ".join([*("..." for _ in args), *(f"{name}=" for name in kwargs)])
        raise RecipeError(
            key, f"{reference!r} cannot be called with ({given}): {error}", f"{reference}{signature}"
        ) from error
    return function
