"""Measurements in processes of their own: what hangs in a driver or a collective is killed, and holds no GPU after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_POLL_S = 0.05
_LAST = 300  # characters of what a failed child wrote


@dataclass(frozen=True)
class Child:
    """`python -m module argument`, where the argument is JSON; its answer is the last line that it prints, JSON too."""

    module: str
    argument: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def run_children(children: Sequence[Child], seconds: float) -> list[dict[str, Any] | str]:
    """Run all at once; of each its answer, or in words why there is none. Those that run longer are killed."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{n}.out"), Path(folder, f"{n}.err")) for n in range(len(children))]
        running = [_start(child, *files) for child, files in zip(children, outputs, strict=True)]
        try:
            while time.monotonic() < deadline and any(process.poll() is None for process in running):
                time.sleep(_POLL_S)
        finally:
            late = [process.poll() is None for process in running]
            for process in running:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [
            f"no answer within {seconds:.3g} s" if was_late else _answer(process.returncode, *files)
            for process, files, was_late in zip(running, outputs, late, strict=True)
        ]


def _start(child: Child, out: Path, err: Path) -> subprocess.Popen[bytes]:
    # Where this package was found without being installed, the child finds it too.
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **child.variables}
    command = [sys.executable, "-m", child.module, json.dumps(child.argument)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment)


def _answer(code: int, out: Path, err: Path) -> dict[str, Any] | str:
    lines = out.read_text(errors="replace").splitlines()
    if code == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    said = err.read_text(errors="replace").strip()[-_LAST:]
    ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{ended}: {said.splitlines()[-1] if said else 'it said nothing'}"
