"""The weights of a run or of a checkpoint, as the start of another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.checkpoint.save import write
from resnet_dist.errors import CheckpointError, RecipeError
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe
from resnet_dist.training import initial_weights


def weights(seed: int) -> dict[str, Tensor]:
    return build_model(ModelRecipe(name="resnet8", num_classes=10), seed).state_dict()


def save(run: Path, step: int, *, average: bool = False) -> Path:
    """Checkpoint `step` has the weights of seed `step`, and the average those of seed `step` + 100."""
    ema = {name: t for name, t in weights(step + 100).items() if t.is_floating_point()} if average else None
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    return write(run / "checkpoints", CheckpointContent(step, weights(step), {}, {"step": step}, ema))


def assert_equal(found: object, expected: dict[str, Tensor]) -> None:
    assert isinstance(found, dict)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_run_stands_for_its_newest_intact_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "run", step)
    newest = tmp_path / "run" / "checkpoints" / "step-00000003" / format.MODEL
    newest.write_bytes(newest.read_bytes()[:-1])
    chosen = initial_weights.chosen(str(tmp_path / "run"), 0, 1)
    assert chosen == str(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert_equal(initial_weights.read(chosen), weights(2))
    assert caplog.messages[-1] == f"model.weights: starts with the weights in {chosen}"


def test_a_checkpoint_stands_for_itself(tmp_path: Path) -> None:
    folders = [save(tmp_path / "run", step) for step in (1, 2)]
    chosen = initial_weights.chosen(str(folders[0]), 0, 1)
    assert chosen == str(folders[0])
    assert_equal(initial_weights.read(chosen), weights(1))


def test_the_moving_average_is_preferred(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "run", 1, average=True)
    found = initial_weights.read(initial_weights.chosen(str(tmp_path / "run"), 0, 1))
    counters = {name: tensor for name, tensor in weights(1).items() if not tensor.is_floating_point()}
    assert_equal(found, weights(101) | counters)
    assert caplog.messages == [f"model.weights: starts with the moving average of the weights in {folder}"]


def test_a_file_stands_for_itself_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(weights(1), tmp_path / "w.pt")
    assert initial_weights.chosen(str(tmp_path / "w.pt"), 0, 1) == str(tmp_path / "w.pt")
    assert_equal(initial_weights.read(str(tmp_path / "w.pt")), weights(1))
    assert not caplog.messages


@pytest.mark.parametrize("folder", ["nothing", "run"])
def test_a_folder_without_checkpoints_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"neither a checkpoint nor a run directory .*Allowed: a file, RUN, or RUN"):
        initial_weights.chosen(str(tmp_path / folder), 0, 1)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 1)
    content = bytearray((folder / format.MODEL).read_bytes())
    content[-1] ^= 1
    (folder / format.MODEL).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is intact"):
        initial_weights.chosen(str(tmp_path / "run"), 0, 1)
    with pytest.raises(CheckpointError, match="was altered"):
        initial_weights.read(initial_weights.chosen(str(folder), 0, 1))
    (folder / format.MANIFEST).write_text(json.dumps({"format": 1}))
    with pytest.raises(CheckpointError):
        initial_weights.chosen(str(folder), 0, 1)
