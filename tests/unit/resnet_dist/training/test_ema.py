"""The moving average of the weights: its formula, and that it is part of a run's state like the weights."""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint import restore
from resnet_dist.checkpoint.retention import Retention
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    EvaluateRecipe,
    ModelRecipe,
    Recipe,
    ScheduleRecipe,
)
from resnet_dist.training.ema import WeightAverage
from resnet_dist.training.evaluate import evaluate

CPU = torch.device("cpu")
parse = Duration.parse


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
    return layers.to(dtype).to(memory_format=torch.channels_last)


@torch.no_grad()
def move(module: nn.Module, seed: int) -> None:
    """Other weights, running statistics and counters."""
    torch.manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + seed)


# --- the formula


def test_it_begins_with_the_weights_and_follows_them_as_in_the_formula() -> None:
    module = net()
    average, expected = WeightAverage(module, decay=0.75), copy.deepcopy(module.state_dict())
    del expected["1.num_batches_tracked"]  # a counter is the model's own
    for step in (1, 2, 3):
        move(module, seed=step)
        average.update(step)
        expected = {name: 0.75 * tensor + 0.25 * module.state_dict()[name] for name, tensor in expected.items()}
    torch.testing.assert_close(dict(average.state()), expected, rtol=1e-14, atol=0)


def test_an_update_has_the_bits_of_torchs_own() -> None:
    module = net(torch.float32)
    average, theirs = WeightAverage(module, decay=0.9), [p.detach().clone() for p in module.parameters()]
    for step in (1, 2):
        move(module, seed=step)
        average.update(step)
        get_ema_multi_avg_fn(0.9)(theirs, list(module.parameters()), None)  # type: ignore[no-untyped-call]
    assert [name for name, _ in module.named_parameters()] == list(average.state())[: len(theirs)]
    assert all(torch.equal(own, their) for own, their in zip(average.state().values(), theirs, strict=False))


def test_it_is_due_every_so_many_completed_steps() -> None:
    module = net()
    average, moved = WeightAverage(module, decay=0.5, every_steps=3), []
    before = average.state()["3.weight"].clone()
    for step in range(1, 8):
        move(module, seed=step)
        average.update(step)
        if not torch.equal(before, average.state()["3.weight"]):
            moved.append(step)
        before = average.state()["3.weight"].clone()
    assert moved == [3, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_has_the_dtype_and_layout_of_the_weights(dtype: torch.dtype) -> None:
    module = net(dtype)
    for name, tensor in WeightAverage(module, decay=0.9).state().items():
        weight = module.state_dict()[name]
        assert (tensor.dtype, tensor.stride()) == (dtype, weight.stride())
        assert tensor.data_ptr() != weight.data_ptr()


def test_weights_that_have_moved_to_other_memory_are_followed() -> None:
    module = net()
    average = WeightAverage(module, decay=0.5)
    for parameter in module.parameters():
        parameter.data = torch.zeros_like(parameter)
    average.update(1)
    assert torch.equal(average.state()["3.weight"], net().state_dict()["3.weight"] / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("3.bias"), "of another model: 3.bias"),
        (lambda state: state.update({"4.bias": torch.ones(1)}), "of another model: 4.bias"),
        (lambda state: state.update({"3.bias": torch.ones(6)}), r"average of 3.bias is \(6,\), the model's \(5,\)"),
    ],
)
def test_the_average_of_another_model_is_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    average = WeightAverage(net(), decay=0.9)
    state = dict(average.state())
    change(state)
    with pytest.raises(ValueError, match=message):
        average.load(state)


# --- in evaluation


def test_evaluation_uses_it_in_the_place_of_the_weights() -> None:
    module = net().train()
    average = WeightAverage(module, decay=0.5)
    move(module, seed=1)
    average.update(1)
    before = copy.deepcopy(module.state_dict())
    images, labels = torch.rand(16, 3, 4, 4, dtype=torch.float64), torch.arange(16) % 5
    batches = [MicroBatch(images, labels)]
    found = evaluate(module, batches, 16, CPU, tensors=average.state())
    other = net()
    other.load_state_dict(dict(average.state()), strict=False)
    assert found == evaluate(other, batches, 16, CPU)
    assert found.loss != evaluate(module, batches, 16, CPU).loss
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


# --- in a run


