"""The result of a plan: accuracy, time, cost, jobs and failures, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.commands.plan_text import in_time, paragraph, row, spread
from launcher.config.schema import RunConfig
from launcher.formatting import count, listed
from launcher.planning import accuracy, cost
from launcher.planning.accuracy import Chance, OwnRuns
from launcher.planning.cost import ENDLESS, Jobs
from launcher.planning.failures import Failures
from launcher.planning.forecast import COVERAGE, Forecast
from launcher.planning.published import figures, known_gpu
from launcher.planning.published_recipe import compared, trains_published_network
from resnet_dist.recipe.published import TARGET_TOP1
from resnet_dist.telemetry import gpu_peaks

_STRENGTH = {
    "own run": "own runs",
    "calibration": "a measurement on this machine",
    "published": "published figures",
    "assumption": "an assumption",
}


def accuracy_lines(config: RunConfig) -> Iterator[str]:
    """What earlier runs say about the top-1 accuracy at the end; that there is no evidence, if there is none."""
    own, reference = accuracy.own_runs(config), accuracy.reference_chance(config)
    label = "accuracy"
    if own is not None:
        yield from row(label, _own(own))
        if config.stop_at.top1 is not None:
            yield from row("", chance_text(own.chance(config.stop_at.top1)))
        label = ""
    if reference is not None:
        yield from row(label, chance_text(reference))
    elif (stated := _stated(config)) is not None:
        yield from row(label, stated)
    elif own is None:
        text = "unknown: neither own runs with this recipe in this storage nor published ones are evidence"
        yield from row(label, text)


def chance_text(chance: Chance) -> str:
    """How many runs reached a target, and the interval of the probability."""
    bounds = chance.interval
    probability = f"a probability of {bounds.low:.0%} to {bounds.high:.0%} ({COVERAGE:.0%} interval)"
    reached = f"{chance.reached} of {count(chance.num, 'run')} reached it within these epochs"
    return f"{chance.target:.1%} top-1 with {probability}: {reached} ({chance.source})"


def _own(own: OwnRuns) -> str:
    interval, num = own.interval(), len(own.top1)
    runs = f"{count(num, 'own run')} with this recipe: {listed(own.names)}"
    if interval is None:
        return f"{own.top1[0]:.2%} top-1 in {runs}; one run says nothing about the spread"
    return f"{spread(interval, '{:.2%}'.format)} top-1, by {runs}"


def _stated(config: RunConfig) -> str | None:
    """The accuracy that a source gives for this recipe, or for the batches around it."""
    comparison = compared(config)
    if comparison is None or comparison.other:
        return None
    found = comparison.found
    epochs = found.number("epochs_to_target")
    if not found.exact and epochs is not None:
        return f"{TARGET_TOP1:.1%} top-1 after about {epochs:.1f} epochs, {found}; no probability: nobody has run it"
    if not found.exact or found.runs[0].top1 is None:
        return None
    return f"{found.runs[0].top1:.1%} top-1 at the end by {found.origin.name}, in other code; no spread is published"


def time_lines(config: RunConfig, forecast: Forecast | None, gpu: str | None, price: float | None) -> Iterator[str]:
    """Wall time with its parts and evidence, GPU hours and cost. `gpu` is the one that was given."""
    if forecast is None:
        reason = "no earlier run, calibration or published figure fits"
        where = "" if gpu is None else " on a machine with this GPU"
        if gpu is not None and gpu_peaks.known_gpu(gpu) is None:
            known = ", ".join(one.model for one in gpu_peaks.GPUS)
            reason = f"no published figure for a GPU named {gpu} and no earlier run fits. Known names: {known}"
        yield from row("time", f"unknown: {reason}. Measure it{where}: launcher plan CONFIG --calibrate")
        return
    yield from row("wall time", spread(forecast.wall_s, in_time))
    parts = {
        "start": forecast.start_s,
        "training": forecast.training_s,
        "evaluation": forecast.evaluation_s,
        "saving": forecast.saving_s,
        "failures": forecast.failures_s,
    }
    yield from row("", ", ".join(f"{name} {in_time(part.median)}" for name, part in parts.items() if part.high))
    if forecast.gpus:
        gpus = f"{spread(forecast.gpu_hours, number)} on {count(forecast.gpus, 'GPU')}"
        yield from row("GPU hours", gpus)
        if price is not None:
            total = spread(cost.cost(forecast, price), number)
            yield from row("cost", f"{total}, at {price:g} per GPU hour")
    yield from row("speed", f"{spread(forecast.images_per_s, '{:,.0f}'.format)} images/s while training")
    yield from row("evidence", f"{_STRENGTH[forecast.evidence]}: {forecast.source}")
    for note in forecast.notes:
        yield from paragraph(note, indent=16)


def mlperf_lines(config: RunConfig, forecast: Forecast | None, gpu: str | None) -> Iterator[str]:
    """What MLPerf's submissions took on as many GPUs, beside a forecast of the same network from published figures."""
    if forecast is None or forecast.evidence != "published" or not trains_published_network(config):
        return
    submissions = figures()["end_to_end"]
    name = None if gpu is None else known_gpu(gpu, submissions)
    same = [one for one in submissions if one["gpus"] == forecast.gpus and (gpu is None or one["gpu"] == name)]
    if not same:
        return
    times = sorted(one["seconds"] for one in same)
    took = " to ".join(dict.fromkeys(in_time(seconds) for seconds in (times[0], times[-1])))
    names = " or ".join(sorted({one["gpu"] for one in same}))
    of = f"{count(len(same), 'submission')} to MLPerf v4.0 with {forecast.gpus:,} GPUs ({names})"
    yield from row("MLPerf", f"{of} took {took} to {TARGET_TOP1:.1%} top-1, in MXNet with fused kernels")


