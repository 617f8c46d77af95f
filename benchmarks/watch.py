"""First frame and CPU share of `launcher watch`.

    python -m benchmarks.watch

starts the view in a pseudo-terminal of 120 × 40, on runs that this process makes and one that it keeps writing, and
writes results/watch.json. The first frame is there when the first curve is drawn, counted from the start of the
process; CPU seconds are those of the view's process while nobody presses a key.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import math
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import write
from launcher.run import heartbeats, lease
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.watch.chart import Chart, Curve, draw, number
from resnet_dist.telemetry import json_lines

NUM_RECORDS, STARTS, SECONDS = 100_000, 5, 30.0
GOALS = {"first_frame_s": 1.0, "cpu_share": 0.02}
WARM_UP_S = 5.0
_BRAILLE = "⠀".encode()[:1]  # all of them begin with this byte and one of the next four
_SECOND = (0xA0, 0xA1, 0xA2, 0xA3)
CONFIG = """schema: 1
name: {name}
storage: {storage}
duration: {steps} steps
model: {{name: resnet20, num_classes: 10}}
data: {{root: /data, resolution: 32, num_samples: 1442}}
batch: {{size: 128}}
optimizer: {{name: sgd, momentum: 0.9, weight_decay: 5.0e-4}}
schedule: {{base_lr: 0.1, decay: cosine}}
"""


def train_record(step: int, total: int) -> dict[str, object]:
    """As the trainer writes it."""
    noise = math.sin(step * 12.9898) * 0.1
    return {
        "kind": "train",
        "step": step,
        "epoch": step * 128 / 1442,
        "loss": 2.3 * math.exp(-3 * step / total) + 0.2 + noise * math.exp(-step / total),
        "top1": 1 - math.exp(-3 * step / total),
        "gradient_norm": 1.0 + noise,
        "sample_ids": 256240203760 + step,
        "learning_rate": 0.05 * (1 + math.cos(math.pi * step / total)),
        "images_per_s": 1200.0 + 300 * noise,
        "step_time_s": 0.1 + 0.01 * noise,
        "data_wait_s": 0.004,
        "time_left_s": (total - step) * 0.1,
    }


def make_run(storage: Path, name: str, num_records: int, num_workers: int) -> RunDirectory:
    """A run that has written `num_records` train records and an evaluation every hundredth of them."""
    run, total = RunDirectory(storage, name), 2 * num_records
    run.create()
    run.write_config(CONFIG.format(name=name, storage=storage, steps=total))
    logs = run.logs(run.begin_attempt({"place": "local", "workers": num_workers, "from_step": 0}))
    logs.heartbeats.mkdir()
    logs.log(0).write_text("".join(f"2026-11-26 19:07:31,{k:03d} INFO launcher: line {k}\n" for k in range(500)))
    with run.metrics.open("wb") as file:
        detail = {"total_steps": total, "batch_size": 128, "num_samples": 1442}
        file.write(json_lines.encode({"kind": "event", "step": 0, "event": "started", "detail": detail}))
        for step in range(1, num_records + 1):
            file.write(json_lines.encode(train_record(step, total)))
            if step % (num_records // 100) == 0:
                top1 = 1 - math.exp(-3 * step / total)
                rest = {"top1": top1, "loss": 1 - top1, "num_samples": 355, "weights": "model", "time_s": 1.5}
                file.write(json_lines.encode({"kind": "eval", "step": step, "epoch": step * 128 / 1442, **rest}))
    beat(run, num_workers, num_records, 1)
    return run


def beat(run: RunDirectory, num_workers: int, step: int, tick: int) -> None:
    """The heartbeats of all workers."""
    for rank in range(num_workers):
        host = f"node{rank // 8}"
        beat = Heartbeat(rank=rank, host=host, pid=rank + 100, tick=tick, phase="step", step=step, age_s=0.1)
        heartbeats.write(run.logs(1), beat)


@contextlib.contextmanager
def written(run: RunDirectory, num_workers: int, first_step: int, beat_s: float) -> Iterator[None]:
    """Inside, the run is alive: it has a lease, makes ten steps a second, and all its workers beat."""
    ended = threading.Event()

    def keep_writing() -> None:
        step, beaten = first_step, 0.0
        while not ended.wait(0.1):
            step += 1
            with run.metrics.open("ab") as file:
                file.write(json_lines.encode(train_record(step, 2 * first_step)))
            if time.monotonic() - beaten > beat_s:
                beat(run, num_workers, step, step)
                beaten = time.monotonic()

    thread = threading.Thread(target=keep_writing)
    with lease.acquire(run.lease):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Terminal:
    """`launcher watch` in a pseudo-terminal that somebody reads."""

    def __init__(self, *runs: Path) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._began = time.perf_counter()
        command = [sys.executable, "-m", "launcher", "watch", *map(str, runs)]
        environment = {**os.environ, "TERM": "xterm-256color"}
        self._process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self._master = master

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._master, b"q")
        end = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def first_frame_s(self) -> tuple[float, float]:
        """Seconds, and CPU seconds, from the start of the process to the first dots of a curve."""
        seen = b""
        while True:
            seen = seen[-2:] + self._read(10.0)
            if any(seen.count(_BRAILLE + bytes([second])) for second in _SECOND):
                return time.perf_counter() - self._began, self._cpu_s()
            if self._process.poll() is not None:
                raise RuntimeError(f"launcher watch ended with exit code {self._process.returncode}")

    def cpu_share(self, seconds: float) -> float:
        """CPU seconds per second."""
        self._drain(WARM_UP_S)
        before, began = self._cpu_s(), time.perf_counter()
        self._drain(seconds)
        return (self._cpu_s() - before) / (time.perf_counter() - began)

    def peak_memory_mb(self) -> float:
        """The largest resident size so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1000

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _drain(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def _read(self, wait_s: float) -> bytes:
        if not select.select([self._master], [], [], wait_s)[0]:
            return b""
        try:
            return os.read(self._master, 65536)
        except OSError:  # it has ended
            return b""


def measure(what: str, *runs: Path) -> dict[str, Any]:
    """The figures of one situation."""
    frames: list[tuple[float, float]] = []
    for _ in range(STARTS):
        with Terminal(*runs) as terminal:
            frames.append(terminal.first_frame_s())
    with Terminal(*runs) as terminal:
        terminal.first_frame_s()
        share = terminal.cpu_share(SECONDS)
        memory = terminal.peak_memory_mb()
    seconds, cpu_seconds = (list(column) for column in zip(*frames, strict=True))
    first = f"first frame {statistics.median(seconds):.2f} s (CPU {statistics.median(cpu_seconds):.2f} s)"
    print(f"{what}: {first}, {share:.2%} of a core, {memory:.0f} MB", flush=True)
    return {
        "what": what,
        "first_frame_s": seconds,
        "first_frame_cpu_s": cpu_seconds,
        "cpu_share": share,
        "peak_memory_mb": memory,
    }


def chart_times() -> dict[str, float | None]:
    """CPU seconds of one chart of 60 × 14 with 500 points: ours, and plotext's if it is installed."""
    points = [(float(x), 2.3 * math.exp(-x / 125) + 0.1 * math.sin(x * 12.9898)) for x in range(500)]
    chart = Chart("loss", [Curve(points)], number, number, "step", (0.0, 500.0))
    found: dict[str, float | None] = {"ours_s": _cpu_time(lambda: draw(chart, 60, 14)), "plotext_s": None}
    if importlib.util.find_spec("plotext") is not None:
        import plotext

        def plot() -> None:
            plotext.clear_figure()
            plotext.plot_size(60, 14)
            plotext.plot(*zip(*points, strict=True), marker="braille")
            plotext.build()

        found["plotext_s"] = _cpu_time(plot)
    return found


def _cpu_time(do: Callable[[], object], times: int = 20) -> float:
    do()
    began = time.process_time()
    for _ in range(times):
        do()
    return (time.process_time() - began) / times


def main() -> None:
    """Measure and write the results."""
    with tempfile.TemporaryDirectory(prefix="watch") as folder:
        storage = Path(folder)
        small = make_run(storage, "small", 1_000, 2)
        large = make_run(storage, "large", NUM_RECORDS, 8)
        wide = make_run(storage, "wide", NUM_RECORDS, 1_000)
        rows = [
            measure("1,000 records, nothing is written", small.path),
            measure("100,000 records, nothing is written", large.path),
        ]
        with written(large, 8, NUM_RECORDS, 1.0):
            rows.append(measure("100,000 records, 10 more a second, 8 workers", large.path))
            rows.append(measure("the same and a second run drawn over it", large.path, small.path))
        with written(wide, 1_000, NUM_RECORDS, 10.0):
            rows.append(measure("100,000 records, 10 more a second, 1,000 workers", wide.path))
    print(write("watch", {"goals": GOALS, "starts": STARTS, "seconds": SECONDS, "chart": chart_times(), "rows": rows}))


if __name__ == "__main__":
    main()
