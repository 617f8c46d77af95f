"""The control plane: from a YAML file to a running job, and its Python surface: `fit` and `load_run`."""

from launcher.api import Run, fit, load_run

__all__ = ["Run", "fit", "load_run"]