def number(value: float) -> str:
    """Two digits, or all of those before the point.

    >>> number(0.123), number(12.34), number(12345.6)
    ('0.12', '12', '12,346')
    """
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def job_lines(jobs: Jobs | None, found: Failures | None, goodput: float | None) -> Iterator[str]:
    """The jobs within cluster.walltime, the expected failures and the goodput."""
    if jobs is not None:
        limit = in_time(jobs.walltime_s)
        if jobs.enough:
            yield from row("walltime", f"{limit} is enough for the whole run: no requeue")
        elif jobs.number.low >= ENDLESS:
            yield from row("walltime", f"{limit} is over before the first step: no number of jobs ends the run")
        else:
            needed = spread(jobs.number, lambda number: "endless" if number >= ENDLESS else f"{number:,.0f}")
            yield from row("walltime", f"{limit}: {needed} jobs, one after the other, each from the checkpoint before")
    if found is not None and goodput is not None and found.expected:
        often = f"a node fails every {found.mtbf_hours:,.0f} h (--mtbf-hours)"
        nodes = count(found.nodes, "node")
        mean = f"{found.expected:.2g}" if found.expected >= 0.01 else "fewer than 0.01"
        yield from row("failures", f"{mean} expected on {nodes}: {often}; goodput {goodput:.2%}")


def _likely(jobs: Jobs) -> Iterator[tuple[str, float]]:
    yield "does", jobs.number.low
    yield "probably does", jobs.number.median
    yield "may", jobs.number.high


def job_warnings(jobs: Jobs | None) -> Iterator[str]:
    """Warnings of a walltime that is too short."""
    if jobs is None or jobs.enough:
        return
    limit = in_time(jobs.walltime_s)
    if jobs.number.high >= ENDLESS:
        likely = next(word for word, number in _likely(jobs) if number >= ENDLESS)
        yield f"cluster.walltime, {limit}, {likely} not suffice for a start and the time to save: no requeue helps then"
    elif jobs.number.low > 1:
        yield f"cluster.walltime, {limit}, is shorter than the run, which is requeued"
    else:
        yield f"cluster.walltime, {limit}, may be shorter than the run, which is then requeued"
    if jobs.allowed == 0:
        yield "cluster.max_requeues is 0: nothing requeues the run. Submit it again to resume"
    elif jobs.allowed + 1 < jobs.number.high < ENDLESS:
        likely = next(word for word, number in _likely(jobs) if number > jobs.allowed + 1)
        needed = f"Kubernetes {likely} not requeue the run often enough: cluster.max_requeues is {jobs.allowed}"
        yield f"{needed}. SLURM requeues a run with a new checkpoint any number of times"
