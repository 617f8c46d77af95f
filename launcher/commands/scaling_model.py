"""What a run asks of a cluster of any size, on paper: `launcher plan CONFIG --nodes 1,8,64,512`. Pure arithmetic.

Every number is a model, and says what it is made of; what was measured was measured on two CPU cores. Steps are counted
by their computation alone: exchange of gradients comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Mean time between failures of a node of eight GPUs: 419 unexpected interruptions in 54 days of 2,048 nodes, that is
# 54 x 24 x 2048 / 419 hours. Llama Team, The Llama 3 Herd of Models (arXiv 2407.21783), section 3.3.4.
NODE_MTBF_HOURS = 54 * 24 * 2048 / 419
# One A100 on ResNet-50 at 224 pixels, mixed precision: README of NVIDIA's DeepLearningExamples.
IMAGES_PER_S = 2470.0
# 204.7 MB copied in 0.030 s: benchmarks/results/checkpoint_stall.json. The write itself goes on beside the training.
STALL_BYTES_PER_S = 204_669_177 / 0.030
# Requests that one TCPStore answers in a second: 13,400 (torch 2.14.1, loopback, two busy cores).
STORE_REQUESTS_PER_S = 13_400.0
# A step's kernels are launched one by one: 16 images at 3,300 images/s take 4.8 ms, and fewer no less (computed).
LEAST_STEP_S = 0.005
RESTART_S = 120.0  # assumption: a failure is noticed, processes start, kernels and caches are warm again
STORAGE_BYTES_PER_S = 5e9  # assumption: a shared file system, all clients together
WORKER_POLLS_PER_S = (
    2.0  # Ray Train's controller: RAY_TRAIN_HEALTH_CHECK_INTERVAL_S, launcher/ray_backend/environment.py
)
NODE_POLLS_PER_S = 1 / 3  # Ray's head: RAY_health_check_period_ms, 3 s by default


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What is true of a run at every size."""

    workers_per_node: int
    batch_size: int
    micro_batch_size: int
    num_samples: int
    checkpoint_bytes: int
    checkpoint_every_samples: int
    heartbeat_s: float  # between two of a worker
    uses_gpus: bool


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is not known, and can be given."""

    node_mtbf_hours: float = NODE_MTBF_HOURS
    images_per_s: float = IMAGES_PER_S  # of a worker
    save_stall_s: float | None = None  # None: by the checkpoint's size
    restart_s: float = RESTART_S
    storage_bytes_per_s: float = STORAGE_BYTES_PER_S


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run on `nodes` nodes asks for."""

    nodes: int
    workers: int
    share: int  # images of a step on a worker, the largest
    step_s: float  # of computation
    rendezvous_requests: int
    rendezvous_s: float
    control_per_s: float  # messages to and from Ray's head
    heartbeats_per_s: float  # files written on the shared storage, and as many read
    image_opens_per_s: float  # in a folder of images
    checkpoint_bytes_per_s: float  # written, on average, at the config's own interval
    restart_bytes: int  # read when all start: once a node, whose workers share its page cache
    failures_per_day: float
    mtbf_s: float  # of the whole run
    save_stall_s: float
    restart_s: float
    own_interval_s: float
    best_interval_s: float
    own_goodput: float
    best_goodput: float


