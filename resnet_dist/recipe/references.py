"""The user's own code, named in the config as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from resnet_dist.errors import RecipeError

FORM = "package.module:function, importable where training runs (its folder on PYTHONPATH, or installed)"

_REFERENCE = re.compile(r"^[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*$")


def is_reference(name: str) -> bool:
    """Whether `name` has the form `package.module:function`.

    >>> is_reference("my_models.wide:build"), is_reference("resnet50")
    (True, False)
    """
    return _REFERENCE.match(name) is not None


def load_function(key: str, reference: str) -> Callable[..., Any]:
    """Import the function, or class, that `reference` names. `key` is the config's dotted key, for messages.

    Raises RecipeError where the form is wrong, there is no such module, the module has no such name, or what it names
    cannot be called. An error inside the module itself comes out as it is: it is the user's, with its own traceback.
    """
    if not is_reference(reference):
        raise RecipeError(key, f"{reference!r} does not name a function", FORM)
    module_name, function_name = reference.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        # A module that is there but imports something missing is another mistake than a mistyped name.
        if module_name != missing and not module_name.startswith(f"{missing}."):
            problem = f"module {module_name} imports {missing}, which is not installed here"
            raise RecipeError(key, problem, f"{FORM}; install {missing}") from error
        raise RecipeError(key, f"{reference!r}: there is no module {missing}", FORM) from error
    if not hasattr(module, function_name):
        raise RecipeError(key, f"module {module_name} has no {function_name}", FORM)
    function = getattr(module, function_name)
    if not callable(function):
        raise RecipeError(key, f"{reference!r} is of type {type(function).__name__}, which cannot be called", FORM)
    return function  # type: ignore[no-any-return]


def call_function(key: str, reference: str, /, *args: object, **kwargs: object) -> Any:
    """Load `reference` and call it.

    Raises RecipeError as `load_function` does, and where the function does not take these arguments; what the function
    itself raises comes out as it is.
    """
    function = load_function(key, reference)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature to look at
        return function(*args, **kwargs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = ", ".join([*("..." for _ in args), *(f"{name}=" for name in kwargs)])
        raise RecipeError(
            key, f"{reference!r} cannot be called with ({given}): {error}", f"{reference}{signature}"
        ) from error
    return function(*args, **kwargs)
