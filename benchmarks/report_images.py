"""Draws docs/images/report*.png: the pages that `launcher report` makes of two runs on handwritten digits.

python -m benchmarks.report_images [STORAGE]      trains the runs in STORAGE unless they are finished there (2 minutes)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"  # `make system` installs it
RUNS = {"batch-128": ["batch.size=128"], "batch-256": ["batch.size=256"]}
COMMON = ["duration=12 epochs", "place=local", "log.every_steps=1", "log.tensorboard=false"]


def train(storage: Path) -> list[Path]:
    """Train the runs that are not finished in `storage`; returns their directories."""
    images = storage / "digits"
    if not images.exists():
        _launcher("prepare", "digits", str(images))
    for name, keys in RUNS.items():
        config = [str(ROOT / "configs" / "digits_cpu.yaml"), f"name={name}", f"storage={storage}"]
        _launcher("train", *config, f"data.root={images}", *COMMON, *keys)
    return [storage / name for name in RUNS]


def screenshot(page: Path, file: Path, *, width: int, height: int, dark: bool = False) -> None:
    """Write the top of an HTML file, in a window of `width` × `height` pixels, as PNG."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        window = {"width": width, "height": height}
        tab = browser.new_page(viewport=window, color_scheme="dark" if dark else "light")
        tab.goto(page.absolute().as_uri())
        tab.screenshot(path=str(file))
        browser.close()


def draw(runs: Sequence[Path], folder: Path = IMAGES) -> None:
    """Write the images of the pages of a run and of all `runs`."""
    with tempfile.TemporaryDirectory() as made:
        one, several = Path(made) / "one.html", Path(made) / "several.html"
        _launcher("report", str(runs[0]), "--html", str(one))
        _launcher("report", *map(str, runs), "--html", str(several))
        screenshot(one, folder / "report.png", width=1180, height=1180)
        screenshot(several, folder / "report-compare.png", width=1180, height=1240)
        screenshot(one, folder / "report-phone.png", width=390, height=1200, dark=True)


def _launcher(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "launcher", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", nargs="?", type=Path, help="folder of the runs, which is kept (default: a new one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        storage = Path(made) if given.storage is None else given.storage.expanduser().absolute()
        storage.mkdir(parents=True, exist_ok=True)
        draw(train(storage))
