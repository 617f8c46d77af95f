"""Too little memory for a micro-batch: the run says how many would fit, or goes on with them by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Train = Callable[..., str]
Losses = Callable[[Path], dict[int, float]]

# A network that stands for a small GPU: it has room for a few images at a time, and fails as CUDA does beyond them.
SMALL_GPU = """
import torch
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe

def network(num_classes, room):
    def refuse(module, inputs):
        if module.training and len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    model = build_model(ModelRecipe(name="resnet20", num_classes=num_classes), seed=0)
    model.register_forward_pre_hook(refuse)
    return model
"""


@pytest.fixture
def on_a_small_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "small_gpu.py").write_text(SMALL_GPU)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return [
        "batch.size=24",
        "batch_norm.span=4",
        "duration=6 steps",
        "checkpoint.every=2 steps",
        "evaluate.every=6 steps",
    ]


def model(room: int) -> str:
    return f"model={{name: 'small_gpu:network', num_classes: 10, arguments: {{room: {room}}}}}"


def test_auto_goes_on_with_the_number_that_fits_and_the_curve_stays(
    config_file: Path, train: Train, losses_of: Losses, on_a_small_gpu: list[str]
) -> None:
    storage = config_file.parent / "runs"
    train("name=roomy", *on_a_small_gpu, model(room=24))
    output = train("name=tight", *on_a_small_gpu, model(room=8), "batch.num_micro_batches=auto")
    assert "out of memory with batch.num_micro_batches=2" in output  # shares of 12 are too many as well; 3 fit
    found, expected = losses_of(storage / "tight"), losses_of(storage / "roomy")
    assert sorted(found) == sorted(expected) == list(range(1, 7))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-12 if step == 1 else 1e-9)


def test_a_number_that_was_chosen_is_not_changed_but_the_better_one_is_named(
    train: Train, on_a_small_gpu: list[str]
) -> None:
    output = train(*on_a_small_gpu, model(room=12), "batch.num_micro_batches=1", code=78)
    assert "out of memory with batch.num_micro_batches=1; batch.num_micro_batches=2 would fit" in output


def test_where_the_span_allows_no_number_the_message_says_what_else_helps(
    train: Train, on_a_small_gpu: list[str]
) -> None:
    output = train(*on_a_small_gpu, "batch_norm.span=global", model(room=12), "batch.num_micro_batches=auto", code=78)
    assert "use more workers, or a smaller batch_norm.span" in output
