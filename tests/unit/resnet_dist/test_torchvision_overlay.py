"""Our loop and torchvision's, side by side in float64: same initial weights, same stream, same losses.

The other loop is written as torchvision's classification reference trains (references/classification/train.py):
forward, criterion, zero_grad, backward, step; its weight-decay groups, its cosine annealing, its batch norm. It shares
nothing with ours but the images that the decoder gave.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import NoSink

STEPS, RATE, WEIGHT_DECAY, SMOOTHING, CLASSES = 12, 5e-4, 1e-3, 0.1, 2  # a rate at which training is stable
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def curves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_images: Write) -> Curves:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("overlay")
    recipe = Recipe(
        data=DataRecipe(root=str(write_images(folder / "images")), resolution=48, flip=True),
        batch=BatchRecipe(size=7),
        duration=Duration.parse(f"{STEPS} steps"),
        schedule=ScheduleRecipe(peak_lr=RATE, decay="cosine"),
        model=ModelRecipe(name=request.param, num_classes=CLASSES, zero_gamma=True),
        optimizer=OptimizerRecipe(name="sgd", momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY),
        regularization=RegularizationRecipe(label_smoothing=SMOOTHING),
        precision="float64",
    )
    options = RunOptions(
        CheckpointOptions(folder / "checkpoints"), folder / "index", Duration.parse("1000 steps"), log_every=1
    )
    trainer = build(recipe, Worker(0, 1, torch.device("cpu"), 1), options, NoSink(), Unattended())
    theirs = torchvision.models.get_model(request.param, num_classes=CLASSES).double()
    theirs.load_state_dict(trainer.parts.engine.module.state_dict())
    return run(trainer, theirs)


Write = Callable[[Path], Path]
Curves = tuple[list[float], list[float], nn.Module, nn.Module]


def run(trainer: object, theirs: nn.Module) -> Curves:
    parts = trainer.parts  # type: ignore[attr-defined]
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    optimizer = torch.optim.SGD(groups(theirs), lr=RATE, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.0)
    theirs.train()
    own_losses, their_losses = [], []
    batches = parts.batches_from(0)
    for step in range(STEPS):
        host = next(batches)
        sums = parts.engine.step([parts.to_device(host)], parts.learning_rate(step))
        own_losses.append(parts.exchange.finish(step + 1, sums).read().loss)

        image = normalised(host.images)
        output = theirs(image)
        loss = criterion(output, host.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        their_losses.append(loss.item())
    batches.close()
    parts.checkpoints.close(patient=True)
    return own_losses, their_losses, parts.engine.module, theirs


def groups(model: nn.Module) -> list[dict[str, object]]:
    """torchvision's `set_weight_decay` with norm_weight_decay and bias weight decay of 0."""
    norms, biases, others = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d):
                norms.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                others.append(parameter)
    return [
        {"params": others, "weight_decay": WEIGHT_DECAY},
        {"params": norms, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]


def normalised(images: Tensor) -> Tensor:
    transform = torchvision.transforms.v2.Normalize(MEAN, STD)
    result: Tensor = transform(images.double() / 255)
    return result


def test_losses_are_the_same_at_every_step(curves: Curves) -> None:
    own, theirs, _, _ = curves
    assert len(own) == STEPS
    gaps = [abs(mine - other) / other for mine, other in zip(own, theirs, strict=True)]
    print(f"step 1: {gaps[0]:.1e}, worst of {STEPS}: {max(gaps):.1e}")
    assert gaps[0] < 1e-12
    assert max(gaps) < 1e-12


def test_weights_and_running_statistics_are_the_same_at_the_end(curves: Curves) -> None:
    _, _, own, theirs = curves
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], tensor, rtol=1e-11, atol=1e-12, msg=name)
