"""A run through Ray Train: connects to a cluster, or starts one here, and drives the attempts on it.

What takes long is done at the same time: Ray Train is imported while Ray starts, and the workers' processes import
PyTorch while the driver prepares the first attempt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import threading
from collections.abc import Iterator

import ray

from launcher.config import load as configs
from launcher.exit_codes import ExitCode
from launcher.ray_backend import environment
from launcher.ray_backend.connection import connect, shut_down
from launcher.recovery import resume
from launcher.recovery.attempt import AttemptResult, ResumeMode
from launcher.recovery.session import Session


def run_ray(session: Session, mode: ResumeMode) -> tuple[ExitCode, AttemptResult]:
    """Train on the cluster that RAY_ADDRESS names, or on one started here. Raises the error that ended the run."""
    start = resume.choose(session.config, session.run, mode)
    session = dataclasses.replace(session, config=start.config)
    session.run.write_config(configs.to_yaml(start.config))
    for line in start.notes:
        session.progress.print(line)
    if session.stop.stopped:
        return session.stop.exit_code, AttemptResult(start.step, finished=False, trained=False)
    environment.set_timeouts(start.config)
    address = os.environ.get("RAY_ADDRESS")
    session.progress.stage(f"connecting to Ray at {address}" if address else "starting Ray on this machine")
    threading.Thread(target=_import_driver, name="import-ray-train", daemon=True).start()
    with session.stop.kept(), _exits_after(start.config.faults.start_timeout_s, session.attended):
        connected_here = connect(start.config, starts_early=True)
    session.stop.reinstall()
    from launcher.ray_backend.cluster import Cluster  # waits until the thread has imported Ray Train
    from launcher.ray_backend.driver import Driver
    from launcher.ray_backend.failures import ClusterGone

    try:
        with session.stop.listen(on_end=ray.shutdown):
            result = Driver(session, Cluster(start.config.resources)).run(start)
    except ClusterGone:
        raise  # a shutdown would wait for the cluster
    except BaseException:
        if connected_here:
            shut_down(session.stop)
        raise
    if connected_here:
        session.progress.stage("disconnecting from Ray" if address else "stopping Ray")
        shut_down(session.stop)
        session.progress.stage(None)
    return result


def _import_driver() -> None:
    with contextlib.suppress(Exception):  # the main thread imports it, too, and raises the error
        importlib.import_module("launcher.ray_backend.driver")


@contextlib.contextmanager
def _exits_after(seconds: float, attended: bool) -> Iterator[None]:
    """Exit if the block takes longer: Ray waits without limit for a cluster that ends while it connects."""

    def end() -> None:
        print(f"error: the Ray cluster did not answer within {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(ExitCode.UNAVAILABLE)

    timer = threading.Timer(seconds, end)
    if attended:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
