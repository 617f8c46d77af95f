"""From a run config to the `cluster.spec.RunSpec` of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.spec import RunSpec, Variant
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from resnet_dist.object_stores import is_address

DEFAULT_NOTICE_S = 60  # assumption: time for a save and a clean exit, if neither config nor profile give more


def spec_of(config: RunConfig, variants: Sequence[Variant] = ()) -> RunSpec:
    """The needs of `config`."""
    notice_s = config.preemption.notice_s
    inputs = {"model.weights": config.model.weights, "preemption.notice_file": config.preemption.notice_file}
    inputs |= {"data.classes": config.data.classes, "data.known_bad": config.data.known_bad}
    return RunSpec(
        name=config.name,
        config=configs.to_yaml(config),
        storage=config.storage,
        data_root=None if is_address(config.data.root) else config.data.root or None,
        other_inputs={key: path for key, path in inputs.items() if path is not None},
        variants=tuple(variants),
        least_workers=config.workers.least,
        most_workers=config.workers.most,
        nodes=config.cluster.nodes,
        gpus_per_worker=config.resources.gpus_per_worker,
        cpus_per_worker=config.resources.cpus_per_worker,
        walltime_s=seconds_of(config.cluster.walltime),
        max_failures=config.faults.max_failures,
        max_requeues=config.cluster.max_requeues,
        start_timeout_s=math.ceil(config.faults.start_timeout_s),
        notice_s=DEFAULT_NOTICE_S if notice_s is None else math.ceil(notice_s),
        evaluates_beside=config.evaluate.beside,
    )


def seconds_of(walltime: str | None) -> int | None:
    """HH:MM:SS in seconds.

    >>> seconds_of("04:00:30")
    14430
    """
    if walltime is None:
        return None
    hours, minutes, seconds = map(int, walltime.split(":"))
    return 3600 * hours + 60 * minutes + seconds
