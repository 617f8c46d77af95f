"""What Ray reads from the environment, set before it is imported: its core looks once, at import."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # `fit()` returns sooner after the last step
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # each print() of a worker once, not twice
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a frozen worker holds up a restart by no more
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; unset, it warns at every start
}


def set_up() -> None:
    """Set what the user has not set. Where Ray has been imported already, its authentication is left as it is."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        _use_a_token()


def _use_a_token() -> None:
    """Token authentication for a cluster of our own: without it, whoever reaches a port runs code here.

    Ray itself writes the token where every user can read it, and its server ends at once where the mode is set and
    there is none.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    token = Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, exist_ok=True)
    token.parent.chmod(0o700)  # Ray may have made it, for everyone to read
    try:
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token.chmod(0o600)
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
