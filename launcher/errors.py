"""What can go wrong in the control plane, each with its exit code.

    LauncherError
    ├── UsageError           64   the command line is wrong: no such file, a bad override
    ├── ConfigError          78   the config is wrong; every problem found, with file, line and key
    ├── ClusterUnavailable   69   no cluster, or it did not start in time
    ├── WorkerLost           76   a worker or its node is gone
    ├── WorkerHung           76   a worker makes no progress
    ├── CollectiveFault      76   the workers lost touch with each other, and none of them is missing
    ├── DeviceFault          76   a GPU reports an error of its own, or fails the check before training
    ├── HostFault            76   the workers' check before training blames a host
    └── UserCodeError         1   a model, data source or optimizer of the user's own raised

The data plane's errors are in `resnet_dist.errors`; `launcher.recovery.faults` decides which of either are tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from launcher.exit_codes import ExitCode

MAX_PROBLEMS_SHOWN = 10  # a screenful; the first few usually explain the rest


@dataclass(frozen=True)
class Problem:
    """One mistake in a config.

    >>> print(Problem("x.yaml:14", "optimizer.momentun", "unknown key", "name, momentum", "momentum"))
    x.yaml:14: optimizer.momentun: unknown key. Allowed: name, momentum. Did you mean momentum?
    """

    place: str  # FILE:LINE, or the override on the command line
    key: str  # dotted; empty when the file as a whole is meant
    found: str
    allowed: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: {self.key}: " if self.key else f"{self.place}: "
        hint = f". Did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{where}{self.found}. Allowed: {self.allowed}{hint}"


class LauncherError(Exception):
    """Base of all errors that the control plane raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    gone: bool = False  # what this process still holds of a cluster or of a group may hang for ever

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; subclasses keep their attributes whatever their signatures are.
        return (_rebuild, (type(self), str(self), self.__dict__.copy()))


def _rebuild(kind: type[LauncherError], message: str, attributes: dict[str, object]) -> LauncherError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class UsageError(LauncherError):
    """The command line cannot be carried out."""

    exit_code = ExitCode.USAGE


class ConfigError(LauncherError):
    """A config that cannot be run. `problems` holds all that were found; the message shows the first ten."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [str(problem) for problem in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


class ClusterUnavailable(LauncherError):  # noqa: N818 - reads as what happened
    """There is no cluster to run on, or it did not start in time."""

    exit_code = ExitCode.UNAVAILABLE


class WorkerLost(LauncherError):  # noqa: N818 - reads as what happened
    """A worker ended without a word of its own: killed, out of memory, its node gone."""

    exit_code = ExitCode.HARDWARE

    def __init__(self, host: str, rank: int, problem: str, node_id: str | None = None, ip: str | None = None) -> None:
        super().__init__(f"worker {rank} on {host}: {problem}")
        self.host, self.rank, self.problem = host, rank, problem
        self.node_id, self.ip = node_id, ip


class WorkerHung(LauncherError):  # noqa: N818 - reads as what happened
    """A worker makes no progress. `rank` is the one that the others wait for; None where all of them wait."""

    exit_code = ExitCode.HARDWARE

    def __init__(
        self, host: str, rank: int | None, phase: str, step: int, problem: str, node_id: str | None = None
    ) -> None:
        who = "all workers" if rank is None else f"worker {rank} on {host}"
        super().__init__(f"{who} at step {step} ({phase}): {problem}")
        self.host, self.rank, self.phase, self.step, self.problem = host, rank, phase, step, problem
        self.node_id = node_id


class CollectiveFault(LauncherError):  # noqa: N818 - reads as what happened
    """A collective failed on workers that are all there: the network, or NCCL."""

    exit_code = ExitCode.HARDWARE


class DeviceFault(LauncherError):  # noqa: N818 - reads as what happened
    """A GPU reports an error of its own: memory that cannot be corrected, a launch that failed, fallen off the bus."""

    exit_code = ExitCode.HARDWARE

    def __init__(self, host: str, rank: int, problem: str, node_id: str | None = None) -> None:
        super().__init__(f"worker {rank} on {host}: {problem}")
        self.host, self.rank, self.problem, self.node_id = host, rank, problem, node_id


class HostFault(LauncherError):  # noqa: N818 - reads as what happened
    """An all-reduce before training fails because of `host`; `rank` is its first worker."""

    exit_code = ExitCode.HARDWARE

    def __init__(self, host: str, rank: int, problem: str, node_id: str | None = None) -> None:
        super().__init__(f"{host}: {problem}")
        self.host, self.rank, self.problem, self.node_id = host, rank, problem, node_id


class UserCodeError(LauncherError):
    """The user's own function raised. `name` is its `package.module:function`; the cause is chained."""

    exit_code = ExitCode.USER_CODE

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name, self.problem = name, problem
