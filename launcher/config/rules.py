"""Which run configs are valid: the rules of a run, beside the recipe's own."""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Iterator

import resnet_dist.recipe.rules
from launcher.config import credentials
from launcher.config.schema import LARGEST_GROUP, CheckpointConfig, Faults, LogConfig, Notify, RunConfig
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import WEEK_S, positive, require, unused, within

# Valid as a folder on every file system, as a SLURM job name and in a URL; 100 leaves space for suffixes.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WALLTIME = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")
_OBJECT_STORE = re.compile(r"[a-z][a-z0-9+]*://.+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_CPUS = 4096  # of a host: each is a thread


def problems(config: RunConfig, num_samples: int | None = None) -> list[RecipeError]:
    """All mistakes of a run: by its own rules, and by the recipe's for both ends of the range of workers.

    `num_samples` is the training split's size if it is known; see `resnet_dist.recipe.rules.problems`.
    """
    found = [
        *require(
            _SAFE_NAME.fullmatch(config.name) is not None,
            "name",
            f'"{config.name}"',
            "letters, digits, . _ and -, a letter or digit first, 100 at most",
        ),
        *_credentials(config),
        *_checkpoint(config.checkpoint),
        *_log(config.log),
        *_faults(config.faults),
        *_notify(config.notify),
        *_workers(config),
        *_devices(config),
    ]
    notice_s, allowed = config.preemption.notice_s, f"seconds, above 0 and up to {WEEK_S}, or null"
    found += require(notice_s is None or 0 < notice_s <= WEEK_S, "preemption.notice_s", notice_s, allowed)
    for workers in sorted({config.workers.most, config.workers.least}, reverse=True):
        known = {str(error) for error in found}  # most rules report the same for both ends
        of_recipe = resnet_dist.recipe.rules.problems(config, workers, num_samples)
        found += [error for error in of_recipe if str(error) not in known]
    return found


def _credentials(config: RunConfig) -> Iterator[RecipeError]:
    for key in credentials.KEYS:
        value = operator.attrgetter(key)(config)
        if value is not None and credentials.in_text(value):
            yield RecipeError(key, credentials.FOUND, credentials.instead(key))


def _checkpoint(checkpoint: CheckpointConfig) -> Iterator[RecipeError]:
    yield from positive("checkpoint.every", checkpoint.every)
    if checkpoint.keep_every is not None:
        yield from positive("checkpoint.keep_every", checkpoint.keep_every)
    yield from within(1, "checkpoint.keep", checkpoint.keep)
    yield from within(0, "checkpoint.keep_best", checkpoint.keep_best)
    yield from within(0, "checkpoint.max_failures", checkpoint.max_failures)
    mirror = checkpoint.mirror
    if mirror is not None and _OBJECT_STORE.fullmatch(mirror) is None:
        allowed = "the address of an object store: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER"
        yield RecipeError("checkpoint.mirror", f'found "{mirror}"', allowed)


def _log(log: LogConfig) -> Iterator[RecipeError]:
    yield from within(1, "log.every_steps", log.every_steps)
    if log.profile is not None and log.profiled_steps() is None:
        allowed = 'the first and the last step to profile, both from 1: "10:20"'
        yield RecipeError("log.profile", f'found "{log.profile}"', allowed)


def _faults(faults: Faults) -> Iterator[RecipeError]:
    yield from within(0, "faults.max_failures", faults.max_failures)
    yield from within(1, "faults.max_skips", faults.max_skips)
    yield from within(1, "faults.max_node_failures", faults.max_node_failures)
    for key in ("hang_timeout_s", "start_timeout_s"):
        seconds = getattr(faults, key)
        yield from require(1 <= seconds <= WEEK_S, f"faults.{key}", f"{seconds:g}", f"seconds, from 1 to {WEEK_S}")


def _notify(notify: Notify) -> Iterator[RecipeError]:
    if notify.command is not None:
        yield from _command(notify.command)
    if notify.webhook is not None and re.fullmatch(r"https?://\S+", notify.webhook) is None:
        allowed = "an address that begins with https:// or http://"
        yield RecipeError("notify.webhook", f'found "{notify.webhook}"', allowed)
    if notify.webhook_env is not None and _VARIABLE.fullmatch(notify.webhook_env) is None:
        # The value is not shown: it may be the address itself.
        allowed = "letters, digits and _, no digit first: PAGER_URL"
        yield RecipeError("notify.webhook_env", "found a value that cannot be the name of a variable", allowed)
    if notify.webhook_env is not None and notify.webhook is not None:
        yield RecipeError(
            "notify.webhook_env", "found together with notify.webhook", "one of the two", ("notify.webhook",)
        )
    key, minutes, most = "notify.no_progress_minutes", notify.no_progress_minutes, WEEK_S // 60
    yield from require(
        minutes is None or 0 < minutes <= most, key, minutes, f"minutes, above 0 and up to {most}, or null"
    )
    if not any((notify.command, notify.webhook, notify.webhook_env)):
        yield from unused(key, minutes, "notify.command, notify.webhook or notify.webhook_env")


def _command(command: str) -> Iterator[RecipeError]:
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        words = []
    if not words:
        yield RecipeError("notify.command", f"found '{command}'", "a program and its arguments, quotes closed")


def _workers(config: RunConfig) -> Iterator[RecipeError]:
    workers, nodes = config.workers.most, config.cluster.nodes
    for number in sorted({config.workers.least, workers}):
        yield from within(1, "workers", number, LARGEST_GROUP)
    yield from require(
        config.workers.least <= workers, "workers", config.workers, "LEAST..MOST, the smaller number first"
    )
    yield from within(1, "cluster.nodes", nodes)
    yield from within(0, "cluster.max_requeues", config.cluster.max_requeues)
    if workers >= 1 and nodes >= 1 and workers % nodes:
        whole = sorted({max(1, workers // nodes) * nodes, (workers // nodes + 1) * nodes})
        yield RecipeError(
            "workers",
            f"found {config.workers}, and cluster.nodes {nodes} does not divide {workers}",
            f"the same number of workers on every node: nearest {' or '.join(map(str, whole))}",
            ("cluster.nodes",),
        )
    walltime = config.cluster.walltime
    match = None if walltime is None else _WALLTIME.fullmatch(walltime)
    if walltime is not None and (match is None or not any(int(part) for part in match.groups())):
        yield RecipeError("cluster.walltime", f'found "{walltime}"', 'hours:minutes:seconds, quoted: "04:00:00"')


def _devices(config: RunConfig) -> Iterator[RecipeError]:
    resources = config.resources
    yield from within(1, "resources.cpus_per_worker", resources.cpus_per_worker, _MOST_CPUS)
    yield from require(
        resources.gpus_per_worker in (0, 1),
        "resources.gpus_per_worker",
        resources.gpus_per_worker,
        "0 or 1: a worker is one process with one GPU; for more GPUs raise workers",
    )
    if resources.gpus_per_worker == 0:
        on_cpu, others = "on a CPU (resources.gpus_per_worker is 0)", ("resources.gpus_per_worker",)
        if config.precision == "tf32":
            allowed = "float32, bfloat16, float64; or resources.gpus_per_worker 1"
            yield RecipeError("precision", f"found tf32, which has no effect {on_cpu}", allowed, others)
        if config.speed.cuda_graph:
            yield RecipeError("speed.cuda_graph", f"found true {on_cpu}", "false, or gpus_per_worker 1", others)
