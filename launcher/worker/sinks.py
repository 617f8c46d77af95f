"""The sinks of a run on rank 0: metrics.jsonl, those that the config asks for, and the user's own."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import UserCodeError
from launcher.recovery.portable import message_of, traceback_of
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs, RunDirectory
from launcher.run.environment import environment
from launcher.worker.logged_warnings import LoggedWarnings
from launcher.worker.supervisor import FileSupervisor
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import function_for
from resnet_dist.recipe.schema import plain
from resnet_dist.telemetry.metrics_file import EARLY_EVENTS, MetricsFile, Sink
from resnet_dist.telemetry.prometheus import PrometheusFile
from resnet_dist.telemetry.sinks import Several, Unfailing
from resnet_dist.telemetry.tensorboard import Hyperparameter, TensorBoard
from resnet_dist.telemetry.weights_and_biases import WeightsAndBiases
from resnet_dist.training.sample_images import Captioned, ShowImages

# What people compare runs by: the columns of TensorBoard's table of runs.
_HYPERPARAMETERS = (
    *("model.name", "batch.size", "duration", "seed", "precision"),
    *("optimizer.name", "optimizer.momentum", "optimizer.weight_decay"),
    *("schedule.peak_lr", "schedule.base_lr", "schedule.warmup", "schedule.decay"),
    *("regularization.label_smoothing", "regularization.mixup", "ema.decay", "data.resolution"),
)
SINK_FORM = "a function that returns an object with the methods write(record) and close()"


class RunSink:
    """The sink of rank 0: passes records on to the others and to the supervisor.

    It adds logged warnings, and the host of a straggler. The first record begins the attempt.
    """

    def __init__(self, sink: Sink, supervisor: FileSupervisor, logs: AttemptLogs) -> None:
        self._sink, self._supervisor, self._logs = sink, supervisor, logs
        self._warnings = LoggedWarnings()
        self._step: int | None = None  # of the last record

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record, and the warnings since the one before."""
        if record.get("event") == "straggler":
            beat = heartbeats.read(self._logs).get(record["detail"]["rank"])
            node = {"host": beat.host, "node_id": beat.node_id} if beat else {"host": None, "node_id": None}
            record = {**record, "detail": {**record["detail"], **node}}
        if record.get("event") not in EARLY_EVENTS:  # they come before the first record
            self._step = record["step"]
        self._pass_on(record)
        self._write_warnings()

    def close(self) -> None:
        """Write the last warnings, and close all sinks."""
        try:
            self._write_warnings()
        finally:  # a sink of the user may raise
            self._warnings.close()
            self._sink.close()

    def _pass_on(self, record: Mapping[str, Any]) -> None:
        self._supervisor.metrics(record)
        self._sink.write(record)

    def _write_warnings(self) -> None:
        """Write the warnings since the last record; not before the first record, which begins the attempt."""
        if self._step is not None:
            for text in self._warnings.take():
                self._pass_on({"kind": "event", "step": self._step, "event": "warning", "detail": {"text": text}})


class UsersSink:
    """The sink that a function of the user returned. It gets copies of records; its errors become UserCodeError."""

    def __init__(self, reference: str, directory: Path, config: Mapping[str, Any]) -> None:
        """Raises RecipeError if `reference` cannot be loaded or called, or returns something else than a sink."""
        self._reference = reference
        function = function_for("log.sinks", reference, directory=directory, config=config)
        self._sink = self._called(function, directory=directory, config=copy.deepcopy(dict(config)))
        missing = [name for name in ("write", "close") if not callable(getattr(self._sink, name, None))]
        if missing:
            found = f"{reference!r} returned an object of type {type(self._sink).__name__} without {missing[0]}"
            raise RecipeError("log.sinks", found, SINK_FORM)

    def write(self, record: Mapping[str, Any]) -> None:
        """Call the user's `write` with a copy of `record`."""
        self._called(self._sink.write, copy.deepcopy(dict(record)))

    def close(self) -> None:
        """Call the user's `close`."""
        self._called(self._sink.close)

    def _called(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:  # its message must not be taken for one of the network
            raised = UserCodeError(self._reference, f"{type(error).__name__}: {message_of(error)}")
            raised.add_note(traceback_of(error))
            raise raised from error


def sink_of(
    config: RunConfig, run: RunDirectory, attempt: int, supervisor: FileSupervisor
) -> tuple[Sink, ShowImages | None]:
    """The sink of rank 0, and a function that shows images, if there is a place for them.

    Also records the environment, for the run and for the attempt.

    Raises StorageError if metrics.jsonl cannot be opened, RecipeError for a sink of the user that is none, and
    MissingPackage without a package that a sink needs.
    """
    facts, logs = environment(), run.logs(attempt)
    run.write_environment(facts)
    with storage_errors(logs.environment):
        logs.environment.write_text(json.dumps(facts))
    settings, content = config.log, plain(config)
    # The user's functions first: what they raise leaves no other sink open.
    users = [UsersSink(reference, run.path, content) for reference in settings.sinks]
    sinks: list[Sink] = []
    show: ShowImages | None = None
    if settings.tensorboard:
        board = TensorBoard(run.tensorboard, configs.to_yaml(config), hyperparameters(content))
        unfailing = Unfailing("TensorBoard", board)
        sinks.append(unfailing)
        show = functools.partial(_show, unfailing, board)
    if settings.prometheus is not None:
        sinks.append(Unfailing("log.prometheus", PrometheusFile(Path(settings.prometheus), config.name, attempt)))
    if settings.wandb is not None:
        sinks.append(WeightsAndBiases(settings.wandb, config.name, run.wandb, content))
    return RunSink(Several([MetricsFile(run.metrics), *sinks, *users]), supervisor, logs), show


def _show(unfailing: Unfailing, board: TensorBoard, step: int, images: Sequence[Captioned]) -> None:
    unfailing.attempt(lambda: board.images(step, images))


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Hyperparameter]:
    """The values of a plain config by which people compare runs, by dotted key; without those that are null."""
    found: dict[str, Hyperparameter] = {}
    for key in _HYPERPARAMETERS:
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, bool | int | float | str):
            found[key] = value
    return found
