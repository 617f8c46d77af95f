"""A process whose decoders have a full queue ends when its consumer does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding import regions as decode_regions

ROOT = Path(__file__).parents[2]

PROGRAM = """
import io, itertools, sys
import numpy as np
from PIL import Image
from image_requests import request_of
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.dali import DaliDecoder

stream = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(stream, "JPEG")
request = request_of([stream.getvalue()] * 16, [(0, 0, 200, 300)] * 16)
kinds = {
    "pillow": lambda: CpuDecoder(2, 8),
    "nvimagecodec": lambda: CpuDecoder(2, 8, regions=True),
    "dali": lambda: DaliDecoder(2, 8, 16),
}
decoding = [kinds[name]().decode(itertools.repeat(request)) for name in sys.argv[2:]]
for batches in decoding:
    next(batches)
if sys.argv[1] == "raises":
    raise KeyError("the consumer")
print("done")
"""


@pytest.mark.parametrize(("how", "code"), [("returns", 0), ("raises", 1)])
def test_a_process_with_decoders_that_work_ahead_ends_with_its_consumer(how: str, code: int) -> None:
    installed = {"nvimagecodec": decode_regions.version() is not None, "dali": decode_dali.is_installed()}
    decoders = ["pillow", *(name for name, found in installed.items() if found)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, how, *decoders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout == ("done\n" if how == "returns" else "")
    assert ("KeyError: 'the consumer'" in done.stderr) == (how == "raises")