class Attended:
    """A supervisor that stops the run at a step, and a sink that keeps its records."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.step, self.records = stop_at, 0, list[Mapping[str, Any]]()

    def stop_requested(self) -> bool:
        self.step += 1
        return self.step == self.stop_at

    def metrics(self, record: Mapping[str, Any]) -> None: ...

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[[Path], Path]) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def recipe_of(images: Path, ema: EmaRecipe) -> Recipe:
    return Recipe(
        data=DataRecipe(root=str(images), resolution=8),
        batch=BatchRecipe(size=6),
        duration=parse("6 steps"),
        schedule=ScheduleRecipe(peak_lr=0.1, decay="constant"),
        model=ModelRecipe(name="resnet20", num_classes=2),
        evaluate=EvaluateRecipe(every=parse("3 steps")),
        ema=ema,
        precision="float64",
    )


Fit = Callable[..., Attended]


@pytest.fixture
def fit(images: Path, tmp_path: Path) -> Fit:
    """Train in a folder, go on if there is a checkpoint."""

    def run(name: str, ema: EmaRecipe, stop_at: int | None = None) -> Attended:
        folder, attended = tmp_path / name, Attended(stop_at)
        saved = restore.newest(folder)
        options = RunOptions(CheckpointOptions(folder, Retention(9)), tmp_path / "index", parse("4 steps"), 1)
        worker = Worker(0, 1, CPU, num_threads=1)
        build(recipe_of(images, ema), worker, options, attended, attended, None if saved is None else saved.path).fit()
        return attended

    return run


def evaluations(attended: Attended) -> list[Mapping[str, Any]]:
    return [{**r, "time_s": None} for r in attended.records if r["kind"] == "eval"]


def ema_of(checkpoints: Path, step: int) -> dict[str, Tensor]:
    found = restore.load(checkpoints / f"step-{step:08d}").ema()
    assert found is not None
    return found


def test_a_run_that_was_stopped_goes_on_with_the_same_average(fit: Fit, tmp_path: Path) -> None:
    ema = EmaRecipe(decay=0.7, every_steps=2)
    whole = fit("whole", ema)
    fit("stopped", ema, stop_at=2)  # obeyed a step later
    resumed = fit("stopped", ema)
    assert [record["step"] for record in evaluations(resumed)] == [3, 6]
    assert evaluations(resumed) == evaluations(whole)
    assert {record["weights"] for record in evaluations(whole)} == {"ema"}
    for step in (4, 6):
        expected, found = ema_of(tmp_path / "whole", step), ema_of(tmp_path / "stopped", step)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    model = restore.load(tmp_path / "whole" / "step-00000006").model()
    assert set(expected) == {name for name, tensor in model.items() if tensor.is_floating_point()}
    assert not torch.equal(expected["fc.weight"], model["fc.weight"])


def test_it_changes_nothing_of_the_training(fit: Fit, tmp_path: Path) -> None:
    fit("with", EmaRecipe(decay=0.7))
    without = fit("without", EmaRecipe())
    one, other = (restore.load(tmp_path / name / "step-00000006") for name in ("with", "without"))
    assert all(torch.equal(tensor, other.model()[name]) for name, tensor in one.model().items())
    assert other.ema() is None
    assert "ema.safetensors" not in json.loads((other.path / "manifest.json").read_text())["files"]
    assert {record["weights"] for record in evaluations(without)} == {"model"}


def test_turned_on_on_the_way_it_begins_with_the_checkpoints_weights(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit("run", EmaRecipe(), stop_at=3)
    with caplog.at_level(logging.WARNING):
        fit("run", EmaRecipe(decay=0.75, every_steps=6))
    assert "the checkpoint of step 3 has no ema: ema starts from its weights" in caplog.text
    before, after = (restore.load(tmp_path / "run" / f"step-0000000{step}").model() for step in (3, 6))
    expected = 0.75 * before["fc.weight"] + 0.25 * after["fc.weight"]
    torch.testing.assert_close(ema_of(tmp_path / "run", 6)["fc.weight"], expected, rtol=1e-14, atol=1e-16)


def test_turned_off_on_the_way_the_run_goes_on_without(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit("run", EmaRecipe(decay=0.75), stop_at=3)
    with caplog.at_level(logging.WARNING):
        resumed = fit("run", EmaRecipe())
    assert re.search(r"the checkpoint of step 3 has an ema of \d+ tensors, which is not used", caplog.text)
    assert {record["weights"] for record in evaluations(resumed)} == {"model"}
    assert restore.load(tmp_path / "run" / "step-00000006").ema() is None
