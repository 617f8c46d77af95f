"""The commands of docs/quick-start.md, one after the other, as a new user types them, with shorter trainings."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:launcher|sed) .*)$", PAGE, re.MULTILINE)
SHORTER = ["duration=3 steps", "schedule.warmup=1 step", "log.every_steps=1"]  # the page's runs take minutes


def arguments_of(command: str, home: Path) -> list[str]:
    """The words of a command as the shell expands them."""
    words = [word.replace("~", str(home), 1) if word.startswith("~/") else word for word in shlex.split(command)]
    if words[0] == "launcher":
        words = [sys.executable, "-m", *words, *(SHORTER if words[1] == "train" else [])]
    return words


@pytest.mark.smoke
def test_every_command_works(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 12
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    output: dict[str, str] = {}
    for command in COMMANDS:
        done = subprocess.run(
            arguments_of(command, tmp_path),
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        output[command] = done.stdout + done.stderr
        differs = 1 if " compare " in command else 0  # the runs have other batches
        assert done.returncode == differs, f"{command}\n{output[command]}"
        assert "Traceback" not in output[command], f"{command}\n{output[command]}"
        assert "Warning:" not in output[command], f"{command}\n{output[command]}"
    config = yaml.safe_load((work / "first.yaml").read_text())
    assert (config["data"]["flip"], config["duration"]) == (False, "15 epochs")
    assert "top-1" in output["launcher train first.yaml"]
    assert "0014.jpg" in next(text for command, text in output.items() if " predict " in command)
    assert (work / "report.html").stat().st_size > 10_000
