"""Published training speeds as evidence: `published_speed.json` has the figures and their sources.

    step time = images of a GPU x cost of an image + fixed cost

Both costs are fitted to the submissions to MLPerf v4.0 (4 to 3,584 GPUs, 400 to 16 images each), whose software is
another one, so only their fixed cost is used for other figures. Per-GPU speeds of several GPUs are converted to that of
one by the mean loss per doubling of the number, from the cards that were measured with 1 and with 8 GPUs.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.planning import fit as fits
from launcher.planning.fit import Fit, Row
from launcher.planning.forecast import Interval
from launcher.planning.spread import next_value, with_errors
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.telemetry import gpu_peaks
from resnet_dist.telemetry.gpu_peaks import gpu_peak

NUM_IMAGES, RESOLUTION = 1_281_167, 224  # of all figures
_FILE = Path(__file__).with_name("published_speed.json")
_BATCH_PER_GPU = 256  # assumption where a source does not give it
_LIKE_FLOAT16 = ("bfloat16", "float16")
# Standard deviations of the logarithm of a speed, for what the figures do not show. Assumptions:
PUBLICATIONS_SD = 0.15  # prior for the spread between publications on one card
SETTING_SD = 0.15  # this program, its input and its storage in place of the publisher's
OTHER_WORK_SD = 0.2  # another network or resolution: the speed is scaled by operations
OTHER_SOFTWARE_SD = 0.15  # the ratio of two GPUs, measured with other software
OTHER_GPU_SD = 0.35  # another GPU: the speed is scaled by peak FLOP/s; A100 to H100 it overestimates by a factor of 1.8
ANY_GPU_SD = 0.5  # the GPU is not known at all
NETWORK_SD = 0.03  # per doubling of the number of GPUs beyond 8, where no figure for this software was found


@dataclass(frozen=True)
class GpuSpeed:
    """The time of a step on GPUs, and where it comes from."""

    step_s: Interval
    source: str
    notes: tuple[str, ...]


@functools.cache
def figures() -> Mapping[str, Any]:
    """The content of the table."""
    content: Mapping[str, Any] = json.loads(_FILE.read_text())
    return content


def gpu_speed(gpu: str, precision: str, gpus: int, images: int, flops: float) -> GpuSpeed | None:
    """The time of a step on `gpus` of the GPUs named `gpu` (empty: unknown), with `images` of `flops` FLOPs on each.

    None for a precision without figures, and for a GPU that is in no table.
    """
    wanted = "float16" if precision in _LIKE_FLOAT16 else precision
    rows = [row for row in figures()["throughput"] if row["precision"] == wanted]
    if not rows:
        return None
    h100 = [row for row in rows if row["gpu"] == "H100"]
    name = known_gpu(gpu, rows)
    sds, factor, notes = [SETTING_SD], 1.0, []
    if name is not None:
        rows = [row for row in rows if row["gpu"] == name]
    elif h100 and (by_mlperf := _relative_to_h100(gpu)) is not None:
        rows, factor = h100, by_mlperf
        sds.append(OTHER_SOFTWARE_SD)
        notes.append(f"{gpu}: the speed of an H100 times {factor:.2f}, their ratio in MLPerf v4.0 (other software).")
    elif not gpu:
        sds.append(ANY_GPU_SD)
        notes.append("The GPU is not known: the interval covers the published ones, from V100 to H100.")
    else:
        peak = gpu_peak(gpu, wanted)
        known = [(row, of_row[0]) for row in rows if (of_row := gpu_peak(row["gpu"], wanted)) is not None]
        if peak is None or not known:
            return None
        rows = [row for row, _ in known]
        factor = peak[0] / math.exp(statistics.fmean(math.log(of_row) for _, of_row in known))
        sds.append(OTHER_GPU_SD)
        notes.append(f"No figure for {gpu} was found: the speed of other GPUs is scaled by {peak[1]}.")
    reference = training_flops(ModelRecipe(name="resnet50"), RESOLUTION)
    assert reference is not None
    if abs(flops / reference - 1) > 0.01:
        sds.append(OTHER_WORK_SD)
        notes.append(f"ResNet-50 at {RESOLUTION} pixels is scaled to {flops / 1e9:.3g} GFLOPs an image.")
    loss, loss_sd = loss_per_doubling()
    doublings = math.log2(gpus)
    if gpus > 1:
        sds += [loss_sd * doublings, NETWORK_SD * max(doublings - 3, 0.0)]
        notes.append(f"Each doubling of the number of GPUs costs {loss:.1%}, as from 1 to 8 in the published figures.")
    fixed_s = fixed_cost_s()
    speeds = [_of_one(row, loss) * factor for row in rows]
    image_s = [
        max(1 / speed - fixed_s / (row["batch_per_gpu"] or _BATCH_PER_GPU), 0.5 / speed)
        for speed, row in zip(speeds, rows, strict=True)
    ]
    times = [(images * one_s * flops / reference + fixed_s) * math.exp(loss * doublings) for one_s in image_s]
    sources = sorted({figures()["sources"][row["source"]].partition(",")[0] for row in rows})
    names = {row["gpu"] for row in rows}
    cards = f"{len(rows)} figures for {names.pop() if len(names) == 1 else f'{len(names)} GPUs'}"
    return GpuSpeed(
        next_value(times, PUBLICATIONS_SD, math.hypot(*sds)), f"{cards}: {'; '.join(sources)}", tuple(notes)
    )


def _relative_to_h100(gpu: str) -> float | None:
    """The speed of a GPU divided by an H100's, in MLPerf's submissions with many images on each; None without any."""
    speeds: dict[str, list[float]] = defaultdict(list)
    name = known_gpu(gpu, figures()["end_to_end"])
    for one in figures()["end_to_end"]:
        if one["batch"] / one["gpus"] >= _BATCH_PER_GPU / 2:
            speeds[one["gpu"]].append(one["epochs"] * NUM_IMAGES / one["seconds"] / one["gpus"])
    return None if name not in speeds else statistics.median(speeds[name]) / statistics.median(speeds["H100"])


def _of_one(row: Mapping[str, Any], loss: float) -> float:
    """Images/s of one GPU alone."""
    return float(row["images_per_s"] / row["gpus"] * math.exp(loss * math.log2(row["gpus"])))


def known_gpu(gpu: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The model of the GPU `gpu`, if `rows` have it: an H100 NVL is not an H100."""
    known = gpu_peaks.known_gpu(gpu)
    return known.model if known is not None and any(row["gpu"] == known.model for row in rows) else None