def load_on(nodes: int, needs: Needs, assumed: Assumptions) -> Load | None:
    """What the run asks for on so many nodes; None where a micro-batch has fewer images than there are workers."""
    workers = nodes * needs.workers_per_node
    if workers > needs.micro_batch_size:
        return None
    share = math.ceil(needs.micro_batch_size / workers) * (needs.batch_size // needs.micro_batch_size)
    step_s = share / assumed.images_per_s
    if needs.uses_gpus:
        step_s = max(step_s, LEAST_STEP_S)
    requests = rendezvous_requests(workers, uses_gpus=needs.uses_gpus)
    stall_s = needs.checkpoint_bytes / STALL_BYTES_PER_S if assumed.save_stall_s is None else assumed.save_stall_s
    restart_bytes = nodes * needs.checkpoint_bytes
    restart_s = assumed.restart_s + restart_bytes / assumed.storage_bytes_per_s
    mtbf_s = assumed.node_mtbf_hours * 3600 / nodes
    own_s = max(needs.checkpoint_every_samples / needs.batch_size * step_s, step_s)
    best_s = max(best_interval_s(stall_s, mtbf_s), step_s)
    return Load(
        nodes=nodes,
        workers=workers,
        share=share,
        step_s=step_s,
        rendezvous_requests=requests,
        rendezvous_s=requests / STORE_REQUESTS_PER_S,
        control_per_s=workers * WORKER_POLLS_PER_S + nodes * NODE_POLLS_PER_S,
        heartbeats_per_s=workers / needs.heartbeat_s,
        image_opens_per_s=needs.batch_size / step_s,
        checkpoint_bytes_per_s=needs.checkpoint_bytes / own_s,
        restart_bytes=restart_bytes,
        failures_per_day=24 * 3600 / mtbf_s,
        mtbf_s=mtbf_s,
        save_stall_s=stall_s,
        restart_s=restart_s,
        own_interval_s=own_s,
        best_interval_s=best_s,
        own_goodput=goodput(own_s, stall_s, restart_s, mtbf_s),
        best_goodput=goodput(best_s, stall_s, restart_s, mtbf_s),
    )


def rendezvous_requests(workers: int, *, uses_gpus: bool) -> int:
    """Requests to the store while a process group is made.

    gloo: each worker writes its address, and waits for and reads everybody's: W + 2W², counted on 2, 4, 8 and 16
    workers with torch 2.14.1. NCCL, not counted: rank 0 sets one id and all others get it, says the source of torch's
    ProcessGroupNCCL::broadcastUniqueNCCLID; above 128 ranks there may be an id for each 128 of them.

    >>> rendezvous_requests(16, uses_gpus=False), rendezvous_requests(16, uses_gpus=True)
    (528, 16)
    """
    return workers if uses_gpus else workers + 2 * workers * workers


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds between two checkpoints that lose the least, for a save that holds up the run by `save_s`.

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
    """The part of the time that is kept, from 0 to 1, where failures come at random.

    t / (M e^(R/M) (e^((t+d)/M) - 1)), with R the restart: Daly 2006, the complete model of the wall clock time.

    >>> goodput(interval_s=900, save_s=5, restart_s=120, mtbf_s=24 * 3600)  # doctest: +ELLIPSIS
    0.987...
    """
    exponent = (interval_s + save_s) / mtbf_s
    if exponent > 700 or restart_s / mtbf_s > 700:  # e^710 is no float
        return 0.0
    return interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


def lines(loads: Sequence[tuple[int, Load | None]], assumed: Assumptions) -> Iterator[str]:
    """A table: a column a number of nodes, and what it rests on."""
    yield "  on paper, by the number of nodes (launcher/commands/scaling_model.py says how each number is made)"
    columns = [load for _, load in loads]
    rows = [("nodes", [f"{nodes:,}" for nodes, _ in loads])]
    quantities: tuple[tuple[str, Callable[[Load], str]], ...] = (
        ("workers", lambda load: f"{load.workers:,}"),
        ("images a worker and step", lambda load: f"{load.share:,}"),
        ("step, computation alone", lambda load: _time(load.step_s)),
        ("rendezvous, requests", lambda load: f"{load.rendezvous_requests:,}"),
        ("rendezvous, one store", lambda load: _time(load.rendezvous_s)),
        ("control messages /s", lambda load: _count(load.control_per_s)),
        ("heartbeat files /s", lambda load: _count(load.heartbeats_per_s)),
        ("images opened /s", lambda load: _count(load.image_opens_per_s)),
        ("checkpoints written /s", lambda load: _bytes(load.checkpoint_bytes_per_s)),
        ("read at a restart", lambda load: _bytes(load.restart_bytes)),
        ("failures a day", lambda load: f"{load.failures_per_day:.3g}"),
        ("checkpoint every, config", lambda load: _time(load.own_interval_s)),
        ("  goodput", lambda load: f"{load.own_goodput:.3%}"),
        ("checkpoint every, best", lambda load: _time(load.best_interval_s)),
        ("  goodput", lambda load: f"{load.best_goodput:.3%}"),
    )
    for name, text in quantities:
        rows.append((name, ["-" if load is None else text(load) for load in columns]))
    widths = [max(len(row[column]) for _, row in rows) for column in range(len(loads))]
    for name, row in rows:
        yield f"    {name:<26}" + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
    for nodes, load in loads:
        if load is None:
            yield f"    {nodes:,} nodes: more workers than a micro-batch has images"
    own = "Llama 3's" if assumed.node_mtbf_hours == NODE_MTBF_HOURS else "given"
    yield f"    a node fails every {assumed.node_mtbf_hours:,.0f} h ({own}: --mtbf-hours), a worker makes"
    yield f"    {assumed.images_per_s:,.0f} images/s (--images-per-s), a restart takes {assumed.restart_s:,.0f} s"
    yield f"    (--restart-s) and reads at {assumed.storage_bytes_per_s / 1e9:g} GB/s (--storage-gb-s)"


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
