"""Where a run is carried out. Needs neither torch nor Ray."""

from __future__ import annotations

import importlib.util
import os

from launcher.errors import UsageError
from launcher.run_config import RunConfig


def place_of(config: RunConfig) -> str:
    """Where the run is carried out: torchrun's processes, Ray where it is installed, or this machine's own process."""
    if config.place != "auto":
        if config.place == "ray" and not has_ray():
            raise UsageError("place: ray needs Ray, which is not installed here: pip install 'resnet-launcher[ray]'")
        return config.place
    if under_torchrun():
        return "local"
    return "ray" if has_ray() else "local"


def under_torchrun() -> bool:
    """Whether this process is one of a group that its environment describes."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def leads() -> bool:
    """Whether this process speaks for the run: it is rank 0 of its group, or alone."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None
