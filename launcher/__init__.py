"""The launcher: from a YAML file to a running job. Its Python API is `fit` and `load_run`."""

from launcher.api import Run, fit, load_run

__all__ = ["Run", "fit", "load_run"]
