"""The errors of the launcher, with their exit codes.

    LauncherError
    ├── UsageError           64   invalid command line: no such file, an invalid override
    ├── ConfigError          78   invalid config; all problems, with file, line and key
    ├── ClusterUnavailable   69   no cluster, or it did not start in time
    ├── WorkerLost           76   a worker or its node is lost
    ├── WorkerHung           76   a worker makes no progress
    ├── CollectiveFault      76   a collective failed although no worker is missing
    ├── DeviceFault          76   a GPU reports an error, or fails the check before training
    ├── HostFault            76   the all-reduce before training fails because of a host
    └── UserCodeError         1   the user's model, data source or optimizer raised

`resnet_dist.errors` has those of training. `launcher.recovery.faults` has the exit code and retry rule of each class.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import Problem as Problem  # configs and profiles have one type of mistake

PROJECT = "resnet-launcher"  # the key of MissingPackage if a package is missing that every run requires
MAX_PROBLEMS_SHOWN = 10  # a screenful; the first few usually explain the rest


class LauncherError(Exception):
    """Base of all errors that the launcher raises on purpose."""

    skip_shutdown: bool = False  # whether shutting down the cluster or the process group would hang

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between processes: this keeps the attributes of subclasses, whatever their signatures.
        return (_rebuild, (type(self), str(self), self.__dict__.copy()))


def _rebuild(kind: type[LauncherError], message: str, attributes: dict[str, object]) -> LauncherError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class UsageError(LauncherError):
    """An invalid command line."""


class ConfigError(LauncherError):
    """An invalid config. `problems` has all problems; the message shows the first ten."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [str(problem) for problem in problems[:MAX_PROBLEMS_SHOWN]]
        if len(problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


class ClusterUnavailable(LauncherError):  # noqa: N818 - reads as what happened
    """There is no cluster to run on, or it did not start in time."""


class _WorkerError(LauncherError):
    """An error of worker `rank` on `host`; `node_id` is Ray's id of its node."""

    def __init__(self, host: str, rank: int, problem: str, node_id: str | None = None) -> None:
        super().__init__(f"worker {rank} on {host}: {problem}")
        self.host, self.rank, self.problem, self.node_id = host, rank, problem, node_id


class WorkerLost(_WorkerError):  # noqa: N818 - reads as what happened
    """A worker ended without raising an error: it was killed, ran out of memory, or its node was lost."""


class WorkerHung(LauncherError):  # noqa: N818 - reads as what happened
    """A worker makes no progress. `rank` is the worker that the others wait for; None if all of them wait."""

    def __init__(
        self, host: str, rank: int | None, phase: str, step: int, problem: str, node_id: str | None = None
    ) -> None:
        who = "all workers" if rank is None else f"worker {rank} on {host}"
        super().__init__(f"{who} at step {step} ({phase}): {problem}")
        self.host, self.rank, self.phase, self.step, self.problem = host, rank, phase, step, problem
        self.node_id = node_id


class CollectiveFault(LauncherError):  # noqa: N818 - reads as what happened
    """A collective failed although no worker is missing: a problem of the network, or of NCCL."""


class DeviceFault(_WorkerError):  # noqa: N818 - reads as what happened
    """A GPU reports an error: uncorrectable memory, a failed launch, fallen off the bus."""


class HostFault(_WorkerError):  # noqa: N818 - reads as what happened
    """The all-reduce before training fails because of `host`; `rank` is its first worker."""

    def __init__(self, host: str, rank: int, problem: str, node_id: str | None = None) -> None:
        super().__init__(host, rank, problem, node_id)
        self.args = (f"{host}: {problem}",)


class UserCodeError(LauncherError):
    """The user's function `name`, as `package.module:function`, raised; the cause is chained."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name, self.problem = name, problem
