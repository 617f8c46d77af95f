"""A run through Ray Train: one `fit()` an attempt, with every retry of Ray's own switched off.

Ray counts dead and draining nodes, retries every error alike and may resume from a checkpoint before the newest, so
the loop over attempts, the choice of the checkpoint and the rule for retries are ours.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from launcher import config as configs
from launcher import resume
from launcher.errors import ClusterUnavailable, LauncherError, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.faults import rule_for, true_cause
from launcher.progress import Progress
from launcher.ray_environment import START_TIMEOUT_S
from launcher.ray_worker import train_function
from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory
from launcher.signals import StopSignals
from launcher.worker import stop_file
from resnet_dist.errors import TrainingError

POLL_S = 0.1  # how often the driver looks for new metrics


def run_ray(
    config: RunConfig, run: RunDirectory, mode: resume.ResumeMode, progress: Progress
) -> tuple[ExitCode, dict[str, Any]]:
    """Train through Ray: on the cluster that RAY_ADDRESS names, or on one started here. Errors are raised."""
    start = resume.choose(config, run, mode)
    run.write_config(configs.to_yaml(config))
    for line in start.notes:
        progress.say(line)
    started_here = _connect(config)
    try:
        _wait_for_resources(config)
        return _attempts(config, run, start, progress)
    finally:
        if started_here:
            ray.shutdown()


def _attempts(
    config: RunConfig, run: RunDirectory, start: resume.Start, progress: Progress
) -> tuple[ExitCode, dict[str, Any]]:
    failures = 0
    while True:
        facts = {"place": "ray", "workers": config.workers, "from_step": start.step}
        attempt = run.begin_attempt(facts)
        with StopSignals(on_stop=stop_file(run, attempt).touch) as signals:
            try:
                outcome = _fit(config, run, attempt, start.checkpoint, progress)
            except Exception as error:
                rule = rule_for(error)
                run.end_attempt(attempt, rule.exit_code, f"{type(error).__name__}: {error}", None)
                failures += 1
                if not rule.retried or failures > config.faults.max_failures or signals.stopped:
                    raise
                progress.say(f"attempt {attempt} failed: {error}")
                start = resume.choose(config, run, "auto")
                progress.say(f"starting again ({failures} of {config.faults.max_failures} failures): {start.notes[0]}")
                continue
            code = ExitCode.OK if outcome["finished"] else signals.exit_code if signals.stopped else ExitCode.STOPPED
            cause = "finished" if outcome["finished"] else "stopped on request"
            run.end_attempt(attempt, code, cause, outcome["step"])
            return code, outcome


def _fit(
    config: RunConfig, run: RunDirectory, attempt: int, checkpoint: Path | None, progress: Progress
) -> dict[str, Any]:
    """One attempt. `fit()` runs in a thread: this one must be free for signals, and shows the metrics."""
    resources = {"CPU": float(config.resources.cpus_per_worker)}
    use_gpu = config.resources.gpus_per_worker > 0
    trainer = TorchTrainer(
        train_function,
        train_loop_config={"config": config, "attempt": attempt, "checkpoint": checkpoint},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(run.logs(attempt)),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    answer: dict[str, Any] = {}

    def fit() -> None:
        try:
            answer["outcome"] = trainer.fit().return_value
        except BaseException as error:
            answer["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    follower = _Follower(run.metrics)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        for record in follower.new_records():
            progress.record(record)
    for record in follower.new_records():
        progress.record(record)
    if "error" in answer:
        raise _ours(answer["error"]) from answer["error"]
    outcome: dict[str, Any] = answer["outcome"]
    return outcome


def _ours(error: BaseException) -> Exception:
    """What went wrong in our own words: the worker's error itself, or that the worker is gone."""
    if isinstance(error, WorkerGroupError):
        failures = {rank: _worker_error(rank, failure) for rank, failure in error.worker_failures.items()}
        _, cause = true_cause(failures)
        return cause if isinstance(cause, Exception) else WorkerLost("unknown host", 0, str(cause))
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if "Timeout" in type(failure).__name__:
            return ClusterUnavailable(f"the workers were not placed within {START_TIMEOUT_S} s: {failure}")
        return failure if isinstance(failure, TrainingError | LauncherError) else ClusterUnavailable(str(failure))
    if isinstance(error, TrainingFailedError):
        return ClusterUnavailable(str(error))
    return ClusterUnavailable(f"the Ray cluster is gone: {error}")


def _worker_error(rank: int, failure: BaseException) -> BaseException:
    if "HealthCheck" in type(failure).__name__ or type(failure).__module__.startswith("ray."):
        return WorkerLost("the host that Ray names", rank, str(failure).strip() or type(failure).__name__)
    return failure


def _connect(config: RunConfig) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one here; True where it was started here."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError) as error:
            raise ClusterUnavailable(f"no Ray cluster at {os.environ['RAY_ADDRESS']}: {error}") from error
        return False
    needed = config.workers * config.resources.cpus_per_worker
    num_cpus = max(os.cpu_count() or 1, needed)
    ray.init(address="local", num_cpus=num_cpus, object_store_memory=200_000_000, **quiet)
    return True


def _wait_for_resources(config: RunConfig) -> None:
    """Fail early, with the numbers, where the cluster can never hold the workers."""
    needed = {"CPU": config.workers * config.resources.cpus_per_worker}
    if config.resources.gpus_per_worker:
        needed["GPU"] = config.workers
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        have = ray.cluster_resources()
        missing = {name: count for name, count in needed.items() if have.get(name, 0) < count}
        if not missing:
            return
        if time.monotonic() > deadline or not os.environ.get("RAY_ADDRESS"):
            found = ", ".join(f"{have.get(name, 0):g} of {count} {name}" for name, count in missing.items())
            raise ClusterUnavailable(f"the Ray cluster has {found} that {config.workers} workers need")
        time.sleep(1)


class _Follower:
    """Reads what is appended to a file of JSON lines, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_records(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if line.strip():
                    yield json.loads(line)
