"""A text file with a run's newest numbers, for the textfile collector of Prometheus's node exporter.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, 0.0.4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_TIME_LEFT = "resnet_time_left_seconds"  # only while it trains
_STATES = ("training", "finished", "stopped", "failed")


class _Metric(NamedTuple):
    name: str
    help: str
    kind: str  # of the record that has it
    key: str


_METRICS = (
    _Metric("resnet_step", "Completed optimizer steps.", "train", "step"),
    _Metric("resnet_epoch", "Position in the training data, in epochs.", "train", "epoch"),
    _Metric("resnet_loss", "Training loss of the newest step.", "train", "loss"),
    _Metric("resnet_learning_rate", "Learning rate of the newest step.", "train", "learning_rate"),
    _Metric("resnet_images_per_second", "Images per second over all workers.", "train", "images_per_s"),
    _Metric("resnet_step_seconds", "Mean time of a step.", "train", "step_time_s"),
    _Metric("resnet_data_wait_seconds", "Mean time per step that training waits for images.", "train", "data_wait_s"),
    _Metric(_TIME_LEFT, "Expected time until the last step.", "train", "time_left_s"),
    _Metric("resnet_memory_bytes", "Host memory of the first worker.", "train", "memory_bytes"),
    _Metric("resnet_gpu_memory_bytes", "Largest GPU memory of the first worker so far.", "train", "gpu_memory_bytes"),
    _Metric("resnet_evaluation_step", "Step of the newest evaluation.", "eval", "step"),
    _Metric("resnet_evaluation_top1_ratio", "Top-1 accuracy of the newest evaluation, from 0 to 1.", "eval", "top1"),
    _Metric("resnet_evaluation_top5_ratio", "Top-5 accuracy of the newest evaluation, from 0 to 1.", "eval", "top5"),
    _Metric("resnet_evaluation_loss", "Loss of the newest evaluation.", "eval", "loss"),
)


class PrometheusFile:
    """A sink that replaces `file` after each train, eval and event record. It may raise OSError.

    `run` is the value of the label `run`, `attempt` the number of the run's attempt, from 1.
    """

    def __init__(self, file: Path, run: str, attempt: int) -> None:
        self._file, self._run, self._attempt = file, run, attempt
        self._values: dict[str, float] = {}
        self._state = "training"

    def write(self, record: Mapping[str, object]) -> None:
        """Take the numbers of a record, and replace the file."""
        kind, event = record["kind"], record.get("event")
        detail = record.get("detail")
        if event == "started" and isinstance(detail, Mapping):
            self._take("resnet_step", record["step"])
            self._take("resnet_planned_steps", detail.get("total_steps"))
        elif event in ("finished", "stopped"):
            self._state = str(event)
            self._take("resnet_step", record["step"])
        for metric in _METRICS:
            if kind == metric.kind:
                self._take(metric.name, record.get(metric.key))
        if kind != "layers":
            self._replace()

    def close(self) -> None:
        """Write the last state: an attempt that has neither finished nor stopped has failed."""
        if self._state == "training":
            self._state = "failed"
            self._replace()

    def _take(self, name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._values[name] = value
        elif name in self._values:  # a null in place of a number that is not finite
            self._values[name] = math.nan

    def _replace(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".{self._file.name}.new")  # the collector reads names that end with .prom
        temporary.write_text("".join(self._lines()), encoding="utf-8")
        temporary.replace(self._file)  # at once: a reader finds the old file or the new one

    def _lines(self) -> Iterator[str]:
        planned = ("resnet_planned_steps", "Steps of the whole run.")
        for name, text in [planned, *((metric.name, metric.help) for metric in _METRICS)]:
            if name in self._values and (name != _TIME_LEFT or self._state == "training"):
                yield from _family(name, text, "gauge", [({"run": self._run}, self._values[name])])
        attempts = [({"run": self._run}, float(self._attempt))]
        yield from _family("resnet_attempts_total", "Attempts of the run, with this one.", "counter", attempts)
        states = [({"run": self._run, "state": state}, float(state == self._state)) for state in _STATES]
        yield from _family("resnet_state", "1 for the state that the run is in, 0 for others.", "gauge", states)
        now = [({"run": self._run}, time.time())]
        yield from _family("resnet_last_update_timestamp_seconds", "Time of this file's numbers.", "gauge", now)


def _family(name: str, text: str, kind: str, samples: list[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        yield f"{name}{{{inside}}} {_number(value)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
