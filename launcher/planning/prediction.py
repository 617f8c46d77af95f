"""The forecast of a run, from the strongest evidence there is. Without torch, so that the start of a run can make it.

    own run      runs of the same configuration in the same storage, on the same device; also the run itself
    calibration  its steps, measured by `launcher plan --calibrate` on this device
    own run      runs of other configurations there: times are fitted to amounts of work (`launcher.planning.fit`)
    published    figures for the GPU (`launcher.planning.published`)

Parts without evidence of their own are assumptions, which the notes name. Their intervals are wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema import RunConfig, resolve_place
from launcher.formatting import count
from launcher.planning import calibration as calibrations
from launcher.planning import fit as fits
from launcher.planning import published
from launcher.planning.calibration import Calibration
from launcher.planning.failures import expected_failures
from launcher.planning.fit import Row
from launcher.planning.forecast import Evidence, Forecast, Interval
from launcher.planning.history import Earlier, device_here, earlier_run, earlier_runs, same_images
from launcher.planning.scaling_model import STALL_BYTES_PER_S, Assumptions
from launcher.planning.spread import around, next_value, with_errors
from launcher.planning.work import FORWARD_PART, Work, assumed_val, configuration, program, work_of
from launcher.run.directory import RunDirectory

# Standard deviations of the logarithm of a time. The first three are priors, which count as two numbers more: what the
# evidence itself shows replaces them. All are assumptions; benchmarks/plan_score.py tests the intervals.
RUN_SD = 0.1  # the same configuration once more
WINDOW_SD = 0.1  # between windows of a calibration
FIT_SD = 0.25  # another configuration
DRIFT_SD = 0.1  # a whole run in place of a minute of it
SCALED_SD = 0.05  # per halving of the images of a step for a calibration
WORKERS_SD = 0.1  # per doubling of the number of workers beyond those that were measured
WORK_SD = 0.1  # per doubling of a step's operations beyond those of the runs
_START_SD, _SAVE_SD = 0.3, 0.5

_LOCAL_START = Interval(low=4, median=8, high=25)  # imports, processes, the table of images, the first batch
_RAY_START = Interval(low=15, median=40, high=180)  # also Ray's start and the placement of workers
_EVALUATION = Interval(low=FORWARD_PART, median=0.5, high=1.0)  # the time of an image / that in training
_NOTHING_ASSUMED = Assumptions()
_DRIVER_START_S = 1.5  # imports and checks of the command before the processes that a calibration starts
_STALL_S = Interval(low=0.001, median=0.01, high=0.3)  # of a save, beside copying its bytes
_WRITE_BYTES_PER_S = Interval(low=5e7, median=3e8, high=2e9)  # of the last checkpoint, which the run waits for


@dataclass(frozen=True)
class _Part:
    """The interval of one part of a run, and what it comes from."""

    seconds: Interval
    evidence: Evidence
    source: str
    notes: Sequence[str] = ()


def predict(
    config: RunConfig,
    *,
    num_samples: int | None = None,
    num_val: int | None = None,
    gpu: str | None = None,
    assumed: Assumptions = _NOTHING_ASSUMED,
    calibration: Calibration | None = None,
    earlier: Iterable[Earlier] | None = None,
    calibrated: bool = True,
) -> Forecast | None:
    """What `config` will take; None without any evidence, or if the number of its images is not known.

    num_samples    training images, if the config does not have their number
    num_val        val images, if they were counted; default: those of the evidence for the same images
    gpu            name of the GPUs; default: this machine's, else that of earlier runs
    assumed        what a person says, in place of all other evidence
    calibration    default: the one that was kept for this configuration
    earlier        runs that are evidence; default: those of the storage, and this run's own complete steps
    calibrated     whether a calibration that was kept may be used
    """
    runs = _runs_of(config) if earlier is None else list(earlier)
    if calibration is None and calibrated:
        calibration = calibrations.saved(config)
    known = [calibration.images] if calibration is not None and calibration.num_samples else []
    images = next((one for one in [*known, *(run.images for run in runs)] if same_images(one, config)), None)
    num_samples = config.data.num_trained() or num_samples or (None if images is None else images.num_samples)
    if num_samples is None:
        return None
    if num_val is None and images is not None:
        num_val = images.num_val
    if num_val is None and config.data.source == "synthetic":
        num_val = max(1, num_samples // 25)
    work = work_of(config, num_samples, num_val)
    device = device_here(config) if gpu is None else gpu
    fitting = [run for run in runs if run.program == program(config)]
    here = [run for run in fitting if run.device == device]
    notes = []
    if not here and fitting and gpu is None:
        device = fitting[0].device
        here = [run for run in fitting if run.device == device]
        notes.append(f"The runs were on {device or 'an unknown device'}, not on this machine.")
    same = [run for run in here if run.configuration == configuration(config)]
    if num_val is None:
        notes.append(f"The number of val images is assumed: {assumed_val(num_samples):,}.")
    if config.stop_at.top1 is not None or config.stop_at.loss is not None:
        notes.append("The time is that of the whole duration: the run ends earlier if it reaches its target.")
    if config.workers.elastic:
        notes.append(f"The number of workers may change: the time is that with {work.workers}.")
    training = _training(config, work, device, assumed.images_per_s, same, calibration, here)
    if training is None:
        return None
    if calibration is not None and training.evidence == "own run":
        median_s = _of_calibration(work, calibration).seconds.median
        notes.append(f"By the calibration of {calibration.time}, the training alone would take {median_s:,.0f} s.")
    evaluation = _evaluation(work, same, calibration, here, training)
    start, saving = _start(config, same or here, calibration), _saving(config, work, here, assumed.save_s)
    parts = (start, training, evaluation, saving)
    undisturbed_s = sum((part.seconds for part in parts), Interval.exactly(0.0))
    failures_s = expected_failures(config, undisturbed_s, work, assumed).lost_s
    return Forecast(
        wall_s=undisturbed_s + failures_s,
        start_s=start.seconds,
        training_s=training.seconds,
        evaluation_s=evaluation.seconds,
        saving_s=saving.seconds,
        failures_s=failures_s,
        images_per_s=training.seconds.inverse(work.steps * work.batch_size),
        workers=work.workers,
        gpus=work.workers * config.resources.gpus_per_worker,
        evidence=training.evidence,
        source=training.source,
        notes=(*notes, *(note for part in parts for note in part.notes)),
    )


def _runs_of(config: RunConfig) -> list[Earlier]:
    storage = Path(config.storage)
    own = earlier_run(RunDirectory(storage, config.name))
    others = [run for run in earlier_runs(storage) if run.name != config.name]
    return others if own is None else [own, *others]


def _training(
    config: RunConfig,
    work: Work,
    device: str,
    images_per_s: float | None,
    same: Sequence[Earlier],
    calibration: Calibration | None,
    here: Sequence[Earlier],
) -> _Part | None:
    if images_per_s is not None:
        step_s = around(work.worker_images / images_per_s, DRIFT_SD)
        return _Part(step_s.scaled(work.steps), "assumption", f"{images_per_s:,.0f} images/s of a worker, as given")
    if same and (of_same := _of_same(work, same)) is not None:
        return of_same
    if calibration is not None:
        return _of_calibration(work, calibration)
    found = _of_others(work, here)
    if found is None and work.flops is not None and config.resources.gpus_per_worker:
        speed = published.gpu_speed(device, config.precision, work.workers, work.worker_images, work.flops)
        if speed is not None:
            return _Part(speed.step_s.scaled(work.steps), "published", speed.source, speed.notes)
    return found


def _of_same(work: Work, runs: Sequence[Earlier]) -> _Part | None:
    times = [run.times.training_s / run.work.steps for run in runs if run.times.training_s]
    if not times:
        return None
    source = f"{count(len(times), 'run')} of the same configuration: {_names(runs)}"
    return _Part(next_value(times, RUN_SD).scaled(work.steps), "own run", source)


def _of_calibration(work: Work, calibration: Calibration) -> _Part:
    scale = work.worker_images / calibration.worker_images
    sds = [
        DRIFT_SD,
        SCALED_SD * abs(math.log2(scale)),
        WORKERS_SD * abs(math.log2(work.workers / calibration.workers)),
    ]
    loss, _ = published.loss_per_doubling()
    scale *= math.exp(loss * math.log2(work.workers / calibration.workers))
    step_s = next_value([seconds * scale for seconds in calibration.step_s], WINDOW_SD, math.hypot(*sds))
    source = f"a calibration of {calibration.seconds:.0f} s on {calibration.device}, {calibration.time}"
    return _Part(step_s.scaled(work.steps), "calibration", source, calibration.notes)


def _of_others(work: Work, runs: Sequence[Earlier]) -> _Part | None:
    """Fitted to runs of other configurations. Those of another model are used if the operations of both are known."""
    used = [run for run in runs if run.times.training_s and (run.work.flops is None) == (work.flops is None)]
    rows = [Row(_amounts(run.work), run.times.training_s or 0.0, run.configuration) for run in used]
    found = fits.fit(rows)
    if found is None:
        return None
    most = max(run.work.workers for run in used)
    steps = [flops for run in used if (flops := run.work.step_flops)]
    beyond = 0.0
    if work.step_flops and steps:
        beyond = max(math.log2(work.step_flops / max(steps)), math.log2(min(steps) / work.step_flops), 0.0)
    more_sd = math.hypot(WORKERS_SD * max(math.log2(work.workers / most), 0.0), WORK_SD * beyond)
    seconds = with_errors(found.seconds(_amounts(work)), found.errors, FIT_SD, more_sd, found.num_costs)
    error = statistics.median(abs(error) for error in found.errors)
    source = f"a fit to {count(len(used), 'run')} of other configurations here, with errors of {error:.0%} (median)"
    return _Part(seconds, "own run", source)


def _amounts(work: Work) -> list[float]:
    """The amounts of a training that take time. A model of the user's has no known operations: only its images."""
    images, exchanges = work.steps * work.worker_images, work.steps if work.workers > 1 else 0
    of_images = [(work.flops or 0.0) * images, images if work.decodes else 0]
    return [*of_images, work.steps * work.micro_batches, exchanges, exchanges * (work.weights or 0), 1]


