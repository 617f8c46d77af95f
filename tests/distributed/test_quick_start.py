"""The commands of docs/quick-start.md, one after the other, as a new user types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:python -m launcher|launcher)[ .].*)$", PAGE, re.MULTILINE)
SHORTER = {"digits.yaml": ["duration=2 epochs", "workers=1"]}  # the page's run takes minutes


def arguments_of(command: str, home: Path) -> list[str]:
    """The words of a command, with the user's own paths in place of the page's, and a shorter run."""
    image = next((home / "resnet_data" / "digits" / "val").rglob("*.png"), Path("none"))
    words = [str(image) if word == "IMAGE.png" else word for word in shlex.split(command, comments=True)]
    words = [word.replace("~", str(home), 1) if word.startswith("~/") else word for word in words]
    if words[:3] == ["python", "-m", "launcher.train"]:
        words += SHORTER["digits.yaml"]
    return [sys.executable, *words[1:]]


@pytest.mark.smoke
def test_every_command_works(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 10
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    output: dict[str, str] = {}
    for command in COMMANDS:
        done = subprocess.run(
            arguments_of(command, tmp_path),
            cwd=tmp_path / "work",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        output[command] = done.stdout + done.stderr
        differs = 1 if " compare " in command else 0  # the runs have other batches
        assert done.returncode in (0, differs), f"{command}\n{output[command]}"
        assert "Traceback" not in output[command], f"{command}\n{output[command]}"
        assert "Warning:" not in output[command], f"{command}\n{output[command]}"
    assert (tmp_path / "work" / "report.html").stat().st_size > 10_000
    trained = next(text for command, text in output.items() if "launcher.train digits.yaml" in command)
    assert "top-1" in trained
