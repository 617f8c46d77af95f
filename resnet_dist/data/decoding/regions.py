"""Decodes windows of JPEGs with NVIDIA nvImageCodec on the CPU. Only this file imports it, when it is used.

It decodes only the region of a window, with the code of libjpeg-turbo and the settings of Pillow, so the pixels are
Pillow's. DALI depends on it, so it is installed wherever DALI is.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ON_THE_CPU = -99999  # nvImageCodec's NVIMGCODEC_DEVICE_CPU_ONLY
_VERBOSITY = "PYNVIMGCODEC_VERBOSITY"  # 0: no lines on stderr for broken images, which Pillow then names


def version() -> str | None:
    """The version of nvImageCodec; None if it cannot be imported."""
    package = _package()
    return None if package is None else str(package.__version__)


class RegionDecoder:
    """Decodes one window after another, in one thread. nvImageCodec must be installed."""

    def __init__(self) -> None:
        self._package = _package()
        backends = [self._package.Backend(self._package.BackendKind.CPU_ONLY)]
        self._decoder = self._package.Decoder(device_id=_ON_THE_CPU, max_num_cpu_threads=1, backends=backends)
        self._params = self._package.DecodeParams(
            apply_exif_orientation=False, color_spec=self._package.ColorSpec.SRGB, allow_any_depth=False
        )
        self._image: Any = None  # its memory is used again

    def decode(self, content: bytes, window: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
        """The window (top, left, height, width) of an image as RGB, uint8 [height, width, 3], up to the next call.

        None for what cannot be decoded.
        """
        top, left, height, width = window
        region = self._package.Region(top, left, top + height, left + width)
        part = self._package.CodeStream(content).get_sub_code_stream(region=region)
        self._image = self._decoder.decode(part, image=self._image, params=self._params)
        return None if self._image is None else np.asarray(self._image)


@functools.cache
def _package() -> Any:
    before = os.environ.get(_VERBOSITY)
    os.environ.setdefault(_VERBOSITY, "0")  # read when it is imported
    try:
        import nvidia.nvimgcodec
    except ImportError:  # not installed, or not for this machine
        return None
    finally:
        if before is None:
            del os.environ[_VERBOSITY]
    return nvidia.nvimgcodec
