"""The example of docs/extending.md works unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture
def folder(tmp_path: Path, write_images: Callable[[Path], Path]) -> Path:
    """The files of the page, and images with the tables that its data source reads."""
    blocks = re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "yaml", "python"]
    for name, (_, text) in zip(("my_parts.py", "own.yaml", "check.py"), blocks, strict=True):
        (tmp_path / name).write_text(text)
    images = write_images(tmp_path / "images")
    for split in ("train", "val"):
        rows = [f"{path.relative_to(images)},{int(path.parent.name == 'dog')}" for path in images.glob(f"{split}/*/*")]
        (images / f"{split}.csv").write_text("\n".join(sorted(rows)) + "\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    gone = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment["PYTHONPATH"] = f".:{ROOT}"
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_example_trains(folder: Path) -> None:
    done = run(folder, "-m", "launcher.train", "own.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((folder / "runs" / "own" / "FINISHED").read_text())
    assert summary["step"] == 5
    assert (folder / "runs" / "own" / "margins.txt").read_text().splitlines()[-1] == f"5 {summary['metrics']['margin']}"


def test_the_engine_and_the_model_of_the_example_conform(folder: Path) -> None:
    done = run(folder, "check.py")
    assert done.returncode == 0, done.stderr


def test_every_key_that_takes_a_function_is_in_the_table() -> None:
    from launcher.config.reference import page

    pattern = r"^\| ([a-z.]+) \| `function\("
    documented = set(re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    # Rows of docs/config.md: keys of type text whose meaning names package.module:function.
    types = "text|text or null|list of texts"
    keys = set(re.findall(rf"^\| ([a-z.]+) \| (?:{types}) \|.*package\.module:function", page(), re.MULTILINE))
    assert documented == keys
    assert keys == {
        *("model.name", "optimizer.name", "schedule.decay", "data.source", "engine.name"),
        *("data.augmentation.name", "loss.name", "evaluate.metrics", "log.sinks"),
    }
