"""Measurements in child processes: one that hangs in a driver or a collective is killed, and frees its GPU."""

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

from launcher.formatting import printable_lines

_POLL_S = 0.05
_NUM_ERROR_CHARACTERS = 300

Answer = dict[str, Any]  # a JSON object


@dataclass(frozen=True)
class Child:
    """`python -m module argument` with a JSON argument; the last line it prints is its answer, a JSON object."""

    module: str
    argument: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def run_children(
    children: Sequence[Child], seconds: float, *, end_with_first_failure: bool = False
) -> list[Answer | str]:
    """Run all children at once; returns each child's answer, or the reason why there is none, as text.

    Children that run longer than `seconds` are killed, and with `end_with_first_failure` all that run when one fails.
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{n}.out"), Path(folder, f"{n}.err")) for n in range(len(children))]
        running = [_start(child, *files) for child, files in zip(children, outputs, strict=True)]
        try:
            while time.monotonic() < deadline and None in (codes := [process.poll() for process in running]):
                if end_with_first_failure and any(codes):
                    break
                time.sleep(_POLL_S)
        finally:
            late = [process.poll() is None for process in running]
            for process in running:
                process.kill()
                process.wait()
        return [
            f"no answer within {seconds:.3g} s" if was_late else _answer(process.returncode, *files)
            for process, files, was_late in zip(running, outputs, late, strict=True)
        ]


def _start(child: Child, out: Path, err: Path) -> subprocess.Popen[bytes]:
    # The child finds this package even where it is not installed.
    packages = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, **child.variables}
    command = [sys.executable, "-m", child.module, json.dumps(child.argument)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment)


def _answer(code: int, out: Path, err: Path) -> Answer | str:
    lines = out.read_text(errors="replace").splitlines()
    if code == 0 and lines:
        answer: Answer = json.loads(lines[-1])
        return answer
    ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{ended}: {printable_lines(err.read_text(errors='replace'))[-1][-_NUM_ERROR_CHARACTERS:]}"
