"""TensorBoard: charts, the config as text, the hyperparameters with the result, and images of the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from resnet_dist.telemetry.charts import FINAL, points
from resnet_dist.telemetry.metrics_file import EARLY_EVENTS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

Hyperparameter = bool | str | float  # an int is a float here


class TensorBoard:
    """A sink that writes TensorBoard's event files. It may raise OSError.

    `config` is YAML. `hyperparameters` become columns of the table of runs, with top-1 of the last evaluation.
    """

    def __init__(
        self, folder: Path, config: str = "", hyperparameters: Mapping[str, Hyperparameter] | None = None
    ) -> None:
        self._folder, self._config, self._hyperparameters = folder, config, dict(hyperparameters or {})
        self._writer: SummaryWriter | None = None  # created with the first record, whose step it needs
        self._is_missing = False
        self._end: Any = None  # the summary that marks the end of the run

    def write(self, record: Mapping[str, object]) -> None:
        """Draw the numbers of a record."""
        if self._is_missing or record.get("event") in EARLY_EVENTS:  # "started" is the first record that is drawn
            return
        step = record["step"]
        assert isinstance(step, int)
        if self._writer is None:
            # Points of an earlier attempt after the step that this attempt continues from are hidden.
            self._writer = self._open(step + 1 if record.get("event") == "started" else None)
            if self._writer is None:
                return
            self._describe(step)
        for name, value in points(record):
            self._writer.add_scalar(name, value, step)
        if record.get("event") == "finished" and self._end is not None:
            self._add(self._end)

    def images(self, step: int, captioned: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Show images, uint8 [height, width, 3], each under its caption, once the first record was written."""
        if self._writer is not None:
            for caption, image in captioned:
                self._writer.add_image(f"images/{caption}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> SummaryWriter | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._is_missing = True
            log.warning("TensorBoard is not installed: metrics go to metrics.jsonl only (pip install tensorboard)")
            return None
        return SummaryWriter(str(self._folder), purge_step=purge_step)

    def _describe(self, step: int) -> None:
        """Write the config and the hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        assert self._writer is not None
        if self._config:
            self._writer.add_text("config", f"```yaml\n{self._config}\n```", step)
        if self._hyperparameters:
            # Not `add_hparams`, which would write them as another run, without the curves.
            experiment, start, self._end = hparams(self._hyperparameters, {FINAL: 0.0})
            self._add(experiment)
            self._add(start)

    def _add(self, summary: Any) -> None:
        assert self._writer is not None
        self._writer._get_file_writer().add_summary(summary)
