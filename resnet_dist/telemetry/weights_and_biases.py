"""Weights & Biases: the charts, the config and the result of a run, logged from a thread of its own.

Neither a server that does not answer nor an upload holds up training. W&B's own variables apply: WANDB_API_KEY,
WANDB_MODE=offline, WANDB_ENTITY, WANDB_BASE_URL. Without an account or a server, the run is logged offline.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from resnet_dist.errors import MissingPackage
from resnet_dist.telemetry.charts import points

log = logging.getLogger(__name__)

INIT_S = 30.0  # assumption: a server that answers at all does so in this time
CLOSE_S = 60.0  # for the rest to be uploaded at the end of a run; what remains can be uploaded with `wandb sync`
_MOST_WAITING = 10_000  # records while the server does not answer; newer ones are left out

_SHOWN = 300  # characters of an error

Item = Mapping[str, object] | None  # None: the end


class WeightsAndBiases:
    """A sink that logs to the project `project` under the name `run`.

    `folder` is W&B's own, and must be named wandb; the id in it makes later attempts continue the same run. Raises
    MissingPackage if wandb is not installed. Later problems are logged once.
    """

    def __init__(self, project: str, run: str, folder: Path, config: Mapping[str, Any]) -> None:
        assert folder.name == "wandb", folder  # W&B appends this name itself
        if importlib.util.find_spec("wandb") is None:
            raise MissingPackage("log.wandb", "wandb", "pip install 'resnet-launcher[wandb]'")
        self._project, self._name, self._folder, self._config = project, run, folder, dict(config)
        self._waiting: queue.Queue[Item] = queue.Queue(_MOST_WAITING)
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, object]) -> None:
        """Hand a record to the thread."""
        self._put(dict(record))

    def close(self) -> None:
        """Wait until everything is uploaded, but not for ever."""
        self._put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"the upload has not ended after {CLOSE_S:g} s; `wandb sync` can complete it")

    def _put(self, item: Item) -> None:
        if not self._thread.is_alive():  # it has failed
            return
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._warn(f"{_MOST_WAITING:,} records wait for the server: further ones are left out")

    def _run(self) -> None:
        try:
            run = self._begin_anyhow()
            last = run.step  # what the server has of earlier attempts is not logged again
            while (record := self._waiting.get()) is not None:
                last = self._log(run, record, last)
            run.finish()
        except Exception as error:
            self._warn(f"{_described(error)}. The run goes on without")

    def _begin_anyhow(self) -> Any:
        """A run of W&B; an offline one if there is no account or no server."""
        try:
            return self._begin(None)
        except Exception as error:
            files = self._folder / "offline-run-*"
            self._warn(f"{_described(error)}. It is logged offline: `wandb sync {files}` uploads it later")
            return self._begin("offline")

    def _begin(self, mode: Literal["offline"] | None) -> Any:
        hook = sys.excepthook
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))  # also: no question for an API key
        settings = wandb.Settings(
            silent=True,
            console="off",  # the output of this process stays as it is
            init_timeout=INIT_S,
            finish_timeout=CLOSE_S,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
        )
        run = wandb.init(
            project=self._project,
            name=self._name,
            id=self._id(),
            resume="allow",
            dir=self._folder.parent,
            config=self._config,
            mode=mode,  # None: as WANDB_MODE says
            settings=settings,
        )
        sys.excepthook = hook  # W&B has replaced it
        # An evaluation beside training is logged after later steps.
        run.define_metric("evaluation/step", hidden=True)
        run.define_metric("evaluation/*", step_metric="evaluation/step")
        return run

    def _id(self) -> str:
        """The id of this run in W&B: that of an earlier attempt, or a new one."""
        file = self._folder / "run-id"
        if file.exists():
            known = file.read_text(encoding="utf-8").strip()
            if known.isalnum():
                return known
        self._folder.mkdir(parents=True, exist_ok=True)
        new = secrets.token_hex(8)
        file.write_text(new, encoding="utf-8")
        return new

    def _log(self, run: Any, record: Mapping[str, object], last: int) -> int:
        """Log the numbers of a record; returns the last step that W&B has, which must not decrease."""
        step, numbers = record["step"], dict(points(record))
        assert isinstance(step, int)
        if record["kind"] == "eval":
            numbers["evaluation/step"] = step
        elif step < last:
            return last
        if numbers:
            last = max(step, last)
            run.log(numbers, step=last)
        return last

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning("Weights & Biases: %s", problem)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"
