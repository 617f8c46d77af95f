"""The launcher: from a YAML file to a running job. Its Python API is `fit` and `load_run`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.api import Run, fit, load_run

__all__ = ["Run", "fit", "load_run"]


def __getattr__(name: str) -> object:
    # Imported on first use: a command must handle signals before anything that takes long is imported.
    if name in __all__:
        from launcher import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
