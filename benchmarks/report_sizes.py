"""How large the page of `launcher report --html` is, and how long the command takes.

    python -m benchmarks.report_sizes [STORAGE]      trains the runs in STORAGE unless they are finished there

The runs are those of benchmarks.report_images. The long run repeats the records of the first one, with rising steps.
Writes results/report_sizes.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from benchmarks.report_images import ROOT, train
from launcher.report.page import MAX_BYTES
from launcher.run.directory import RunDirectory

NUM_RECORDS = 100_000
ROUNDS = 3


def lengthen(run: Path, num_records: int) -> Path:
    """A copy of a finished run, with `num_records` records of training and evaluation."""
    copy = run.with_name(f"{run.name}-long")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    metrics = RunDirectory(copy.parent, copy.name).metrics
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    measured = [record for record in records if record["kind"] in ("train", "eval")]
    last_step, last_epoch = measured[-1]["step"], measured[-1]["epoch"]
    with metrics.open("w") as file:
        for number, record in enumerate(itertools.islice(itertools.cycle(measured), num_records)):
            times = number // len(measured)
            place = {"step": record["step"] + times * last_step, "epoch": record["epoch"] + times * last_epoch}
            file.write(json.dumps({**record, **place}) + "\n")
    return copy


def row(what: str, runs: list[Path], file: Path) -> dict[str, Any]:
    """The size of the page of `runs` in bytes, and the seconds of the command in each round."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        command = [sys.executable, "-m", "launcher", "report", *map(str, runs), "--html", str(file)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - started, 2))
    records = sum(len(RunDirectory(run.parent, run.name).metrics.read_text().splitlines()) for run in runs)
    return {"what": what, "records": records, "bytes": file.stat().st_size, "seconds": seconds}


def measure(storage: Path) -> None:
    """Train what is missing in `storage`, print the rows and write them."""
    runs = train(storage)
    long = lengthen(runs[0], NUM_RECORDS)
    file = storage / "report.html"
    rows = [row("one run", runs[:1], file), row("two runs", runs, file), row("a long run", [long], file)]
    for found in rows:
        print(f"{found['what']}: {found['bytes']:,} bytes, {statistics.median(found['seconds']):.2f} s")
    print(write("report_sizes", {"goal_bytes": MAX_BYTES, "rows": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", nargs="?", type=Path, help="folder of the runs, which is kept (default: a new one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        storage = Path(made) if given.storage is None else given.storage.expanduser().absolute()
        storage.mkdir(parents=True, exist_ok=True)
        measure(storage)