def _evaluation(
    work: Work, same: Sequence[Earlier], calibration: Calibration | None, here: Sequence[Earlier], training: _Part
) -> _Part:
    times = [run.times.evaluation_s / max(run.work.evaluated_images, 1) for run in same if run.times.evaluation_s]
    if times:
        return _Part(next_value(times, RUN_SD).scaled(work.evaluated_images), "own run", "")
    if calibration is not None and calibration.evaluation_s:
        seconds = around(calibration.evaluation_s * work.evaluated_images, math.hypot(DRIFT_SD, WINDOW_SD))
        return _Part(seconds, "calibration", "")
    used = [run for run in here if run.times.evaluation_s and (run.work.flops is None) == (work.flops is None)]
    rows = [Row(_evaluated(run.work), run.times.evaluation_s or 0.0, run.configuration) for run in used]
    found = fits.fit(rows)
    if found is not None:
        return _Part(
            with_errors(found.seconds(_evaluated(work)), found.errors, FIT_SD, 0.0, found.num_costs), "own run", ""
        )
    images = work.evaluated_images / (work.steps * work.worker_images)
    seconds = Interval(
        low=training.seconds.low * images * _EVALUATION.low,
        median=training.seconds.median * images * _EVALUATION.median,
        high=training.seconds.high * images * _EVALUATION.high,
    )
    return _Part(
        seconds, "assumption", "", ["An image in an evaluation is assumed to take 1/3 to 1 of that in training."]
    )


