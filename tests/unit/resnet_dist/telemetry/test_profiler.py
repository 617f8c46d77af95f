"""A look into chosen steps."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, torch
from pathlib import Path
from resnet_dist.telemetry.profiler import StepProfiler
profiler = StepProfiler(2, 3, Path(sys.argv[1]), 0, torch.device("cpu"))
for step in (1, 2, 3):
    with profiler.step(step):
        torch.ones(8, 8) @ torch.ones(8, 8)
"""


def test_it_leaves_a_trace_and_a_table_and_says_nothing_on_the_console(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    trace = json.loads(gzip.decompress((tmp_path / "rank-0.trace.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2
    assert "aten::mm" in (tmp_path / "rank-0.txt").read_text()
