"""The Python API: start a run, or read one from its directory."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config import load as configs
from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig
from launcher.errors import LauncherError, UsageError
from launcher.formatting import first_line
from launcher.inference.accuracy import Accuracy
from launcher.inference.trained import Saved, saved
from launcher.run.directory import RunDirectory
from launcher.run.named import find_here
from launcher.run.progress import checkpoint_folders
from launcher.run.recorded import newest_recipe, recipe_of
from resnet_dist.checkpoint import format as checkpoint_format
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.errors import TrainingError
from resnet_dist.input_files import printable
from resnet_dist.telemetry.json_lines import Record
from resnet_dist.telemetry.metrics_file import read_metrics

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import nn

    from launcher.inference.predict import Predicted
    from resnet_dist.inference import Weights

# The columns that a table of records has also if there are no records.
_COLUMNS = {
    "train": ("step", "epoch", "loss", "learning_rate"),
    "eval": ("step", "epoch", "top1", "top5", "loss", "num_samples"),
    "event": ("step", "event", "detail"),
}


@dataclass(frozen=True)
class Run:
    """A run, read from its directory each time that an attribute is used: a run that goes on can be followed.

    A notebook shows it as a short table. For example, in a folder with a finished run:

        run = launcher.load_run("~/resnet_runs/digits-cpu")
        run.evaluations.plot(x="epoch", y="top1")
        print(run.best.top1, run.best.label)
        model = run.model()                              # a torch.nn.Module in evaluation mode
        run.export("onnx", "digits.onnx")
    """

    path: Path

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return configs.load(self._directory.config, recorded=True)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self._directory.is_finished()

    @property
    def summary(self) -> dict[str, Any] | None:
        """top1, top5, loss, num_samples, step, time_s of a finished run; else None.

        top1, top5 and loss are None if the last evaluation was not finite; top5 also with fewer than 6 classes.
        """
        return self._directory.summary()

    @property
    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl as a table, one row per record: kind, step, epoch, loss, learning_rate, ... (needs pandas).

        Numbers that are not finite, null in metrics.jsonl, are NaN. `train`, `evaluations` and `events` are the records
        of one kind, with only their columns.
        """
        return _pandas().DataFrame(self._records())

    @property
    def train(self) -> pandas.DataFrame:
        """The records of training steps: step, epoch, loss, learning_rate, images_per_s, ... (needs pandas)."""
        return self._table("train")

    @property
    def evaluations(self) -> pandas.DataFrame:
        """The evaluations: step, epoch, top1, top5, loss, num_samples, weights, ... (needs pandas).

        The user's metrics (evaluate.metrics) are columns, too. Numbers that are not finite are NaN.
        """
        return self._table("eval")

    @property
    def events(self) -> pandas.DataFrame:
        """The events: step, event, detail (a dict) (needs pandas)."""
        return self._table("event")

    @property
    def best(self) -> Accuracy | None:
        """The evaluation with the highest top-1, of equals the first: top1, top5, loss, num_samples, step, label.

        `label` says what top1 was measured on and with. None before the first evaluation. Its checkpoint may be deleted
        already (checkpoint.keep): `checkpoints` has those that are there.
        """
        found = newest_recipe(self._directory)
        recipe = None if found is None else recipe_of(found[1])
        if recipe is None:
            raise UsageError(f"{self.path}: has no recipe that this version can read. Allowed: a run of this version")
        records = (record for record in self._records() if record["kind"] == "eval")
        known = [one for record in records if (one := Accuracy.of(record, record["step"], recipe)) is not None]
        return max(known, key=lambda one: one.top1, default=None)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The folders of the checkpoints by their completed steps, ascending."""
        found = {checkpoint_format.step_of(folder.name): folder for folder in checkpoint_folders(self._directory)}
        return {step: found[step] for step in sorted(step for step in found if step is not None)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output of the model: the folders of the classes in the data set."""
        from launcher.inference.names import class_names, for_outputs

        checkpoint = self._saved(None)
        state = checkpoint_format.read_json(checkpoint.checkpoint / checkpoint_format.STATE)
        return for_outputs(class_names(checkpoint, state.get("classes", ())), checkpoint.recipe.model.num_classes)

    def model(self, weights: Weights = "auto", step: int | None = None) -> nn.Module:
        """The trained network, on the CPU and in evaluation mode: images [n, 3, height, width] -> logits [n, classes].

        `weights`: "ema" is the moving average of the weights, "model" are those of the step, "auto" is the average if
        the run keeps one. `step` is one of `checkpoints`; by default the newest intact one. Images are prepared as
        `data.resolution`, `data.mean` and the other keys of `data` say: `predict` does so.

        Raises UsageError for a step or an average that the run does not have, CheckpointError for a damaged checkpoint.
        """
        from launcher.inference.evaluate import model_of

        return model_of(self._saved(step), weights).model

    def predict(
        self, images: Sequence[str | os.PathLike[str]], top: int = 5, weights: Weights = "auto", step: int | None = None
    ) -> list[Predicted]:
        """The `top` likeliest classes of image files, as `launcher predict` gives them; for weights, see `model`.

        Each result has path, guesses (each with name and probability), and the problem of a file that is no image.
        """
        from launcher.inference.evaluate import model_of
        from launcher.inference.predict import predict

        chosen = self._saved(step)
        return list(predict(chosen, model_of(chosen, weights), [os.fspath(image) for image in images], top))

    def export(
        self, format: str, output: str | os.PathLike[str], weights: Weights = "auto", step: int | None = None
    ) -> Path:
        """Write the model as a file for another program, as `launcher export` does, and return its path.

        `format`: torchvision, timm, safetensors, torch.export or onnx. OUTPUT.json has the classes and the input,
        OUTPUT.md is a model card. The file is checked in its target first. Raises UsageError for a format that does not
        fit, a missing package, or an `output` that exists; for weights and step, see `model`.
        """
        from launcher.inference.export.exporting import export

        return export(self._saved(step), format, Path(output).expanduser().absolute(), weights).file

    def plot(self) -> Figure:
        """The loss (training and val) and the top-1 accuracy over the epochs, as a matplotlib figure.

        `run.plot().savefig("curves.png")` writes it. Raises UsageError if matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise UsageError("Run.plot needs matplotlib: pip install 'resnet-launcher[figures]'") from None
        figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for kind, label in (("train", "training"), ("eval", "val")):
            losses.plot(*self._curve(kind, "loss"), label=label, marker="o" if kind == "eval" else "")
        losses.set(xlabel="epoch", ylabel="loss", title=self.path.name)
        losses.legend()
        epochs, top1 = self._curve("eval", "top1")
        accuracies.plot(epochs, [100 * value for value in top1], color="C1", marker="o")
        best = self.best
        title = "no evaluation yet" if best is None else f"best {best.top1:.2%} at step {best.step:,}"
        accuracies.set(xlabel="epoch", ylabel="top-1 on val (%)", title=title)
        pyplot.close(figure)  # a notebook would show it twice
        return figure

    def _curve(self, kind: str, key: str) -> tuple[list[float], list[float]]:
        """The epochs, and the numbers `key` of the records of a kind that have it."""
        records = [
            one for one in self._records() if one["kind"] == kind and None not in (one.get("epoch"), one.get(key))
        ]
        return [one["epoch"] for one in records], [one[key] for one in records]

    def _table(self, kind: str) -> pandas.DataFrame:
        """The records of a kind with only their columns."""
        rows = []
        for record in self._records():
            if record["kind"] == kind:
                row = {**record, **record.get("metrics", {})}
                rows.append({key: math.nan if value is None else value for key, value in row.items()})
        table = _pandas().DataFrame(rows) if rows else _pandas().DataFrame(columns=list(_COLUMNS[kind]))
        return table.drop(columns=["kind", "metrics"], errors="ignore")

    def _records(self) -> list[Record]:
        """The records of metrics.jsonl; none before the first. Raises StorageError."""
        file = self._directory.metrics
        with storage_errors(file):
            return read_metrics(file) if file.exists() else []

    def _saved(self, step: int | None) -> Saved:
        """The checkpoint after `step`, or the newest intact one."""
        if step is None:
            return saved(self.path)
        found = self.checkpoints
        if step not in found:
            raise UsageError(f"{self.path}: has no checkpoint of step {step}. Allowed: {', '.join(map(str, found))}")
        return saved(found[step])

    def _repr_html_(self) -> str:
        """What a notebook shows; also of a run directory that another version wrote, or that is damaged."""
        try:
            best, summary = self.best, self.summary or {}
            top1 = "no evaluation yet" if best is None else f"{best.top1:.2%} at step {best.step:,}: {best.label}"
            state = f"finished, {summary.get('step', 0):,} steps" if self.finished else "not finished"
        except (LauncherError, TrainingError) as error:
            top1 = state = f"cannot be read: {first_line(str(error))}"
        kept = ", ".join(f"step {step:,}" for step in self.checkpoints) or "none"
        rows = {"run": str(self.path), "state": state, "best top-1": top1, "checkpoints": kept}
        cells = "".join(
            f"<tr><th>{key}</th><td>{html.escape(printable(value))}</td></tr>" for key, value in rows.items()
        )
        return f"<table>{cells}</table>"

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory.at(self.path)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UsageError("Run.metrics needs pandas: pip install 'resnet-launcher[notebook]'") from None
    return pandas


def fit(config: str | os.PathLike[str] | Mapping[str, Any], **overrides: Any) -> Run:
    """Train `config`, a YAML file or a mapping with the same keys, and return the run.

    `overrides` are top-level keys; a mapping for a section changes only the keys it holds:
    `fit("configs/digits_cpu.yaml", place="local", batch={"size": 64})`. Raises the error that ended the run.
    """
    from launcher.train import train

    flat = flatten(overrides)
    if isinstance(config, Mapping):
        resolved = configs.from_mapping(config, Path.cwd(), flat)
    else:
        resolved = configs.load(config, flat)
    _, directory = train(resolved)
    return Run(directory.path)


def load_run(path: str | os.PathLike[str]) -> Run:
    """The run on this machine that `path` names: its directory, its name, or its config.

    Names are looked for in the current folder, ~/resnet_runs and ~/resnet_demo/runs. Raises UsageError if there is no
    run, ConfigError for a wrong config.
    """
    return Run(find_here(os.fspath(path)).path)
