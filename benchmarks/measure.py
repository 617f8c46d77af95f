"""Time peers in turns in one process, so that other load on the machine affects them equally.

A turn is a few steps of one peer. Each peer has one turn per round; every other round is in reverse order. Ratios are
computed round by round, from turns close to each other; their median and quartiles are reported.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

RESULTS = Path(__file__).parent / "results"
FAILED = "failed: "  # begins the reason for the absence of a peer that raised an error
UNKNOWN_CAUSE = "not known"
_SPEEDS = ("speed", "cpu")  # measures of which more is better
_PACKAGES = ("torch", "torchvision", "timm", "deepspeed", "numpy")

Run = Callable[[int], object]  # runs this number of steps, or enqueues them on the device


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of the rounds' ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def order(peers: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, peer) of all turns: each peer once per round, every other round in reverse order.

    >>> list(order(["a", "b"], rounds=2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            yield number, peer


def interleave(
    peers: Mapping[str, Run],
    *,
    rounds: int,
    steps: int,
    warm_up: int = 1,
    wait: Callable[[], object] = lambda: None,
    lead: int = 0,
) -> dict[str, list[float]]:
    """Seconds per step of each peer, one number per round.

    steps       per turn
    warm_up     rounds that do not count, before the others
    wait        waits for the device or for the other workers
    lead        steps at the start of a turn that do not count: of a peer that works ahead during the others' turns
    """
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    for number, peer in order(list(peers), warm_up + rounds):
        if lead:
            peers[peer](lead)
        wait()
        started = time.perf_counter()
        peers[peer](steps)
        wait()
        if number >= warm_up:
            seconds[peer].append((time.perf_counter() - started) / steps)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The ratio of two peers' times, computed round by round.

    >>> ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])
    Ratio(median=3.0, low=2.5, high=3.5)
    """
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    if len(each) == 1:
        return Ratio(each[0], each[0], each[0])
    low, median, high = statistics.quantiles(each, n=4, method="inclusive")
    return Ratio(median, low, high)


@dataclass(frozen=True)
class Row:
    """One line of a result: ours compared with a peer.

    A ratio is ours / the peer's, of times or of speeds. The goal is a maximum for times and a minimum for speeds.
    `cause` says why the goal is missed, as profiling has shown; it is shown only if it is missed.
    """

    what: str
    peer: str
    measure: Literal["time", "speed", "cpu", "bytes", "operations"]
    ours: float  # seconds per step, images/s, images per CPU second, bytes or operations per step
    theirs: float
    ratio: Ratio
    goal: float | None = None
    note: str = ""
    cause: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.ratio.median >= self.goal if self.measure in _SPEEDS else self.ratio.median <= self.goal

    def record(self) -> dict[str, Any]:
        """As JSON: without a cause unless the goal is missed."""
        cause = (self.cause or UNKNOWN_CAUSE) if self.reached is False else ""
        return {**asdict(self), "cause": cause, "reached": self.reached}


def time_row(
    what: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    goal: float | None = None,
    note: str = "",
    cause: str = "",
) -> Row:
    """A row with seconds per step."""
    medians = statistics.median(ours), statistics.median(theirs)
    return Row(what, peer, "time", *medians, ratio(ours, theirs), goal, note, cause)


def speed_row(
    what: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    num_images: int,
    goal: float | None = None,
    note: str = "",
    measure: Literal["speed", "cpu"] = "speed",
    cause: str = "",
) -> Row:
    """A row with images per second, or per CPU second, for steps of `num_images` images."""
    speeds = num_images / statistics.median(ours), num_images / statistics.median(theirs)
    return Row(what, peer, measure, *speeds, ratio(theirs, ours), goal, note, cause)


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Hardware and versions."""
    gpu = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None
    return {
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        **{package: _version(package) for package in _PACKAGES},
    }


def write(name: str, content: Mapping[str, Any], device: torch.device | None = None, folder: Path = RESULTS) -> Path:
    """Write results/NAME.json: `content` with its origin."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**origin(device), **content}, indent=2) + "\n")
    return file


def origin(device: torch.device | None = None) -> dict[str, Any]:
    """The time, the commit and the machine."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {**machine(device), "load": list(os.getloadavg())},
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first is text, the others are numbers."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [text.ljust(width) if column == 0 else text.rjust(width) for column, (text, width) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in (cells[0], rule, *cells[1:]))
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows, each as `Row.record` returns it."""
    return table(("what", "peer", "ours", "theirs", "ratio (quartiles)", "goal", "reached"), list(map(_cells, rows)))


def notes_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Under a table: what rows note, and the causes of the goals that are missed."""
    for row in rows:
        if row["note"]:
            yield f"- {row['what']}: {row['note']}"
        if row["reached"] is False:
            is_noise = row["ratio"]["low"] <= row["goal"] <= row["ratio"]["high"]
            cause = "noise: the goal lies between the quartiles" if is_noise else row.get("cause") or UNKNOWN_CAUSE
            yield f"- {row['what']} / {row['peer']}: missed. Cause: {cause}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    measure = row["measure"]
    formats = {"time": _time, "speed": _speed, "cpu": _per_cpu, "bytes": _bytes, "operations": "{:,.0f}".format}
    value: Callable[[float], str] = formats[measure]
    goal = "reported" if row["goal"] is None else f"{'≥' if measure in _SPEEDS else '≤'} {row['goal']:g}"
    reached = {None: "", True: "yes", False: "missed"}[row["reached"]]
    spread = Ratio(**row["ratio"])
    shown = f"{spread.median:.3f}" if spread.low == spread.high else str(spread)
    return [row["what"], row["peer"], value(row["ours"]), value(row["theirs"]), shown, goal, reached]


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:,.1f} images/s"


def _per_cpu(images_per_s: float) -> str:
    return f"{images_per_s:,.0f} images/CPU s"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, and whether files other than results have changed since; None outside a git repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    status = ["status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, *status], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with changes" if changes.stdout.strip() else "")
