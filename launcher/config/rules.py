"""Which run configs are valid: the rules of a run, beside the recipe's own."""

from __future__ import annotations

import dataclasses
import operator
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import resnet_dist.recipe.rules
from cluster.kubernetes.names import is_variable
from launcher.config import credentials
from launcher.config.schema import LARGEST_GROUP, LogConfig, Notify, RunConfig
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import (
    DURATION_ABOVE_0,
    REFERENCE_FORM,
    WEEK_S,
    Condition,
    require,
    unused,
    values,
    whole,
)

_MOST_CPUS = 4096  # of a host: each is a thread
_MOST_MINUTES = WEEK_S // 60


def _form(pattern: str) -> Callable[[Any], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


def _is_command(text: str) -> bool:
    try:
        return bool(shlex.split(text))
    except ValueError:  # an open quote
        return False


_TIMEOUT: Condition = lambda seconds: 1 <= seconds <= WEEK_S, f"seconds, from 1 to {WEEK_S}"

# key, its condition, what is allowed
_VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "name",  # valid as a folder on every file system, as a SLURM job name and in a URL, with space for suffixes
        _form(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
        "letters, digits, . _ and -, a letter or digit first, 100 at most",
    ),
    ("cluster.nodes", *whole(1)),
    ("cluster.max_requeues", *whole(0)),
    (
        "cluster.walltime",
        _form(r"(?!0+:00:00)[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]"),
        'hours:minutes:seconds, quoted: "04:00:00"',
    ),
    ("resources.cpus_per_worker", *whole(1, _MOST_CPUS)),
    (
        "resources.gpus_per_worker",
        lambda number: number in (0, 1),
        "0 or 1: a worker is one process with one GPU; for more GPUs raise workers",
    ),
    ("resources.local_workers", *whole(1, _MOST_CPUS)),
    ("checkpoint.every", *DURATION_ABOVE_0),
    ("checkpoint.keep_every", *DURATION_ABOVE_0),
    ("checkpoint.keep", *whole(1)),
    ("checkpoint.keep_best", *whole(0)),
    ("checkpoint.max_failures", *whole(0)),
    (
        "checkpoint.mirror",
        _form(r"[a-z][a-z0-9+]*://.+"),
        "the address of an object store: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER",
    ),
    ("log.every_steps", *whole(1)),
    ("log.layers_every_steps", *whole(1)),
    ("log.tensorboard_images", *whole(0, 1000)),
    ("log.wandb", _form(r"[^/\\#?%:\s]([^/\\#?%:]{0,126}[^/\\#?%:\s])?"), r"a project's name, without / \ # ? % :"),
    ("log.prometheus", _form(r"(.*/)?[^/]+\.prom"), "a file whose name ends with .prom, as the node exporter reads it"),
    ("faults.max_failures", *whole(0)),
    ("faults.max_skips", *whole(1)),
    ("faults.max_node_failures", *whole(1)),
    ("faults.warm_spares", *whole(0, 16)),
    ("faults.hang_timeout_s", *_TIMEOUT),
    ("faults.start_timeout_s", *_TIMEOUT),
    ("preemption.notice_s", lambda seconds: 0 < seconds <= WEEK_S, f"seconds, above 0 and up to {WEEK_S}, or null"),
    ("notify.command", _is_command, "a program and its arguments, quotes closed"),
    ("notify.webhook", _form(r"https?://\S+"), "an address that begins with https:// or http://"),
    (
        "notify.no_progress_minutes",
        lambda minutes: 0 < minutes <= _MOST_MINUTES,
        f"minutes, above 0 and up to {_MOST_MINUTES}, or null",
    ),
)


def problems(config: RunConfig, num_samples: int | None = None) -> list[RecipeError]:
    """All mistakes of a run: by its own rules, and by the recipe's for both ends of the range of workers.

    Under place local, the recipe's rules are those for `resources.local_workers`, too.
    `num_samples` is the training split's size if it is known; see `resnet_dist.recipe.rules.problems`.
    """
    found = list(_credentials(config))
    secret = {error.key for error in found}  # their values are not shown
    found += [error for error in values(config, _VALUES) if error.key not in secret]
    found += [*_log(config.log), *_layers(config), *_sinks(config.log)]
    found += [*_notify(config.notify), *_workers(config), *_local(config), *_best(config), *_on_cpu(config)]
    keys = dict.fromkeys(sorted({config.workers.most, config.workers.least}, reverse=True), "workers")
    if config.place == "local" and config.resources.local_workers > 1:
        keys.setdefault(config.resources.local_workers, "resources.local_workers")
    for workers, key in keys.items():
        known = {str(error) for error in found}  # most rules report the same for all numbers of workers
        for error in resnet_dist.recipe.rules.problems(config, workers, num_samples):
            if str(error) not in known:
                of_key = RecipeError(key, error.problem, error.allowed, error.others)
                found.append(of_key if error.key == "workers" else error)
    return found


