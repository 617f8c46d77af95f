"""What every kind of failure means: one exit code and one retry rule, which `launcher.recovery.policy` applies."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.errors import (
    ClusterUnavailable,
    CollectiveFault,
    ConfigError,
    DeviceFault,
    HostFault,
    LauncherError,
    UsageError,
    UserCodeError,
    WorkerHung,
    WorkerLost,
)
from launcher.exit_codes import ExitCode
from launcher.recovery.policy import Retry
from launcher.run.lease import LeaseHeld, LeaseLost
from resnet_dist import errors

# What CUDA, NCCL and the driver say of a device that is broken (CUDA runtime's error strings; NVIDIA's Xid catalogue).
_BROKEN_DEVICE = re.compile(
    r"uncorrectable (ECC|NVLink)|unspecified launch failure|hardware stack error|fallen off the bus|\bXid\b"
    r"|CUDA-capable device\(s\) is/are busy or unavailable|device-side hardware|GPU is lost",
    re.IGNORECASE,
)
# What gloo and NCCL say on the workers that lost the one that failed.
_BROKEN_COLLECTIVE = re.compile(
    r"Connection (closed|reset|refused)|gloo|NCCL (error|communicator)|ncclRemoteError|Broken pipe|Socket Timeout"
    r"|wait timeout after|Timed out waiting|collective operation timeout|Watchdog caught",
    re.IGNORECASE,
)
MAX_PROBLEM = 400  # characters of Ray's text that a message repeats


@dataclass(frozen=True)
class Rule:
    """How a class of errors is answered."""

    error: type[BaseException]
    exit_code: ExitCode
    retry: Retry  # in a new attempt, from the newest checkpoint
    advice: str  # what a person does about it
    blames_node: bool = False  # whether it counts against the node that it came from

    @property
    def retried(self) -> bool:
        """Whether the same attempt is simply made again."""
        return self.retry is Retry.RESTART


# The first rule whose class fits holds: subclasses before their bases.
RULES = (
    Rule(UsageError, ExitCode.USAGE, Retry.NEVER, "correct the command line; the message lists what is allowed"),
    Rule(ConfigError, ExitCode.CONFIG, Retry.NEVER, "correct the config: each problem has its file, line and key"),
    Rule(
        LeaseHeld,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "the run is at work elsewhere: wait for it, stop it, or give this one another name",
    ),
    Rule(
        LeaseLost,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "nothing here: another process has taken the run over while this one was suspended or cut off",
    ),
    Rule(
        ClusterUnavailable,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "start the cluster, or the nodes that are missing, and start the run again: it goes on",
    ),
    Rule(
        WorkerLost,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "look at the host that is named: killed, out of memory (dmesg), or its node is gone",
        blames_node=True,
    ),
    Rule(
        WorkerHung,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "read stacks/ of the rank that is named; where all wait in a collective, look at the network",
        blames_node=True,
    ),
    Rule(
        CollectiveFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "look at the network between the nodes; flight/ has the last collectives",
    ),
    Rule(
        DeviceFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "take the node out and look at its GPU: nvidia-smi -q, dmesg for Xid",
        blames_node=True,
    ),
    Rule(
        HostFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "take the host that is named out, and look at its network and its GPUs; launcher doctor repeats the check",
        blames_node=True,
    ),
    Rule(
        UserCodeError,
        ExitCode.USER_CODE,
        Retry.RESTART,
        "mend the model, data source or optimizer that is named package.module:function in the config",
    ),
    Rule(LauncherError, ExitCode.INTERNAL, Retry.NEVER, "please report it: this is a mistake of the launcher"),
    Rule(errors.RecipeError, ExitCode.CONFIG, Retry.NEVER, "correct the value that is named; launcher plan checks it"),
    Rule(errors.DataError, ExitCode.DATA, Retry.NEVER, "mend or remove the file that is named"),
    Rule(
        errors.CheckpointError,
        ExitCode.DATA,
        Retry.NEVER,
        "restore a checkpoint from a copy, or move the folder away to start over; the log names each bad file",
    ),
    Rule(
        errors.DivergedError,
        ExitCode.DIVERGED,
        Retry.SKIP_DATA,
        "lower the peak LR or lengthen warm-up; faults.on_nonfinite: skip goes around the samples",
    ),
    Rule(
        errors.OutOfMemory,
        ExitCode.CONFIG,
        Retry.SPLIT_BATCH,
        "set batch.num_micro_batches to the number in the message, or to auto: the losses stay the same",
    ),
    Rule(
        errors.StorageError,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "free space, mend the mount or the permissions; checkpoints that were complete still are",
    ),
    Rule(errors.TrainingError, ExitCode.INTERNAL, Retry.NEVER, "please report it: this is a mistake of the data plane"),
    Rule(Exception, ExitCode.USER_CODE, Retry.RESTART, "the traceback is in the worker's log"),
)


def rule_for(error: BaseException) -> Rule:
    """The rule that answers `error`."""
    return next(rule for rule in RULES if isinstance(error, rule.error))


def is_broken_device(error: BaseException) -> bool:
    """Whether `error` is a device's own report of being broken."""
    return isinstance(error, RuntimeError) and _BROKEN_DEVICE.search(str(error)) is not None