@functools.cache
def loss_per_doubling() -> tuple[float, float]:
    """Mean and standard deviation, over the cards, of the logarithm of the speed that a doubling of the GPUs costs."""
    cards: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for row in figures()["throughput"]:
        cards[row["source"], row["card"], row["precision"]][row["gpus"]] = row["images_per_s"] / row["gpus"]
    losses = [math.log(speeds[1] / speeds[8]) / 3 for speeds in cards.values() if {1, 8} <= speeds.keys()]
    return statistics.fmean(losses), statistics.stdev(losses)


@functools.cache
def fixed_cost_s() -> float:
    """The time of a step that does not depend on its images, from MLPerf's submissions with H100s."""
    found = _mlperf_fit("H100")
    assert found is not None
    return found.costs[1]


def _mlperf_fit(gpu: str, without: str = "") -> Fit | None:
    rows = [_mlperf_row(one) for one in figures()["end_to_end"] if one["gpu"] == gpu and one["submission"] != without]
    return fits.fit(rows)


def _mlperf_row(one: Mapping[str, Any]) -> Row:
    steps = one["epochs"] * NUM_IMAGES / one["batch"]
    return Row((one["batch"] / one["gpus"], 1.0), one["seconds"] / steps, one["submission"])


def mlperf_check() -> list[tuple[str, float, Interval]]:
    """(submission, published seconds, forecast) of MLPerf's end points, each forecast from the other submissions.

    Submissions with a GPU that no other two have are left out.
    """
    found = []
    for one in figures()["end_to_end"]:
        others = _mlperf_fit(one["gpu"], without=one["submission"])
        if others is None:
            continue
        row = _mlperf_row(one)
        steps = one["seconds"] / row.seconds
        step_s = with_errors(others.seconds(row.amounts), others.errors, SETTING_SD)
        found.append((one["submission"], one["seconds"], step_s.scaled(steps)))
    return found
