"""`launcher plan CONFIG --calibrate`: a minute of a run's own steps on this machine, and where the result is kept.

Steps are trained as the run would train them, with its images where they are here, else with synthetic ones. If this
machine cannot hold all workers, one is measured; if a step would take too long, it has fewer images. Both are scaled,
which widens the interval.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import count
from launcher.planning.history import Images, device_here
from launcher.planning.measurement import Measurement, in_processes, recipe_of_one_worker, with_batch, workers_here
from launcher.planning.work import configuration
from launcher.run.directory import RunDirectory, calibration_file
from launcher.run.record_types import utc_now
from resnet_dist.checkpoint.disk import replace_whole, storage_errors
from resnet_dist.input_files import read_json, record_of
from resnet_dist.object_stores import is_address
from resnet_dist.recipe import rules
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import BatchRecipe, Recipe

SECONDS = 60.0
_TRAINING_PART = 0.5  # assumption, to choose the images of a step: the rest is start and evaluation
_LEAST_STEPS = 8  # that must fit into the training, with the warm-up
_NUM_WINDOWS = 8
_UTILISATION = 0.3  # assumption: FLOP/s of a step / those of a matrix product, to choose the images of a step
_TELL_S = 10.0  # between two lines while it measures
_UNBOUNDED = 10**8  # steps: the time ends the measurement


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Times on this machine. A window is the mean of several steps, without warm-up."""

    configuration: str  # `launcher.planning.work.configuration` of the config
    time: str
    device: str
    seconds: float
    workers: int  # measured
    worker_images: int  # of a worker, in a measured step
    step_s: Sequence[float]  # of the windows
    start_s: float  # from the start of the processes to the first step
    evaluation_s: float | None  # of an image on a worker
    root: str
    source: str
    num_samples: int
    num_val: int | None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.step_s or min(self.step_s) <= 0 or self.workers < 1 or self.worker_images < 1:
            raise ValueError("not a calibration")

    @property
    def images(self) -> Images:
        """The images that were measured with."""
        return Images(root=self.root, source=self.source, num_samples=self.num_samples, num_val=self.num_val)


def calibrate(
    config: RunConfig, seconds: float = SECONDS, say: Callable[[str], None] = lambda text: None
) -> Calibration:
    """Measure the steps of `config` for about `seconds`, its start included; `say` is called with what is measured.

    Raises UsageError if this machine has no GPU and the config needs one, or if the measurement fails.
    """
    here, why_fewer = workers_here(config)
    most, recipe, notes = config.workers.most, config.recipe(), []
    if here < most:
        recipe = recipe_of_one_worker(recipe, most)
        notes.append(f"Measured with {count(here, 'worker')} of {most}{why_fewer}.")
    if not _has_images(recipe):
        data = replace(recipe.data, source="synthetic", root="", num_samples=config.data.num_samples or 1_000_000)
        recipe = replace(recipe, data=data)
        notes.append("Measured with synthetic images: the run's are not on this machine, so reading is not included.")
    fewer = None if config.resources.gpus_per_worker else _fitting_images(recipe, here, seconds * _TRAINING_PART)
    if fewer is not None:
        notes.append(f"Measured with {count(fewer, 'image')} in a step in place of {recipe.batch.size}.")
        recipe = with_batch(rules.settled(recipe), BatchRecipe(size=fewer))
    say(
        f"calibrating for about {seconds:.0f} s: {count(here, 'worker')}, {count(recipe.batch.size, 'image')} in a step"
    )
    measurement = Measurement(
        kind="whole",
        recipe=recipe,
        workers=here,
        steps=_UNBOUNDED,
        num_threads=config.resources.cpus_per_worker,
        on_gpu=config.resources.gpus_per_worker > 0,
        seconds=seconds,
    )
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        index = RunDirectory(Path(config.storage), config.name).index
        if index.is_dir():
            shutil.copytree(index, Path(folder, "index"))
        with _told(say, seconds):
            found = in_processes(Path(folder), measurement)
    if found.images_per_s is None:
        raise UsageError(f"the calibration {found.text}")
    with_images = recipe.data.source == config.data.source
    return Calibration(
        configuration=configuration(config),
        time=utc_now(),
        device=device_here(config),
        seconds=seconds,
        workers=here,
        worker_images=-(-recipe.batch.size // here),
        step_s=windows(found.step_times_s),
        start_s=found.start_s,
        evaluation_s=found.evaluation_s,
        root=config.data.root,
        source=config.data.source,
        num_samples=found.num_samples if with_images else config.data.num_samples or 0,
        num_val=found.num_val or None if with_images else None,
        notes=notes,
    )


@contextmanager
def _told(say: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Say every `_TELL_S` how much of about `seconds` is over."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_TELL_S):
            say(f"  {time.monotonic() - began:.0f} of about {seconds:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def windows(step_times_s: Sequence[float]) -> list[float]:
    """Mean times of consecutive steps, in windows of equal lengths; the first steps are left out if some remain."""
    length = max(len(step_times_s) // _NUM_WINDOWS, 1)
    first = len(step_times_s) % length
    starts = range(first, len(step_times_s), length)
    return [sum(step_times_s[start : start + length]) / length for start in starts]


def save(config: RunConfig, calibration: Calibration) -> Path:
    """Keep `calibration` for the next plan and start of this configuration; returns the file. Raises StorageError."""
    file = calibration_file(Path(config.storage), calibration.configuration)
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(file, (json.dumps(asdict(calibration), indent=2) + "\n").encode())
    return file


def saved(config: RunConfig) -> Calibration | None:
    """The calibration that was kept for this configuration and this machine; None without one, or if unreadable."""
    try:
        content = read_json(calibration_file(Path(config.storage), configuration(config)))
    except (OSError, ValueError):
        return None
    found = record_of(Calibration, content)
    if found is None or found.device != device_here(config) or found.configuration != configuration(config):
        return None
    return found


def _has_images(recipe: Recipe) -> bool:
    data = recipe.data
    if data.source == "synthetic" or is_reference(data.source) or is_address(data.root):
        return True
    try:
        return Path(data.root).is_dir()
    except OSError:
        return False


def _fitting_images(recipe: Recipe, workers: int, seconds: float) -> int | None:
    """Images of a step, all workers together, so that enough steps fit into `seconds` on CPUs; None if they do."""
    flops = training_flops(recipe.model, max(recipe.data.training_resolutions))
    if flops is None:
        return None
    import torch  # seconds

    from resnet_dist.telemetry.flops import peak_flops

    threads = torch.get_num_threads()
    rate = peak_flops(torch.device("cpu"), recipe.precision)
    assert rate is not None
    image_s = flops / (rate[0] / threads * _UTILISATION)  # a worker has a thread: the measurement used all
    fitting = int(seconds / _LEAST_STEPS / image_s)
    if recipe.batch.size <= fitting * workers:
        return None
    even = max(fitting // 2 * 2, 2)  # pairs are mixed
    return None if even * workers >= recipe.batch.size else even * workers
