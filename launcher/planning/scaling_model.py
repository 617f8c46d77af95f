"""What a run requires of a cluster of any size: `launcher plan CONFIG --nodes 1,8,64,512`. A model, not a measurement.

The sources of the numbers are next to them; measurements were made on two CPU cores. The times of steps, evaluations
and saves are those of the forecast for the same number of nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.planning.forecast import Forecast

# Mean time between failures of a node of eight GPUs: 419 unexpected interruptions in 54 days of 2,048 nodes, that is
# 54 x 24 x 2048 / 419 hours. Llama Team, The Llama 3 Herd of Models (arXiv 2407.21783), section 3.3.4.
NODE_MTBF_HOURS = 54 * 24 * 2048 / 419
# 204.7 MB copied in 0.030 s: benchmarks/results/checkpoint_stall.json. The training continues during the write itself.
STALL_BYTES_PER_S = 204_669_177 / 0.030
# Requests that one TCPStore answers in a second: 13,400 (torch 2.14.1, loopback, two busy cores).
STORE_REQUESTS_PER_S = 13_400.0
RESTART_S = 120.0  # assumption: a failure is detected, processes start, kernels and caches are warm again
STORAGE_GB_S = 5.0  # assumption: a shared file system, all clients together
# Ray Train's controller: RAY_TRAIN_HEALTH_CHECK_INTERVAL_S, launcher/ray_backend/environment.py
WORKER_POLLS_PER_S = 2.0
NODE_POLLS_PER_S = 1 / 3  # Ray's head: RAY_health_check_period_ms, 3 s by default


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The properties of a run that do not depend on the number of nodes."""

    workers_per_node: int
    batch_size: int
    micro_batch_size: int
    checkpoint_bytes: int
    saves: int
    heartbeat_s: float  # between two heartbeats of a worker
    uses_gpus: bool
    image_bytes: float  # mean size of an encoded image


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a person says of a cluster; the fields are the options of `launcher plan`."""

    mtbf_hours: float = NODE_MTBF_HOURS  # of a node
    images_per_s: float | None = None  # of a worker; None: from other evidence
    save_s: float | None = None  # that a checkpoint stops the training; None: from other evidence
    restart_s: float = RESTART_S
    storage_gb_s: float = STORAGE_GB_S


@dataclass(frozen=True, kw_only=True)
class ScaleEstimate:
    """The load and the goodput of a run on some number of nodes."""

    workers: int
    per_worker_batch: int  # the largest
    step_s: float
    rendezvous_requests: int
    control_per_s: float  # messages to and from Ray's head
    heartbeats_per_s: float  # files written to the shared storage; as many are read
    images_per_s: float  # read; in a folder of images, as many files are opened
    image_bytes_per_s: float
    checkpoint_bytes_per_s: float  # written, on average, at the interval of the config
    restart_bytes: int  # read at a restart: once per node, whose workers share its page cache
    failures_per_day: float
    config_interval_s: float  # between two checkpoints
    best_interval_s: float
    config_goodput: float
    best_goodput: float


def estimate(nodes: int, workload: Workload, assumed: Assumptions, forecast: Forecast) -> ScaleEstimate:
    """The estimate for `nodes`, on which `forecast` says how long steps, evaluations and saves take (medians)."""
    workers = nodes * workload.workers_per_node
    num_micro_batches = workload.batch_size // workload.micro_batch_size
    per_worker_batch = math.ceil(workload.micro_batch_size / workers) * num_micro_batches
    step_s = workload.batch_size / forecast.images_per_s.median
    save_s = forecast.saving_s.median / workload.saves
    restart_bytes = nodes * workload.checkpoint_bytes
    restart_s = assumed.restart_s + restart_bytes / (assumed.storage_gb_s * 1e9)
    mtbf_s = assumed.mtbf_hours * 3600 / nodes
    config_s = (forecast.training_s.median + forecast.evaluation_s.median) / workload.saves
    best_s = max(best_interval_s(save_s, mtbf_s), step_s)
    return ScaleEstimate(
        workers=workers,
        per_worker_batch=per_worker_batch,
        step_s=step_s,
        rendezvous_requests=rendezvous_requests(workers, uses_gpus=workload.uses_gpus),
        control_per_s=workers * WORKER_POLLS_PER_S + nodes * NODE_POLLS_PER_S,
        heartbeats_per_s=workers / workload.heartbeat_s,
        images_per_s=workload.batch_size / step_s,
        image_bytes_per_s=workload.batch_size / step_s * workload.image_bytes,
        checkpoint_bytes_per_s=workload.checkpoint_bytes / config_s,
        restart_bytes=restart_bytes,
        failures_per_day=24 * 3600 / mtbf_s,
        config_interval_s=config_s,
        best_interval_s=best_s,
        config_goodput=goodput(config_s, save_s, restart_s, mtbf_s),
        best_goodput=goodput(best_s, save_s, restart_s, mtbf_s),
    )


def rendezvous_requests(workers: int, *, uses_gpus: bool) -> int:
    """Requests to the store while a process group is created.

    gloo: each worker writes its address, and waits for and reads all addresses: W + 2W², counted on 2, 4, 8 and 16
    workers with torch 2.14.1. NCCL, not counted: by the source of torch's ProcessGroupNCCL::broadcastUniqueNCCLID
    rank 0 sets one id and all others get it; above 128 ranks there may be an id for each 128 of them.

    >>> rendezvous_requests(16, uses_gpus=False), rendezvous_requests(16, uses_gpus=True)
    (528, 16)
    """
    return workers if uses_gpus else workers + 2 * workers * workers


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """The checkpoint interval with the highest goodput, for a save that stops the training for `save_s`.

    With d the save and M the mean time between failures: sqrt(2dM) (1 + sqrt(d/2M)/3 + (d/2M)/9) - d for d < 2M, else
    M. J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
    Computer Systems 22 (2006); its first factor is J. W. Young's, Communications of the ACM 17 (1974).

    >>> round(best_interval_s(save_s=5.0, mtbf_s=24 * 3600))
    926
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def goodput(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """The fraction of the time that is useful, for failures at random times.

    t / (M e^(R/M) (e^((t+d)/M) - 1)), with R the restart: Daly 2006, the complete model of the wall clock time.

    >>> goodput(interval_s=900, save_s=5, restart_s=120, mtbf_s=24 * 3600)  # doctest: +ELLIPSIS
    0.987...
    """
    exponent = (interval_s + save_s) / mtbf_s
    if exponent > 700 or restart_s / mtbf_s > 700:  # e^710 exceeds a float
        return 0.0
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))
