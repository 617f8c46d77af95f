"""The connection of a driver to a Ray cluster: to the one that RAY_ADDRESS names, or to one started here."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from launcher.config.schema import RunConfig
from launcher.errors import ClusterUnavailable
from launcher.ray_backend import spares
from launcher.signals import StopSignals
from resnet_dist.input_files import printable

SHUTDOWN_S = 30.0  # assumption: longer than any shutdown that ends
REINSTALL_EVERY_S = 0.0001  # in which a signal could end the process


def connect(config: RunConfig, *, starts_early: bool = False) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one here; False if there is a connection already.

    `starts_early`: processes can be started before Ray Train needs them, by `launcher.ray_backend.spares`.
    """
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if starts_early:
        options["runtime_env"] = spares.job_runtime_env(config.resources.cpus_per_worker)
    if os.environ.get("RAY_ADDRESS"):
        try:
            _join(options)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterUnavailable(
                f"no Ray cluster at {os.environ['RAY_ADDRESS']}: {printable(str(error))}"
            ) from error
        return True
    num_cpus = max(os.cpu_count() or 1, config.workers.most * config.resources.cpus_per_worker)
    ray.init(address="local", num_cpus=num_cpus, object_store_memory=200_000_000, **options)
    return True


def _join(options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options)
    except ValueError:  # the runtime environment of the job has a hook of its own
        ray.init(**{**options, "runtime_env": None})


def shut_down(stop: StopSignals) -> None:
    """Disconnect from Ray, and end what was started here, in at most SHUTDOWN_S.

    It runs in a thread: Ray's core sets SIGTERM to its default action, and only the main thread can undo that.
    """
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    end = time.monotonic() + SHUTDOWN_S
    while thread.is_alive() and time.monotonic() < end:
        stop.reinstall()
        thread.join(REINSTALL_EVERY_S)
    stop.reinstall()
    with contextlib.suppress(ImportError, AttributeError):  # it writes an escape sequence when the process ends
        atexit.unregister(importlib.import_module("colorama.initialise").reset_all)
