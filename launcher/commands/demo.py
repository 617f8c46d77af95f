"""`launcher demo`: real images, a training run and its result in a few minutes on a laptop."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.prepare import write_demo_images
from launcher.config import load as configs
from launcher.console import Progress
from launcher.train import train

OPTIONAL = {
    "ray": "Ray: the run uses one process instead of two workers (same losses up to rounding)",
    "sklearn": "scikit-learn: drawn digits instead of handwritten ones",
    "tensorboard": "TensorBoard: metrics go to metrics.jsonl only",
}


def run_demo(folder: Path, overrides: Sequence[str]) -> int:
    """Write the demo's images to `folder`/data, train configs/digits_cpu.yaml on them, say where everything is."""
    progress = Progress()
    for package, without in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            progress.say(f"not installed, left out: {without}")
    images, label = write_demo_images(folder / "digits")
    progress.say(f"images: {label}, in {images}")
    path = shipped_config("digits_cpu.yaml")
    # A demo that was run before is run again, not resumed.
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    config = configs.load(path, [f"data.root={images}", f"storage={folder / 'runs'}", f"name={name}", *overrides])
    code, _ = train(config, "auto", progress)
    return code


def shipped_config(name: str) -> Path:
    """A config that comes with the project: in the wheel beside this file, in a checkout one folder up."""
    here = Path(__file__).parent
    installed = here / "configs" / name
    return installed if installed.exists() else here.parent / "configs" / name