def _credentials(config: RunConfig) -> Iterator[RecipeError]:
    for key in credentials.KEYS:
        value = operator.attrgetter(key)(config)
        if value is not None and credentials.in_text(value):
            yield RecipeError(key, credentials.FOUND, credentials.instead(key))


def _log(log: LogConfig) -> Iterator[RecipeError]:
    if log.profile is not None and log.profiled_steps() is None:
        allowed = 'the first and the last step to profile, both from 1: "10:20"'
        yield RecipeError("log.profile", f'found "{log.profile}"', allowed)


def _layers(config: RunConfig) -> Iterator[RecipeError]:
    """Layers are observed by hooks, with the gradients of whole parameters."""
    key, every = "log.layers_every_steps", config.log.layers_every_steps
    if every is None:
        return
    if config.engine.name == "zero" and config.engine.stage != 0:
        found = f"found {every} with engine.name zero, whose gradients are partitioned"
        yield RecipeError(key, found, "engine ddp, or zero with stage 0", ("engine.name", "engine.stage"))
    for name in ("cuda_graph", "compile"):
        if getattr(config.speed, name):
            found = f"found {every} with speed.{name} true, under which single layers cannot be observed"
            yield RecipeError(key, found, f"speed.{name} false", (f"speed.{name}",))


def _sinks(log: LogConfig) -> Iterator[RecipeError]:
    for reference in log.sinks:
        if not is_reference(reference):
            yield RecipeError("log.sinks", f'found "{reference}"', REFERENCE_FORM)
    if log.tensorboard_images and not log.tensorboard:
        yield from unused("log.tensorboard_images", log.tensorboard_images, "log.tensorboard true")


def _notify(notify: Notify) -> Iterator[RecipeError]:
    if notify.webhook_env is not None and not is_variable(notify.webhook_env):
        # The value is not shown: it may be the address itself.
        allowed = "letters, digits and _, no digit first: PAGER_URL"
        yield RecipeError("notify.webhook_env", "found a value that cannot be the name of a variable", allowed)
    if notify.webhook_env is not None and notify.webhook is not None:
        yield RecipeError(
            "notify.webhook_env", "found together with notify.webhook", "one of the two", ("notify.webhook",)
        )
    if not any((notify.command, notify.webhook, notify.webhook_env)):
        receivers = "notify.command, notify.webhook or notify.webhook_env"
        yield from unused("notify.no_progress_minutes", notify.no_progress_minutes, receivers)


def _workers(config: RunConfig) -> Iterator[RecipeError]:
    workers, nodes = config.workers.most, config.cluster.nodes
    holds, allowed = whole(1, LARGEST_GROUP)
    for number in sorted({config.workers.least, workers}):
        yield from require(holds(number), "workers", number, allowed)
    yield from require(
        config.workers.least <= workers, "workers", config.workers, "LEAST..MOST, the smaller number first"
    )
    if workers >= 1 and nodes >= 1 and workers % nodes:
        nearest = sorted({max(1, workers // nodes) * nodes, (workers // nodes + 1) * nodes})
        yield RecipeError(
            "workers",
            f"found {config.workers}, and cluster.nodes {nodes} does not divide {workers}",
            f"the same number of workers on every node: nearest {' or '.join(map(str, nearest))}",
            ("cluster.nodes",),
        )


def _local(config: RunConfig) -> Iterator[RecipeError]:
    """The worker processes of this machine are those of a run without Ray."""
    if config.place != "local" and config.resources.local_workers > 1:  # auto: Ray, where it is installed
        found = f"found {config.resources.local_workers}, which has no effect here"
        allowed = "only with place local; on the command line: place=auto resources.local_workers=1"
        yield RecipeError("resources.local_workers", found, allowed, ("place",))


def _best(config: RunConfig) -> Iterator[RecipeError]:
    if config.checkpoint.keep_best and config.evaluate.beside:
        reason = "with evaluate.beside true: a checkpoint is saved before its top-1 is known"
        found = f"found {config.checkpoint.keep_best} {reason}"
        yield RecipeError("checkpoint.keep_best", found, "0, or evaluate.beside false", ("evaluate.beside",))


def _on_cpu(config: RunConfig) -> Iterator[RecipeError]:
    if config.resources.gpus_per_worker == 0:
        on_cpu, others = "on a CPU (resources.gpus_per_worker is 0)", ("resources.gpus_per_worker",)
        if config.precision == "tf32":
            allowed = "float32, bfloat16, float64; or resources.gpus_per_worker 1"
            yield RecipeError("precision", f"found tf32, which has no effect {on_cpu}", allowed, others)
        if config.speed.cuda_graph:
            yield RecipeError("speed.cuda_graph", f"found true {on_cpu}", "false, or gpus_per_worker 1", others)
        for part in dataclasses.fields(config.data.dali):
            if (value := getattr(config.data.dali, part.name)) != part.default:
                yield from unused(f"data.dali.{part.name}", value, "resources.gpus_per_worker 1", others)
