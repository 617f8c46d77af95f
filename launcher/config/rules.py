"""Which run configs are valid: the rules of a run, beside the recipe's own."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator

import resnet_dist.recipe.rules
from launcher.config.schema import CheckpointConfig, Faults, LogConfig, Notify, RunConfig
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import at_least, positive, require, unused

# Valid as a folder on every file system, as a SLURM job name and in a URL; 100 leaves space for suffixes.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WALLTIME = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")
_OBJECT_STORE = re.compile(r"[a-z][a-z0-9+]*://.+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# USER@ or a query in any address; in http(s), a path part that is long enough for a token (Slack, PagerDuty and others
# use 24 characters or more).
_CREDENTIALS = re.compile(r"://[^/\s]*@|://\S*\?|https?://\S*/[^/\s]{21}")


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
        *_checkpoint(config.checkpoint),
        *_log(config.log),
        *_faults(config.faults),
        *_notify(config.notify),
        *_workers(config),
        *_devices(config),
    ]
    notice_s = config.preemption.notice_s
    found += require(_is_positive(notice_s), "preemption.notice_s", notice_s, "seconds above 0, or null")
    for workers in sorted({config.workers.most, config.workers.least}, reverse=True):
        known = {str(error) for error in found}  # most rules report the same for both ends
        of_recipe = resnet_dist.recipe.rules.problems(config, workers, num_samples)
        found += [error for error in of_recipe if str(error) not in known]
    return found


def has_credentials(address: str) -> bool:
    """Whether an address has credentials in it, or something that may be one.

    That is USER@, a query or, in http(s), a part of the path with more than 20 characters.

    >>> has_credentials("https://hooks.example.org/services/T02/B04/qX7wJ2mKp9LdR4sVtY8zN3cF")
    True
    >>> has_credentials("https://example.org/hooks/training")
    False
    """
    return _CREDENTIALS.search(address) is not None


def _checkpoint(checkpoint: CheckpointConfig) -> Iterator[RecipeError]:
    yield from positive("checkpoint.every", checkpoint.every)
    if checkpoint.keep_every is not None:
        yield from positive("checkpoint.keep_every", checkpoint.keep_every)
    yield from at_least(1, "checkpoint.keep", checkpoint.keep)
    yield from at_least(0, "checkpoint.keep_best", checkpoint.keep_best)
    yield from at_least(0, "checkpoint.max_failures", checkpoint.max_failures)
    mirror = checkpoint.mirror
    if mirror is not None and has_credentials(mirror):
        yield _credentials("checkpoint.mirror", "s3://BUCKET/FOLDER, with credentials in the environment")
    elif mirror is not None and _OBJECT_STORE.fullmatch(mirror) is None:
        allowed = "the address of an object store: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER"
        yield RecipeError("checkpoint.mirror", f'found "{mirror}"', allowed)


def _log(log: LogConfig) -> Iterator[RecipeError]:
    yield from at_least(1, "log.every_steps", log.every_steps)
    if log.profile is not None and log.profiled_steps() is None:
        allowed = 'the first and the last step to profile, both from 1: "10:20"'
        yield RecipeError("log.profile", f'found "{log.profile}"', allowed)


def _faults(faults: Faults) -> Iterator[RecipeError]:
    yield from at_least(0, "faults.max_failures", faults.max_failures)
    yield from at_least(1, "faults.max_skips", faults.max_skips)
    yield from at_least(1, "faults.max_node_failures", faults.max_node_failures)
    for key in ("hang_timeout_s", "start_timeout_s"):
        seconds = getattr(faults, key)
        yield from require(1 <= seconds < math.inf, f"faults.{key}", f"{seconds:g}", "seconds, from 1 up")


def _notify(notify: Notify) -> Iterator[RecipeError]:
    if notify.command is not None:
        yield from _command(notify.command)
    if notify.webhook is not None and has_credentials(notify.webhook):
        allowed = "notify.webhook_env: NAME, an environment variable of the driver that holds the address"
        yield _credentials("notify.webhook", allowed)
    elif notify.webhook is not None and re.fullmatch(r"https?://\S+", notify.webhook) is None:
        allowed = "an address that begins with https:// or http://"
        yield RecipeError("notify.webhook", f'found "{notify.webhook}"', allowed)
    if notify.webhook_env is not None and _VARIABLE.fullmatch(notify.webhook_env) is None:
        # The value is not shown: it may be the address itself.
        allowed = "letters, digits and _, no digit first: PAGER_URL"
        yield RecipeError("notify.webhook_env", "found a value that cannot be the name of a variable", allowed)
    if notify.webhook_env is not None and notify.webhook is not None:
        yield RecipeError("notify.webhook_env", "found together with notify.webhook", "one of the two")
    minutes = notify.no_progress_minutes
    yield from require(_is_positive(minutes), "notify.no_progress_minutes", minutes, "minutes above 0, or null")
    if not any((notify.command, notify.webhook, notify.webhook_env)):
        yield from unused("notify.no_progress_minutes", minutes, "notify.command, notify.webhook or notify.webhook_env")


def _command(command: str) -> Iterator[RecipeError]:
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        words = []
    if not words:
        yield RecipeError("notify.command", f"found '{command}'", "a program and its arguments, quotes closed")
    if any(map(has_credentials, words)):
        yield _credentials("notify.command", "a program that reads the address from where you keep it")


def _credentials(key: str, allowed: str) -> RecipeError:
    found = (
        "found an address with USER@, a query or a long path part, which may be a credential: a config is not secret"
    )
    return RecipeError(key, found, allowed)


def _workers(config: RunConfig) -> Iterator[RecipeError]:
    workers, nodes = config.workers.most, config.cluster.nodes
    yield from at_least(1, "workers", config.workers.least)
    yield from require(
        config.workers.least <= workers, "workers", config.workers, "LEAST..MOST, the smaller number first"
    )
    yield from at_least(1, "cluster.nodes", nodes)
    if workers >= 1 and nodes >= 1 and workers % nodes:
        whole = sorted({max(1, workers // nodes) * nodes, (workers // nodes + 1) * nodes})
        yield RecipeError(
            "workers",
            f"found {config.workers}, and cluster.nodes {nodes} does not divide {workers}",
            f"the same number of workers on every node: nearest {' or '.join(map(str, whole))}",
        )
    walltime = config.cluster.walltime
    match = None if walltime is None else _WALLTIME.fullmatch(walltime)
    if walltime is not None and (match is None or not any(int(part) for part in match.groups())):
        yield RecipeError("cluster.walltime", f'found "{walltime}"', 'hours:minutes:seconds, quoted: "04:00:00"')


def _devices(config: RunConfig) -> Iterator[RecipeError]:
    resources = config.resources
    yield from at_least(1, "resources.cpus_per_worker", resources.cpus_per_worker)
    yield from require(
        resources.gpus_per_worker in (0, 1),
        "resources.gpus_per_worker",
        resources.gpus_per_worker,
        "0 or 1: a worker is one process with one GPU; for more GPUs raise workers",
    )
    if resources.gpus_per_worker == 0:
        on_cpu = "on a CPU (resources.gpus_per_worker is 0)"
        if config.precision == "tf32":
            allowed = "float32, bfloat16, float64; or resources.gpus_per_worker 1"
            yield RecipeError("precision", f"found tf32, which has no effect {on_cpu}", allowed)
        if config.speed.cuda_graph:
            yield RecipeError("speed.cuda_graph", f"found true {on_cpu}", "false, or gpus_per_worker 1")


def _is_positive(value: float | None) -> bool:
    """Whether a value is above 0 and finite, or not given."""
    return value is None or 0 < value < math.inf
