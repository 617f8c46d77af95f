"""The input pipeline on a CPU: ours against those of other projects, the index, shards, the order, and a whole step.

    python -m benchmarks.input [--rounds N] [--only WORD] [--python PYTHON]

writes benchmarks/results/input.json and prints a table. Each pipeline runs in a process of its own
(benchmarks/input_peers.py); they take turns. PYTHON is the interpreter of an environment with webdataset, MosaicML
streaming and SPDL (`make bench` creates it): they need other versions of packages. CPU seconds count all threads and
processes. "Again" rows compare a pipeline with a second process of itself: they show the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.input_images import photo_folder
from benchmarks.measure import Row, notes_of, order, speed_row, table_of, time_row, write
from resnet_dist.data import Stream, index_of
from resnet_dist.data.order import order_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.schema import DataRecipe

NUM_PHOTOS, TURN = 1_200, 512  # images of the data set, and of a peer's turn

# what, peer, goal
PIPELINES: tuple[tuple[str, str, float | None], ...] = (
    ("ours again", "ours", None),
    ("DALI native again", "DALI native", None),
    ("ours", "DALI native", 1.8),
    ("ours", "torchvision, PIL", 2.6),
    ("ours", "torchvision, v2", 1.9),
    ("ours", "timm", 2.5),
    ("ours", "SPDL", 1.2),
    ("ours, packed shards", "MosaicML streaming", 1.5),
    ("ours, packed shards", "webdataset", 1.5),
    ("ours through DALI", "DALI native", 0.98),
    ("ours, Pillow only", "ours", None),
    ("ours, color_jitter 0.4", "ours", None),
    ("ours, randaugment", "ours", None),
    ("ours, trivialaugment", "ours", None),
)
_OF_OTHERS = ("SPDL", "webdataset", "MosaicML streaming")
_NUM_LINKS = 100_000
_MILLION = 1_281_167  # ImageNet's training images
_STEP_SETTING = {
    "model.name": "resnet18",
    "data.resolution": 64,
    "batch.size": 64,
    "workers": 2,
    "duration": "12 steps",
}


_DECODER = (
    "most of the time of an image is that of its decoder, which decodes the Huffman code of all blocks, also of those"
    " outside the crop; the peers use the same library (libjpeg-turbo)"
)


def pipelines(folder: Path, rounds: int, python: str | None, absent: dict[str, str]) -> Iterator[Row]:
    """Images per CPU second of each pipeline against its peer; fills `absent` with those that do not run here."""
    peers: dict[str, _Peer] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable((what, peer) for what, peer, _ in PIPELINES)):
        if name in _OF_OTHERS and python is None:
            absent[name] = "no --python with its package"
            continue
        peer = _Peer(name, folder, python if name in _OF_OTHERS else None)
        try:
            peer.run(TURN)  # warm-up
            peers[name] = peer
        except _EndedError as error:
            absent[name] = str(error)
    spent: dict[str, list[float]] = {name: [] for name in peers}
    for _, name in order(list(peers), rounds):
        spent[name].append(peers[name].run(TURN))
    for peer in peers.values():
        peer.close()
    for what, other, goal in PIPELINES:
        if what in spent and other in spent:
            yield speed_row(what, other, spent[what], spent[other], 1, goal, measure="cpu", cause=_DECODER)


class _EndedError(Exception):
    """The process of a peer has ended."""


class _Peer:
    """A process of benchmarks/input_peers.py, with PYTHON or this interpreter."""

    def __init__(self, name: str, folder: Path, python: str | None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", "benchmarks.input_peers", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, num_images: int) -> float:
        """Decode at least so many images; returns CPU seconds per image. Raises _EndedError with its last line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{num_images}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().splitlines() or [f"it ended with {self._process.wait()}"]
            raise _EndedError(lines[-1][:200])
        spent = json.loads(line)
        return float(spent["cpu_s"] / spent["images"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def index_rows(folder: Path, rounds: int) -> Iterator[Row]:
    """The index of 100,000 files against opening each with Pillow."""
    with tempfile.TemporaryDirectory() as links:
        linked = _links(folder, Path(links), _NUM_LINKS)
        recipe = DataRecipe(root=links)

        def with_pillow() -> None:
            for path in linked:
                with Image.open(path) as image:
                    _ = image.size

        def only_reading() -> None:
            for folder_of_class in sorted((Path(links) / "train").iterdir()):
                for entry in os.scandir(folder_of_class):
                    entry.is_file()
            for path in linked:
                descriptor = os.open(path, os.O_RDONLY)
                os.read(descriptor, 4096)
                os.close(descriptor)

        runs: dict[str, Callable[[], object]] = {
            "ours": lambda: index_of(recipe, "train"),
            "Pillow": with_pillow,
            "reading": only_reading,
        }
        times = _cpu_times(runs, rounds)
        each_us = {name: statistics.median(seconds) / _NUM_LINKS * 1e6 for name, seconds in times.items()}
        yield speed_row(
            "index of 100,000 JPEG files",
            "PIL.Image.open",
            times["ours"],
            times["Pillow"],
            _NUM_LINKS,
            5.0,
            "symbolic links to the benchmark's files, in the file cache; ours lists the folders as well",
            measure="cpu",
            cause=f"to list the folders and read the start of each file takes {each_us['reading']:.1f} µs of CPU time a"
            f" file, without looking at it; the goal allows {each_us['Pillow'] / 5:.1f} µs",
        )


def _links(folder: Path, links: Path, num: int) -> list[str]:
    """Links to the images of `folder`, in class folders of train; one in val."""
    made: list[str] = []
    images = sorted((folder / "train").glob("*/*.jpg"))
    for number in range(num):
        image = images[number % len(images)]
        link = links / "train" / image.parent.name / f"{number:06d}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(image)
        made.append(str(link))
    return made


def _cpu_times(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _, name in order(list(runs), rounds):
        started = time.process_time()
        runs[name]()
        times[name].append(time.process_time() - started)
    return times


def shard_rows(folder: Path, rounds: int) -> Iterator[Row]:
    """Reading an epoch from packed shards against loose files, after the file cache was dropped."""
    sources = {
        "loose": DataRecipe(root=str(folder)),
        "packed": DataRecipe(root=str(folder / "packed"), source="packed", order="shards"),
    }
    indices = {name: index_of(recipe, "train") for name, recipe in sources.items()}
    opened = [0]
    sys.addaudithook(lambda event, _: opened.__setitem__(0, opened[0] + (event == "open")))
    times: dict[str, list[float]] = {name: [] for name in sources}
    opens = dict.fromkeys(sources, 0)
    for number, name in order(list(sources), rounds):
        _drop_cache(folder)
        index = indices[name]
        files, ids = files_of(index), order_of(index, sources[name], number).sample_ids(np.arange(len(index)))
        opened[0], started = 0, time.perf_counter()
        for sample_id in ids.tolist():
            files.read(sample_id)
        times[name].append(time.perf_counter() - started)
        opens[name] = opened[0]
    num = len(indices["packed"])
    note = f"order: shards; {opens['packed']} opens for {num:,} images, {opens['loose']:,} for loose files"
    yield speed_row("packed shards, cold cache", "loose files", times["packed"], times["loose"], num, 1.0, note)


def _drop_cache(folder: Path) -> None:
    """Drop the folder's files from the file cache and, as root, all inodes and directory entries."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def order_rows(rounds: int) -> Iterator[Row]:
    """The time to the first batch in the middle of epoch 80, and the memory of the order of 1e9 samples."""
    start, middle = np.arange(256), np.arange(256) + 80 * _MILLION + _MILLION // 2

    def seek(positions: Any) -> float:
        started = time.perf_counter()
        Stream(_MILLION, 0).sample_ids(positions)
        return time.perf_counter() - started

    for positions in (start, middle):
        seek(positions)
    in_middle, at_start = [], []
    for _ in range(max(rounds, 50)):
        in_middle.append(seek(middle))
        at_start.append(seek(start))
    yield time_row("256 ids of 1,281,167, middle of epoch 80", "the start", in_middle, at_start, 1.1)
    tracemalloc.start()
    Stream(10**9, 0).sample_ids(np.arange(256) + 10**9 // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    note = f"peak {peak / 2**20:.2f} MiB (goal: below 1 MiB); the peer is the array of a shuffled epoch"
    yield Row("256 ids of 1e9: memory", "np.random.permutation", "bytes", peak, 8e9, _exactly(peak / 8e9), None, note)


def _exactly(value: float) -> Any:
    from benchmarks.measure import Ratio

    return Ratio(value, value, value)


def step_rows(folder: Path, rounds: int) -> Iterator[Row]:
    """A step of ResNet-18 at 64 px on two workers: with decoded images against images that are made on the device."""
    with tempfile.TemporaryDirectory() as storage:
        runs: dict[str, dict[str, Any]] = {
            "images": {"data.root": str(folder)},
            "synthetic": {"data.source": "synthetic", "data.num_samples": NUM_PHOTOS},
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number, name in order(list(runs), rounds):
            times[name].append(_step_s(Path(storage), f"{name}-{number}", runs[name]))
        decode_s = statistics.median(_decode_times(folder)) * _STEP_SETTING["batch.size"]  # type: ignore[operator]
        compute_s = statistics.median(times["synthetic"]) * 2  # two workers, one thread each
        goal = 1 + decode_s / compute_s + 0.03
        note = f"decoding takes {decode_s * 1e3:.0f} ms of CPU time per step, computing {compute_s * 1e3:.0f} ms"
        what = "step with images, ResNet-18 at 64 px, 2 workers"
        yield time_row(what, "synthetic images", times["images"], times["synthetic"], round(goal, 3), note)


def _decode_times(folder: Path) -> list[float]:
    """CPU seconds per image of our pipeline at the step's resolution."""
    peer = _Peer("ours, 64 px", folder, None)
    found = [peer.run(TURN) for _ in range(4)][1:]
    peer.close()
    return found


def _step_s(storage: Path, name: str, keys: dict[str, Any]) -> float:
    """The median step time of a run without its first steps."""
    settings = {**_STEP_SETTING, **keys, "storage": storage, "name": name, "place": "local", "schema": 1}
    settings |= {
        "schedule.peak_lr": 0.01,
        "model.num_classes": 10,
        "log.every_steps": 1,
        "checkpoint.every": "1000 steps",
    }
    settings |= {"resources": {"gpus_per_worker": 0, "cpus_per_worker": 1}, "evaluate.every": "1000 steps"}
    config = storage / f"{name}.json"  # JSON is YAML
    config.write_text(json.dumps(_nested(settings)))
    subprocess.run([sys.executable, "-m", "launcher.train", str(config)], check=True, stdout=subprocess.DEVNULL)
    lines = (storage / name / "metrics.jsonl").read_text().splitlines()
    steps = [record["step_time_s"] for record in map(json.loads, lines) if record["kind"] == "train"]
    return float(statistics.median(steps[3:]))


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        owner = nested
        for section in sections:
            owner = owner.setdefault(section, {})
        owner[last] = str(value) if isinstance(value, Path) else value
    return nested


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the result; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="The input pipeline on a CPU.")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="pipelines, index, shards, order or step")
    parser.add_argument("--python", help="of an environment with the other projects' packages; default: without them")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "resnet-launcher-photos")
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args(arguments)
    folder = photo_folder(given.folder, NUM_PHOTOS)
    packed = [sys.executable, "-m", "launcher", "prepare", "pack", str(folder), str(folder / "packed")]
    if not (folder / "packed" / "card.json").exists():
        subprocess.run(packed, check=True, stdout=subprocess.DEVNULL)
    absent: dict[str, str] = {}
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "pipelines": lambda: pipelines(folder, given.rounds, given.python, absent),
        "index": lambda: index_rows(folder, 5),
        "shards": lambda: shard_rows(folder, given.rounds),
        "order": lambda: order_rows(given.rounds),
        "step": lambda: step_rows(folder, 5),
    }
    rows = [row.record() for name, part in parts.items() if given.only in name for row in part()]
    print(table_of(rows))
    print("\n".join(notes_of(rows)))
    if not given.no_write and not given.only:
        print(write("input", {"rounds": given.rounds, "turn": TURN, "rows": rows, "absent": absent}))
    return int(any(row["reached"] is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
