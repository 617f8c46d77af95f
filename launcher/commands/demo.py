"""`launcher demo`: train on handwritten digits in a few minutes on a laptop."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.config import load as configs
from launcher.console import Progress
from launcher.prepare.digits import write_demo_images
from launcher.signals import StopSignals
from launcher.train import train

OPTIONAL = {
    "ray": "Ray: the run uses one process instead of two workers (same losses up to rounding)",
    "sklearn": "scikit-learn: drawn digits instead of handwritten ones",
    "tensorboard": "TensorBoard: metrics go to metrics.jsonl only",
}


def run_demo(folder: Path, overrides: Sequence[str], stop: StopSignals | None = None) -> int:
    """Write images to `folder`/digits, train configs/digits_cpu.yaml on them, and print where everything is.

    `stop`: the signals that this process handles already.
    """
    progress = Progress()
    for package, without in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            progress.print(f"not installed: {without}")
    images, label = write_demo_images(folder / "digits")
    progress.print(f"images: {label}, in {images}")
    path = shipped_config("digits_cpu.yaml")
    # A new name: a second demo is a new run and does not resume the first one.
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    config = configs.load(path, [f"data.root={images}", f"storage={folder / 'runs'}", f"name={name}", *overrides])
    code, _ = train(config, "auto", progress, stop=stop)
    return code


def shipped_config(name: str) -> Path:
    """The path of a config that comes with the project: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs" / name
    return installed if installed.exists() else package.parent / "configs" / name