def is_broken_collective(error: BaseException) -> bool:
    """Whether `error` is what a worker sees of another one's end."""
    return isinstance(error, RuntimeError) and _BROKEN_COLLECTIVE.search(str(error)) is not None


def in_our_words(error: BaseException, rank: int, host: str) -> BaseException:
    """An error of a worker as one of our classes, where it is a fault of the machines; else `error` itself."""
    if is_broken_device(error):
        return DeviceFault(host, rank, str(error).strip().splitlines()[0])
    if is_broken_collective(error):
        return CollectiveFault(f"worker {rank} on {host}: {str(error).strip().splitlines()[0]}")
    return error


def true_cause(failures: dict[int, BaseException]) -> tuple[int, BaseException]:
    """The rank and error that began it, of one error a rank.

    When one worker fails, the others lose their connection to it: an error of ours comes first, then a worker that
    hangs, then a lost one, then whatever is no complaint about a broken collective.
    """

    def weight(item: tuple[int, BaseException]) -> tuple[int, int]:
        rank, error = item
        if isinstance(error, CollectiveFault) or is_broken_collective(error):
            return (4, rank)
        if isinstance(error, WorkerHung):
            return (1, rank)
        if isinstance(error, WorkerLost):
            return (2, rank)
        return (0 if isinstance(error, errors.TrainingError | LauncherError) else 3, rank)

    return min(failures.items(), key=weight)


def lost_worker(rank: int, text: str) -> WorkerLost:
    """A lost worker from what Ray says of it: host, node and address where the text has them."""
    host = _found(r"(?:hostname|node_name)['\"]?\s*[:=]\s*['\"]?([\w.-]+)", text)
    ip = _found(r"(?:ip(?:_address)?|IP)['\"]?\s*[:=]\s*['\"]?(\d+\.\d+\.\d+\.\d+)", text)
    node_id = _found(r"node_?id['\"]?\s*[:=]\s*['\"]?([0-9a-f]{28,64})\b", text)
    return WorkerLost(host or ip or "an unknown host", rank, _problem(text), node_id, ip)


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return None if match is None else match[1]


def _problem(text: str) -> str:
    """The line of Ray's text that says most of what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for telling in (r"out of memory|OOM", r"node .*(died|dead|unreachable|fail)", r"died|killed|hanging|exit type"):
        found = next((line for line in lines if re.search(telling, line, re.IGNORECASE)), None)
        if found is not None:
            return re.split(r" (?:Some common causes|To troubleshoot)", found)[0][:MAX_PROBLEM]
    return lines[0] if lines else "no reason given"
