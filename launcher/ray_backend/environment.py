"""Constants, and environment variables for Ray, set before its import: its core reads them only then."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from launcher.config.schema import RunConfig

# Memory of an idle process that it shares with no other: 310 MB with PyTorch for the CPU (Pss_Anon in
# /proc/PID/smaps_rollup); assumption: twice that with the libraries of CUDA.
SPARE_BYTES = 620 * 10**6
MEMORY_SHARE = 0.1  # of the memory that Ray counts on a node, for all idle processes
MIN_START_S = 15.0  # for Ray to place workers if fewer would suffice: time that is lost if it cannot
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # `fit()` returns sooner after the last step
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # each print() of a worker once, not twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process at every start; the driver sees draining nodes itself
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; if unset, Ray warns at every start
}

_SETTINGS_OF_OWN_CLUSTER = {
    "RAY_num_workers_soft_limit": "64",  # idle processes that Ray keeps: without it, as many as CPUs are free
    "RAY_prestart_worker_first_driver": "0",  # one process for each CPU, which no worker of Ray Train can use
}


def set_up() -> None:
    """Set variables that the user has not set. After an import of Ray, its authentication is not changed."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        for name, value in _SETTINGS_OF_OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
        if "ray" not in sys.modules:
            _use_a_token()


def _use_a_token() -> None:
    """Enable token authentication for a cluster started here: without it, anyone who reaches a port can run code.

    The token is created here because Ray makes its own readable to all users, and its server exits if there is none.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    token = Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, exist_ok=True)
    token.parent.chmod(0o700)  # Ray creates it readable to all users
    try:
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token.chmod(0o600)
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def set_timeouts(config: RunConfig) -> None:
    """Set the timeouts of Ray Train, which hands them on to its controller and workers."""
    faults = config.faults
    start_s = max(faults.start_timeout_s / 4, MIN_START_S) if config.workers.elastic else faults.start_timeout_s
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{start_s:g}"
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{faults.hang_timeout_s:g}"
