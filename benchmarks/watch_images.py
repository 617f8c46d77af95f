"""Draws docs/images/watch-*.svg: what `launcher watch` shows of two runs that are made up here.

python -m benchmarks.watch_images
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.watch import CONFIG, train_record
from launcher.run import heartbeats, lease
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.watch.app import WatchApp
from launcher.watch.reader import Reader
from launcher.watch.sources import Here
from resnet_dist.telemetry import json_lines

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TOTAL, DONE, FAILED, SAVED, SLOW = 6_880, 4_300, 2_060, 2_000, 3_700  # steps of the first run
BATCH, SAMPLES = 8_192, 1_281_167
PER_EPOCH = SAMPLES // BATCH


def _records(first: int, last: int, *, slower: float = 1.0) -> Sequence[dict[str, object]]:
    """Train records and evaluations of ImageNet-like curves."""
    found: list[dict[str, object]] = [
        {"kind": "event", "step": first - 1, "event": "started", "detail": {"total_steps": TOTAL}}
    ]
    for step in range(first, last + 1):
        record = train_record(step, TOTAL)
        noise = math.sin(step * 12.9898) * 0.15
        warm_up = min(step / (5 * PER_EPOCH), 1.0)
        if step % 10 == 0:
            dip = 0.7 if step > SLOW else 1.0
            found.append(
                {
                    **record,
                    "epoch": step * BATCH / SAMPLES,
                    "loss": 1.9 + 5.0 * math.exp(-slower * step / 1_000) + noise * math.exp(-step / 4_000),
                    "learning_rate": 17.0 * warm_up * (1 - step / TOTAL) ** 2,
                    "images_per_s": dip * (91_000 + 4_000 * noise),
                    "step_time_s": 0.09 / dip,
                    "data_wait_s": 0.002,
                    "time_left_s": (TOTAL - step) * 0.1,
                }
            )
        if step % PER_EPOCH == 0:
            top1 = 0.76 * (1 - math.exp(-slower * step / 1_300))
            rest = {"top1": top1, "loss": 3.0 - 2 * top1, "num_samples": 50_000, "weights": "model", "time_s": 1.4}
            found.append({"kind": "eval", "step": step, "epoch": step * BATCH / SAMPLES, **rest})
        if step % 500 == 0:
            found.append({"kind": "event", "step": step, "event": "checkpoint", "detail": {"stalled_s": 0.4}})
    return found


def _begin(storage: Path, name: str, records: Sequence[dict[str, object]]) -> RunDirectory:
    run = RunDirectory(storage, name)
    run.create()
    run.write_config(CONFIG.format(name=name, storage=storage, steps=TOTAL))
    run.metrics.write_bytes(b"".join(map(json_lines.encode, records)))
    run.begin_attempt({"place": "ray", "workers": 64, "from_step": 0})
    return run


def make_runs(storage: Path) -> tuple[RunDirectory, RunDirectory]:
    """A run on 64 workers that has lost one and has a straggler, and one that is finished."""
    slow = {"rank": 21, "local_step_time_s": 0.127, "others_s": 0.061}
    straggler = {"kind": "event", "step": SLOW + 25, "event": "straggler", "detail": slow}
    first = _records(1, FAILED)
    again = _records(SAVED + 1, DONE)
    before = [record for record in again if _step(record) <= SLOW]
    run = _begin(storage, "rn50-8node", [*first, *before, straggler, *again[len(before) :]])
    facts = {"checkpoint_step": SAVED, "steps_redone": FAILED - SAVED, "class": "WorkerLost"}
    run.end_attempt(1, 76, "WorkerLost: worker 37 on n04: its node was lost", FAILED, facts)
    logs = run.logs(run.begin_attempt({"place": "ray", "workers": 64, "from_step": SAVED}))
    logs.heartbeats.mkdir()
    for rank in range(64):
        waits = rank != 21
        values = {"host": f"n{rank // 8:02}", "pid": 4711, "tick": 9, "age_s": 0.1}
        beat = Heartbeat(rank=rank, phase="step", step=DONE + 1, waiting=waits, **values)
        heartbeats.write(logs, beat)
        os.utime(logs.heartbeat(rank), (time.time() - 2, time.time() - 2))
    text = "2026-11-26 19:07:3{} INFO {}\n"
    logs.log(0).write_text(
        text.format(1, "launcher.worker.train: rank 0 of 64 on n00")
        + text.format(4, f"launcher.worker.train: resumed from step-0000{SAVED}")
        + text.format(5, "resnet_dist.build: images: DALI 2.1 on the GPU")
    )
    other = _begin(storage, "rn50-lower-lr", _records(1, TOTAL, slower=0.8))
    other.end_attempt(1, 0, "finished", TOTAL)
    other.mark_finished({"step": TOTAL, "top1": 0.751})
    return run, other


def _step(record: dict[str, object]) -> int:
    step = record["step"]
    assert isinstance(step, int)
    return step


async def _draw(runs: Sequence[RunDirectory], keys: Sequence[str], size: tuple[int, int], file: Path) -> None:
    app = WatchApp([Here(Reader(run)) for run in runs], [run.name for run in runs])
    async with app.run_test(size=size) as pilot:
        await pilot.press(*keys)
        await pilot.pause(0.5)
        file.write_text(app.export_screenshot(title=f"launcher watch {' '.join(run.name for run in runs)}"))
    app.close()
    print(file)


def main() -> None:
    """Draw all images."""
    with tempfile.TemporaryDirectory() as folder:
        run, other = make_runs(Path(folder))
        with lease.acquire(run.lease):
            for name, runs, keys, size in (
                ("watch", [run], (), (110, 34)),
                ("watch-time", [run], ("2",), (110, 24)),
                ("watch-workers", [run], ("3",), (80, 20)),
                ("watch-two-runs", [run, other], ("x",), (110, 34)),
                ("watch-narrow", [run], (), (40, 15)),
            ):
                asyncio.run(_draw(runs, keys, size, IMAGES / f"{name}.svg"))


if __name__ == "__main__":
    main()