def _evaluated(work: Work) -> list[float]:
    flops, images = work.evaluation_flops or 0.0, work.evaluated_images
    return [flops * images, images if work.decodes else 0, work.evaluations]


def _start(config: RunConfig, runs: Sequence[Earlier], calibration: Calibration | None) -> _Part:
    known = [run for run in runs if run.times.start_s]
    alike = [run for run in known if run.work.workers == config.workers.most] or known
    if alike:
        times = [run.times.start_s or 0.0 for run in alike]
        return _Part(next_value(times, _START_SD), "own run", "")
    if calibration is not None:
        seconds = next_value([calibration.start_s + _DRIVER_START_S], _START_SD)
        return _Part(seconds, "calibration", "")
    place = resolve_place(config.place) if config.place == "auto" else config.place
    seconds = _LOCAL_START if place == "local" else _RAY_START
    return _Part(seconds, "assumption", "", [f"A start is assumed to take {seconds.low:.0f} to {seconds.high:.0f} s."])


def _saving(config: RunConfig, work: Work, runs: Sequence[Earlier], save_s: float | None) -> _Part:
    if save_s is not None:
        return _Part(Interval.exactly(save_s * work.saves), "assumption", "")
    alike = [run for run in runs if 0.5 <= (run.work.weights or 1) / (work.weights or 1) <= 2]
    times = [run.times.saving_s / run.work.saves for run in alike if run.times.saving_s]
    if times:
        return _Part(next_value(times, _SAVE_SD).scaled(work.saves), "own run", "")
    num_bytes = 4 * (work.weights or 25_000_000) * (1 + config.optimizer.num_states)
    stalls = _STALL_S.scaled(work.saves) + Interval.exactly(num_bytes / STALL_BYTES_PER_S * work.saves)
    return _Part(stalls + _WRITE_BYTES_PER_S.inverse(num_bytes), "assumption", "")


def _names(runs: Sequence[Earlier], most: int = 3) -> str:
    names = [run.name for run in runs]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
