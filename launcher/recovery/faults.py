"""The rule for each kind of failure: its exit code, and whether `launcher.recovery.policy` retries it."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from launcher.formatting import printable_lines
from launcher.recovery.policy import Retry
from launcher.recovery.portable import message_of
from launcher.run.lease import LeaseHeld, LeaseLost
from resnet_dist import errors
from resnet_dist.input_files import printable

# Messages of CUDA, NCCL and the driver for a broken device (CUDA runtime error strings; NVIDIA's Xid catalogue).
_BROKEN_DEVICE = re.compile(
    r"uncorrectable (ECC|NVLink)|unspecified launch failure|hardware stack error|fallen off the bus|\bXid\b"
    r"|CUDA-capable device\(s\) is/are busy or unavailable|device-side hardware|GPU is lost",
    re.IGNORECASE,
)
# Messages of gloo and NCCL on workers that lost their connection to a failed one.
_BROKEN_COLLECTIVE = re.compile(
    r"Connection (closed|reset|refused)|gloo|NCCL (error|communicator)|ncclRemoteError|Broken pipe|Socket Timeout"
    r"|wait timeout after|Timed out waiting|collective operation timeout|Watchdog caught",
    re.IGNORECASE,
)
MAX_PROBLEM = 400  # characters of Ray's text quoted in a message


@dataclass(frozen=True)
class Rule:
    """How a class of errors is handled."""

    error: type[BaseException]
    exit_code: ExitCode
    retry: Retry  # in a new attempt, from the newest checkpoint
    advice: str  # for a person
    blames_node: bool = False  # whether it counts as a failure of its node


# The first rule whose class matches applies: subclasses come before their bases.
RULES = (
    Rule(UsageError, ExitCode.USAGE, Retry.NEVER, "correct the command line; the message lists what is allowed"),
    Rule(ConfigError, ExitCode.CONFIG, Retry.NEVER, "correct the config: each problem has its file, line and key"),
    Rule(
        LeaseHeld,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "another process runs this run: wait for it, stop it, or choose another name",
    ),
    Rule(
        LeaseLost,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "nothing: another process took over the run while this one was suspended or disconnected",
    ),
    Rule(
        ClusterUnavailable,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "start the cluster, or the missing nodes, then run the same command again: it resumes",
    ),
    Rule(
        WorkerLost,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "check the named host: the worker was killed or ran out of memory (dmesg), or the node was lost",
        blames_node=True,
    ),
    Rule(
        WorkerHung,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "read stacks/ of the named rank; if all ranks wait in a collective, check the network",
        blames_node=True,
    ),
    Rule(
        CollectiveFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "check the network between the nodes; flight/ has the last collectives",
    ),
    Rule(
        DeviceFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "remove the node from the cluster and check its GPU: nvidia-smi -q, dmesg for Xid",
        blames_node=True,
    ),
    Rule(
        HostFault,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "remove the named host and check its network and GPUs; launcher doctor repeats the check",
        blames_node=True,
    ),
    Rule(
        UserCodeError,
        ExitCode.USER_CODE,
        Retry.RESTART,
        "fix the model, data source or optimizer that the config names as package.module:function",
    ),
    Rule(LauncherError, ExitCode.INTERNAL, Retry.NEVER, "internal error (a bug) in launcher: please report it"),
    Rule(
        errors.RecipeError,
        ExitCode.CONFIG,
        Retry.NEVER,
        "correct the value that the message names; launcher plan checks it",
    ),
    Rule(
        errors.DataError,
        ExitCode.DATA,
        Retry.NEVER,
        "repair the file that the message names, or list it in `data.known_bad`; then run the same command again",
    ),
    Rule(
        errors.StoreUnavailable,
        ExitCode.UNAVAILABLE,
        Retry.NEVER,
        "wait until the object store or file system answers, or repair the credentials of the workers; then run the "
        "same command again: it resumes",
    ),
    Rule(
        errors.CheckpointError,
        ExitCode.DATA,
        Retry.NEVER,
        "restore a checkpoint from a copy, or move the folder away and start over with --resume never; the log names "
        "each bad file",
    ),
    Rule(
        errors.DivergedError,
        ExitCode.DIVERGED,
        Retry.SKIP_DATA,
        "lower the peak LR or lengthen the warm-up; faults.on_nonfinite: skip skips the samples instead",
    ),
    Rule(
        errors.OutOfMemory,
        ExitCode.CONFIG,
        Retry.SPLIT_BATCH,
        "set batch.num_micro_batches to the number in the message, or to auto; the losses stay the same",
    ),
    Rule(
        errors.StorageError,
        ExitCode.HARDWARE,
        Retry.RESTART,
        "free disk space, or repair the mount or the permissions; complete checkpoints are not affected",
    ),
    Rule(
        errors.LedgerError,
        ExitCode.INTERNAL,
        Retry.NEVER,
        "internal error (a bug) in resnet_dist: please report it; the events epoch_complete in metrics.jsonl say up to "
        "which epoch the samples were right",
    ),
    Rule(
        errors.TrainingError, ExitCode.INTERNAL, Retry.NEVER, "internal error (a bug) in resnet_dist: please report it"
    ),
    Rule(Exception, ExitCode.USER_CODE, Retry.RESTART, "the traceback is in the worker's log"),
)


def rule_for(error: BaseException) -> Rule:
    """The rule for `error`."""
    return next(rule for rule in RULES if isinstance(error, rule.error))


def is_broken_device(error: BaseException) -> bool:
    """Whether `error` is the report of a broken device."""
    return isinstance(error, RuntimeError) and _BROKEN_DEVICE.search(message_of(error)) is not None


def is_broken_collective(error: BaseException) -> bool:
    """Whether `error` is a lost connection to another worker, which may have failed first."""
    return isinstance(error, RuntimeError) and _BROKEN_COLLECTIVE.search(message_of(error)) is not None


def translate_error(error: BaseException, rank: int, host: str) -> BaseException:
    """`error` of a worker as DeviceFault or CollectiveFault if it is a hardware fault; else `error` itself."""
    if is_broken_device(error):
        return DeviceFault(host, rank, printable_lines(error)[0])
    if is_broken_collective(error):
        return CollectiveFault(f"worker {rank} on {host}: {printable_lines(error)[0]}")
    return error


def select_root_cause(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """The rank and error of the root cause among `failures`, one error per rank.

    When one worker fails, the others lose their connection to it. So the launcher's own errors come first, then hangs,
    lost workers, other errors, and broken collectives last.
    """

    def order(item: tuple[int, BaseException]) -> tuple[int, int]:
        rank, error = item
        if isinstance(error, CollectiveFault) or is_broken_collective(error):
            return (4, rank)
        if isinstance(error, WorkerHung):
            return (1, rank)
        if isinstance(error, WorkerLost):
            return (2, rank)
        return (0 if isinstance(error, errors.TrainingError | LauncherError) else 3, rank)

    return min(failures.items(), key=order)


def parse_lost_worker(rank: int, text: str) -> WorkerLost:
    """A lost worker from Ray's text about it, with host, node and address if the text has them."""
    text = printable(text)
    host = _match(r"(?:hostname|node_name)['\"]?\s*[:=]\s*['\"]?([\w.-]+)", text)
    ip = _match(r"(?:ip(?:_address)?|IP)['\"]?\s*[:=]\s*['\"]?(\d+\.\d+\.\d+\.\d+)", text)
    node_id = _match(r"node_?id['\"]?\s*[:=]\s*['\"]?([0-9a-f]{28,64})\b", text)
    return WorkerLost(host or ip or "an unknown host", rank, _problem(text), node_id)


def _match(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return None if match is None else match[1]


def _problem(text: str) -> str:
    """The most informative line of Ray's text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (r"out of memory|OOM", r"node .*(died|dead|unreachable|fail)", r"died|killed|hanging|exit type"):
        found = next((line for line in lines if re.search(pattern, line, re.IGNORECASE)), None)
        if found is not None:
            return re.split(r" (?:Some common causes|To troubleshoot)", found)[0][:MAX_PROBLEM]
    return lines[0] if lines else "no reason given"
