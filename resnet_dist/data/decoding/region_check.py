"""Finds out in a child process whether DALI decodes regions on this GPU, before the training process tries.

With some versions it ends with a segmentation fault instead of an exception (NVIDIA/nvImageCodec issue 55: regions of
JPEGs on an H100), which would end the run. The child decodes generated JPEGs by regions and whole. If it dies, fails or
hangs, whole images are decoded and then cut, which costs more time and memory. Not run on a GPU; the child process is
tested with DALI on a CPU, and with children that die and hang.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from resnet_dist.data.decoding.choice import uses_dali
from resnet_dist.recipe.schema import DaliRecipe, DataRecipe

log = logging.getLogger(__name__)

TIME_LIMIT_S = 120.0  # mostly for importing torch and DALI from a cold disk
_RESOLUTION = 64
_SAME_LEVELS = 2.0  # of 255: a larger mean difference of smooth images comes from another region, not from rounding
# What the child does before its imports, which may hang. It ends with its parent, or a little after the time limit. It
# ignores the signals that a terminal or a scheduler sends to all processes of a run: they are for the parent.
_BEGIN = f"""
import os, signal, threading
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
signal.alarm({int(TIME_LIMIT_S) + 10})
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
"""
_CODE = f"{_BEGIN}from resnet_dist.data.decoding.region_check import main; main()"


class RegionCheck:
    """A child process that decodes regions. Its standard input ends when this process does, however that ends."""

    def __init__(self, command: Sequence[str], time_limit_s: float = TIME_LIMIT_S) -> None:
        self._ends_by, self._time_limit_s = time.monotonic() + time_limit_s, time_limit_s
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 # closed with this object
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors, env=environment
        )
        weakref.finalize(self, _end, self._child, self._errors)

    @functools.cached_property
    def problem(self) -> str | None:
        """What is wrong with decoding regions; None: nothing. Waits for the child."""
        try:
            code = self._child.wait(max(0.0, self._ends_by - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(self._child)
            return f"a trial in a child process has not ended within {self._time_limit_s:g} s"
        if code == 0:
            return None
        if code < 0:
            return f"a trial in a child process ended with {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"a trial in a child process failed: {lines[-1] if lines else f'exit code {code}'}"


def _end(child: subprocess.Popen[bytes], errors: IO[bytes] | None = None) -> None:
    child.kill()
    try:
        child.wait(5)  # a process that a driver holds cannot be killed
    except subprocess.TimeoutExpired:
        log.warning("process %d, which tries to decode on the GPU, cannot be ended", child.pid)
    for file in (child.stdin, errors):
        if file is not None:
            file.close()


def region_check(data: DataRecipe, device: torch.device) -> RegionCheck | None:
    """The check for DALI on `device`, started by the first call in this process; None if DALI decodes nothing there."""
    if device.type != "cuda" or data.source == "synthetic" or not uses_dali(data, on_gpu=True):
        return None
    return _started(data.dali, torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _started(settings: DaliRecipe, device_id: int) -> RegionCheck:
    return RegionCheck(command_for(settings, device_id))


def command_for(settings: DaliRecipe, device_id: int | None) -> list[str]:
    """The command line of the child process."""
    arguments = {"device_id": device_id, "settings": dataclasses.asdict(settings)}
    return [sys.executable, "-c", _CODE, json.dumps(arguments)]


@functools.cache
def warn_of(problem: str) -> None:
    """Log that regions are not decoded, and why: once in a process."""
    log.warning("DALI decodes whole images and then cuts them, which takes longer than decoding regions: %s", problem)


def main() -> None:
    """Decode regions. The child process ends with this; an exception is its exit code 1."""
    arguments = json.loads(sys.argv[1])
    try_regions(arguments["device_id"], DaliRecipe(**arguments["settings"]))


def try_regions(device_id: int | None, settings: DaliRecipe) -> None:
    """Decode generated JPEGs by regions and whole, on GPU `device_id` or the CPU.

    Raises RuntimeError if DALI fails, or if the pixels of both differ by more than rounding. May end the process.
    """
    from resnet_dist.data.decoding.dali import DaliDecoder, Pipeline, arrays_of

    samples, found = _samples(), []
    arrays = arrays_of(samples, np.arange(len(samples)) % 2 == 1, _RESOLUTION)
    for regions in (True, False):
        decoder = DaliDecoder(2, 1, len(samples), device_id, settings, regions)
        pipeline, batches = Pipeline(decoder), iter([arrays])
        pipeline.start(functools.partial(next, batches))
        found.append(pipeline.next().cpu().float())  # waits for the device, which then reports its errors
    difference = (found[0] - found[1]).abs().mean().item()
    if difference > _SAME_LEVELS:
        raise RuntimeError(f"pixels of regions differ from those of whole images by {difference:.1f} levels on average")


def _samples() -> list[tuple[bytes, tuple[int, int, int, int]]]:
    """Smooth JPEGs of the usual kinds, small and large, with windows at their edges and inside."""
    kinds: list[dict[str, Any]] = [{"subsampling": 2}, {"subsampling": 0}, {"progressive": True}, {"subsampling": 1}]
    samples = []
    for height, width in ((375, 500), (500, 333), (64, 48), (1200, 1600)):
        rows, columns = np.mgrid[:height, :width]
        channels = (rows / height, columns / width, (rows + columns) / (height + width))
        image = Image.fromarray((255 * np.stack(channels, 2)).astype(np.uint8))
        windows = [
            (0, 0, height, width),
            (0, 0, height // 2, width // 3),
            (height // 3 + 1, width // 4 + 1, height // 2, width // 2),
            (height - height // 3, width - width // 2, height // 3, width // 2),
        ]
        for number, options in enumerate(kinds):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=90, **options)
            samples += [(stream.getvalue(), windows[number]), (stream.getvalue(), windows[number - 1])]
    return samples
