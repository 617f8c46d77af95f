"""`launcher evaluate RUN|CHECKPOINT`: accuracy, calibration, confusions and worst mistakes of a trained model.

Exit code 0; 65 for a damaged checkpoint or data, a data set without a class of the model, and a model whose outputs are
not finite; 78 if the user's code that the model needs cannot be loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.commands import checkpoint_target
from launcher.commands.fitted import print_fitted
from launcher.config.schema import leads, under_torchrun
from launcher.errors import UsageError
from launcher.exit_codes import ExitCode
from launcher.prepare.progress import Progress
from resnet_dist.object_stores import is_address

if TYPE_CHECKING:
    from launcher.inference.evaluate import Evaluated, Request
    from launcher.inference.trained import Saved

_MOST_WORKERS = 128  # processes of one machine


def add_parser(verbs: Any) -> None:
    """RUN|CHECKPOINT [--data ROOT] [--resolution N] [--flip] [--workers N] [--output FOLDER] [--json] ..."""
    verb = verbs.add_parser("evaluate", help="accuracy, calibration, confusions and worst mistakes of a trained model")
    checkpoint_target.add_arguments(verb)
    verb.add_argument("--data", metavar="ROOT", help="another data set, with classes of the same names")
    verb.add_argument("--resolution", metavar="N", type=int, help="height and width of the input (default: the run's)")
    verb.add_argument("--flip", action="store_true", help="average the probabilities with those of the mirror images")
    verb.add_argument("--workers", metavar="N", type=int, help="processes (default: one for each GPU, or one)")
    verb.add_argument("--output", metavar="FOLDER", type=Path, help="for the results as JSON, CSV and pictures")
    verb.add_argument("--json", action="store_true", help="print JSON instead of text")
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Evaluate, and print or write the results."""
    _check(given)
    saved = checkpoint_target.find(given)
    from launcher.inference.evaluate import Request

    data = given.data
    if data is not None and not is_address(data):
        data = os.path.abspath(Path(data).expanduser())  # noqa: PTH100 - resolve() would follow links
    request = Request(data=data, resolution=given.resolution, flip=given.flip, weights=given.weights)
    found = _evaluated(saved, request, given.workers)
    if not leads():
        return ExitCode.OK
    from launcher.inference import results

    made = results.Results.of(found)
    content = results.plain(made)
    if given.output is not None:
        from launcher.commands import evaluate_files

        notes = evaluate_files.write(given.output.expanduser(), made, content)
    if given.json:
        print(json.dumps(content, indent=2))
    else:
        print_fitted(results.lines(made))
        print("\n".join(["", *notes]) if given.output is not None else "\n--output FOLDER writes all results there")
    if (num := found.evaluation.num_nonfinite) > 0:
        problem = f"the outputs of the model are not finite for {num:,} of {found.evaluation.num_samples:,} images"
        print(f"error: {saved.checkpoint}: {problem}", file=sys.stderr, flush=True)
        return ExitCode.DATA
    return ExitCode.OK


def _check(given: argparse.Namespace) -> None:
    if given.workers is not None and not 1 <= given.workers <= _MOST_WORKERS:
        raise UsageError(f"--workers {given.workers}: Allowed: a whole number from 1 to {_MOST_WORKERS}")
    if given.workers is not None and under_torchrun():
        raise UsageError("--workers: torchrun has started the workers. Allowed: without --workers")
    if given.output is not None and leads():
        _make_folder(given.output.expanduser())


def _make_folder(folder: Path) -> None:
    """Create the folder for the results before the evaluation, which may take hours."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be created: {error.strerror}"
        raise UsageError(f"--output {folder}: {problem}. Allowed: a folder that you can write to") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {folder}: no permission to write. Allowed: a folder that you can write to")


def _evaluated(saved: Saved, request: Request, num_workers: int | None) -> Evaluated:
    """The evaluation, by torchrun's processes, by new ones, or by this one."""
    import torch

    from launcher.inference import workers

    progress = ShownProgress()
    if under_torchrun():
        return workers.evaluate_under_torchrun(saved, request, progress)
    num_gpus = torch.cuda.device_count()
    if num_workers is not None and 0 < num_gpus < num_workers:
        raise UsageError(f"--workers {num_workers}: this machine has {num_gpus} GPUs. Allowed: 1 to {num_gpus}")
    return workers.evaluate_with(saved, request, num_workers or max(1, num_gpus), progress)


class ShownProgress:
    """Shows on standard error how many images are done, and how long the others will take."""

    def __init__(self) -> None:
        self._task = ""
        self._line: Progress | None = None

    def __call__(self, task: str, done: int, total: int) -> None:
        """`done` of `total` images of a task are done; a task of another name begins a new line."""
        if task != self._task or self._line is None:
            self._task, self._line = task, Progress(task, total, "images")
            self._line.before(0)
        self._line.update(done)
        if done == total:
            self._line.end()
