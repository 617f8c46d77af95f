"""Which run configs make sense: the rules of a run, beside the recipe's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import resnet_dist.recipe.rules
from launcher.config.schema import Notify, RunConfig
from resnet_dist.errors import RecipeError

# A folder's name on every file system, in a SLURM job name and in a URL; 100 leaves room for what others append to it.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_WEBHOOK_ENV = "notify.webhook_env: NAME, an environment variable of the driver that holds the address"


_TOKEN_LETTERS = 16  # assumption: secrets in the addresses of chat and pager services have from 24 up


_WALLTIME = re.compile(r"([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])")


def problems(config: RunConfig, num_samples: int | None = None) -> list[RecipeError]:
    """Everything that is wrong with a run: its own rules, and the recipe's on any number of workers that it may have.

    `num_samples` is the training split's size where it is known; see `resnet_dist.recipe.rules.problems`.
    """
    found = [*_run(config), *_faults(config), *_told(config), *_machines(config)]
    for workers in sorted({config.workers.most, config.workers.least}, reverse=True):
        known = {str(error) for error in found}
        found += [
            error
            for error in resnet_dist.recipe.rules.problems(config, workers, num_samples)
            if str(error) not in known  # most rules say the same of both ends of a range
        ]
    return found


def _run(config: RunConfig) -> Iterator[RecipeError]:
    if _SAFE_NAME.fullmatch(config.name) is None:
        yield RecipeError(
            "name", f'found "{config.name}"', "letters, digits, . _ and -, a letter or digit first, 100 at most"
        )
    checkpoint = config.checkpoint
    for key, every in (("every", checkpoint.every), ("keep_every", checkpoint.keep_every)):
        if every is not None and every.count <= 0:
            yield RecipeError(f"checkpoint.{key}", f"found {every}", "a duration above 0")
    yield from _at_least(1, "checkpoint.keep", checkpoint.keep)
    yield from _at_least(0, "checkpoint.keep_best", checkpoint.keep_best)
    yield from _at_least(0, "checkpoint.max_failures", checkpoint.max_failures)
    if checkpoint.mirror is not None and re.fullmatch(r"[a-z][a-z0-9+]*://.+", checkpoint.mirror) is None:
        yield RecipeError(
            "checkpoint.mirror",
            f'found "{checkpoint.mirror}"',
            "the address of an object store: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER",
        )
    yield from _at_least(1, "log.every_steps", config.log.every_steps)
    if config.log.profile is not None and config.log.profiled_steps() is None:
        found = f'found "{config.log.profile}"'
        yield RecipeError("log.profile", found, 'the first and the last step to profile, both from 1: "10:20"')
    if config.speed.cuda_graph and config.resources.gpus_per_worker == 0:
        yield RecipeError(
            "speed.cuda_graph", "found true on a CPU (resources.gpus_per_worker is 0)", "false, or gpus_per_worker 1"
        )


def _faults(config: RunConfig) -> Iterator[RecipeError]:
    faults = config.faults
    yield from _at_least(0, "faults.max_failures", faults.max_failures)
    yield from _at_least(1, "faults.max_skips", faults.max_skips)
    yield from _at_least(1, "faults.node_strikes", faults.node_strikes)
    for key, seconds in (("hang_timeout_s", faults.hang_timeout_s), ("start_timeout_s", faults.start_timeout_s)):
        if not 1 <= seconds < float("inf"):
            yield RecipeError(f"faults.{key}", f"found {seconds:g}", "seconds, from 1 up")


def _told(config: RunConfig) -> Iterator[RecipeError]:
    notify, preemption = config.notify, config.preemption
    if notify.command is not None:
        try:
            empty = not shlex.split(notify.command)
        except ValueError:
            empty = True
        if empty:
            yield RecipeError(
                "notify.command", f"found '{notify.command}'", "a program and its arguments, quotes closed"
            )
        for word in [] if empty else shlex.split(notify.command):
            yield from _secret_of("notify.command", word, "a program of yours that reads it where it is kept")
    if notify.webhook is not None:
        yield from _secret_of("notify.webhook", notify.webhook, _WEBHOOK_ENV)
        if re.fullmatch(r"https?://\S+", notify.webhook) is None:
            yield RecipeError(
                "notify.webhook", f'found "{notify.webhook}"', "an address that begins with https:// or http://"
            )
    yield from _webhook_env(notify)
    minutes = notify.no_progress_minutes
    if minutes is not None and not 0 < minutes < float("inf"):
        yield RecipeError("notify.no_progress_minutes", f"found {minutes:g}", "minutes above 0, or null")
    if minutes is not None and not any((notify.command, notify.webhook, notify.webhook_env)):
        yield RecipeError(
            "notify.no_progress_minutes",
            f"found {minutes:g}, and nobody to tell",
            "notify.command, notify.webhook or notify.webhook_env with it",
        )
    if preemption.notice_s is not None and not 0 < preemption.notice_s < float("inf"):
        yield RecipeError("preemption.notice_s", f"found {preemption.notice_s:g}", "seconds above 0, or null")


def _webhook_env(notify: Notify) -> Iterator[RecipeError]:
    if notify.webhook_env is None:
        return
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", notify.webhook_env) is None:
        found = "found what is no variable's name"  # not what: it may be the address itself
        yield RecipeError("notify.webhook_env", found, "letters, digits and _, no digit first: PAGER_URL")
    if notify.webhook is not None:
        yield RecipeError("notify.webhook_env", "found beside notify.webhook", "one of the two")


def _secret_of(key: str, text: str, instead: str) -> Iterator[RecipeError]:
    secret = secret_in(text)
    if secret is not None:
        found = f"found {secret} in the address: a secret, it seems, and the config is written down in many places"
        yield RecipeError(key, found, instead)


def secret_in(address: str) -> str | None:
    """The part of an http(s) address that looks like a secret, in words; None where there is none.

    >>> secret_in("https://hooks.example.org/services/T02/B04/qX7wJ2mKp9LdR4sV")
    'a part of the path'
    >>> secret_in("https://pager.example.org/runs/no-progress-notifications") is None
    True
    """
    if re.match(r"https?://", address) is None:
        return None
    authority, _, path = address.partition("://")[2].partition("/")
    if "@" in authority:
        return "a user"
    if "?" in address or "#" in address:
        return "a query"
    return "a part of the path" if any(_is_token(part) for part in path.split("/")) else None


def _is_token(part: str) -> bool:
    """Whether a part of a path is rather drawn at random than a word: long, and with digits or capitals inside."""
    letters = re.sub(r"[^A-Za-z0-9]", "", part)
    mixed = any(one.isdigit() for one in letters) or letters not in (letters.lower(), letters.upper())
    return len(letters) >= _TOKEN_LETTERS and (mixed or len(max(re.split(r"[^A-Za-z0-9]", part), key=len)) >= 20)


def _machines(config: RunConfig) -> Iterator[RecipeError]:
    workers, nodes, resources = config.workers.most, config.cluster.nodes, config.resources
    yield from _at_least(1, "workers", config.workers.least)
    if config.workers.least > workers:
        yield RecipeError("workers", f"found {config.workers}", "LEAST..MOST, the smaller number first")
    yield from _at_least(1, "cluster.nodes", nodes)
    yield from _at_least(1, "resources.cpus_per_worker", resources.cpus_per_worker)
    if resources.gpus_per_worker not in (0, 1):
        yield RecipeError(
            "resources.gpus_per_worker",
            f"found {resources.gpus_per_worker}",
            "0 or 1: a worker is one process with one GPU; for more GPUs raise workers",
        )
    if workers >= 1 and nodes >= 1 and workers % nodes:
        whole = sorted({max(1, workers // nodes) * nodes, (workers // nodes + 1) * nodes})
        yield RecipeError(
            "workers",
            f"found {config.workers}, and cluster.nodes {nodes} does not divide {workers}",
            f"the same number of workers on every node: nearest {' or '.join(map(str, whole))}",
        )
    if config.precision == "tf32" and resources.gpus_per_worker == 0:
        yield RecipeError(
            "precision",
            "found tf32, which would do nothing on a CPU (resources.gpus_per_worker is 0)",
            "float32, bfloat16, float64; or resources.gpus_per_worker 1",
        )
    walltime = config.cluster.walltime
    match = None if walltime is None else _WALLTIME.fullmatch(walltime)
    if walltime is not None and (match is None or not any(int(part) for part in match.groups())):
        yield RecipeError("cluster.walltime", f'found "{walltime}"', 'hours:minutes:seconds, quoted: "04:00:00"')


def _at_least(low: int, key: str, value: int) -> Iterator[RecipeError]:
    if value < low:
        yield RecipeError(key, f"found {value}", f"a whole number from {low} up")
