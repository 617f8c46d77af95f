"""The launcher: from a YAML file to a running job. Its Python API is `fit` and `load_run`."""

import sys

_COMMAND = "".join(sys.argv[:1])  # of this process; "-m" while Python looks for a module to run
if _COMMAND.endswith("/launcher") or (_COMMAND == "-m" and {"launcher", "launcher.train"} & set(sys.orig_argv)):
    import _signal  # type: ignore[import-not-found] # without the imports of `signal`, which take milliseconds

    # The command is about to begin. Until it handles Ctrl-C, that ends it without a traceback.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from typing import TYPE_CHECKING  # noqa: E402 - takes milliseconds

if TYPE_CHECKING:
    from launcher.api import Run, fit, load_run

__all__ = ["Run", "fit", "load_run"]


def __getattr__(name: str) -> object:
    # Imported on first use: a command must handle signals before anything that takes long is imported.
    if name in __all__:
        from launcher import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
