"""What an evaluation of a run has: both splits, the average of the weights, and the user's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.data import index_image_folder
from resnet_dist.data.decoding import dali
from resnet_dist.data.loader import decoder_for
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    EvaluateRecipe,
    ModelRecipe,
    Recipe,
    ScheduleRecipe,
)
from resnet_dist.telemetry.liveness import Liveness
from resnet_dist.training import evaluator as module
from resnet_dist.training.device import Worker
from resnet_dist.training.evaluate import evaluate
from resnet_dist.training.evaluator import Evaluator, Split, load_metrics

CPU = torch.device("cpu")
CLASSES = 7


def split(seed: int, size: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, CLASSES, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    parts = zip(images.split(5), labels.split(5), strict=True)
    batches = [MicroBatch(*pair) for pair in parts]
    return Split(size, lambda: batches)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Linear(CLASSES, CLASSES)).double()


def evaluator(net: nn.Module, **options: Any) -> Evaluator:
    return Evaluator(model=net, device=CPU, num_classes=CLASSES, val=split(1, 23), **options)


def test_by_default_it_is_the_val_split_alone() -> None:
    net = model()
    found = evaluator(net)(4)
    assert found == evaluate(net, split(1, 23).batches(), 23, CPU)
    assert set(found.record()) == {"top1", "top5", "loss", "num_samples", "weights", "num_nonfinite"}


def test_the_training_split_is_evaluated_in_the_same_way() -> None:
    net = model()
    found = evaluator(net, train=split(2, 12))(4)
    own = evaluate(net, split(2, 12).batches(), 12, CPU)
    record = found.record()
    assert (record["train_top1"], record["train_loss"]) == (own.top1, own.loss)
    assert own.loss != found.loss
    assert {"train", "metrics"}.isdisjoint(record)


def test_both_splits_are_evaluated_with_the_average_of_the_weights() -> None:
    net = model()
    average = {name: tensor / 2 for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    found = evaluator(net, train=split(2, 12), average=lambda: average)(4)
    assert found.weights == "ema"
    assert found.train is not None
    assert found.loss == evaluate(net, split(1, 23).batches(), 23, CPU, tensors=average).loss
    assert found.train.loss == evaluate(net, split(2, 12).batches(), 12, CPU, tensors=average).loss


class Fixed:
    """Statistics that are given, in place of `PreciseBatchNorm`."""

    def __init__(self, **statistics: Tensor) -> None:
        self.of, self.asked = {f"0.{name}": tensor for name, tensor in statistics.items()}, []

    def statistics(self, step: int, weights: Any) -> dict[str, Tensor]:
        self.asked.append((step, weights))
        return self.of


def test_precise_statistics_replace_those_of_the_model_and_of_its_average() -> None:
    net, other = model(), model()
    mean, variance = torch.arange(CLASSES).double(), torch.full((CLASSES,), 4.0, dtype=torch.float64)
    other[0].running_mean, other[0].running_var = mean, variance
    precise = Fixed(running_mean=mean, running_var=variance)
    expected = evaluate(other, split(1, 23).batches(), 23, CPU)
    assert evaluator(net, precise=precise)(4) == expected
    average = {name: tensor.clone() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    assert evaluator(net, precise=precise, average=lambda: average)(5).loss == expected.loss
    assert precise.asked == [(4, None), (5, average)]


def test_top_5_of_five_classes_or_fewer_is_no_number() -> None:
    found = Evaluator(model=model(), device=CPU, num_classes=5, val=split(1, 23), train=split(2, 12))(1)
    assert math.isnan(found.top5)


@pytest.mark.parametrize(
    "decoder",
    [
        "torchvision",
        pytest.param("dali", marks=pytest.mark.skipif(not dali.is_installed(), reason="NVIDIA DALI is not installed")),
    ],
)
def test_one_decoder_decodes_both_splits_in_all_evaluations(
    decoder: Any, tmp_path: Path, write_images: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DALI, its pipeline is kept: it takes seconds to build, and memory of its own."""
    made: list[Any] = []
    built, defined = [], dali._defined

    def define(*arguments: Any) -> Any:
        built.append(arguments)
        return defined(*arguments)

    monkeypatch.setattr(dali, "_defined", define)

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append((decoder_for(*arguments, **options), options["regions"]))
        return made[-1][0]

    monkeypatch.setattr(module, "decoder_for", noted)
    root = str(write_images(tmp_path))
    recipe = Recipe(
        data=DataRecipe(root=root, resolution=8, decoder=decoder),
        batch=BatchRecipe(size=4),
        duration=Duration.parse("1 step"),
        schedule=ScheduleRecipe(peak_lr=0.1),
        model=ModelRecipe(num_classes=CLASSES),
        evaluate=EvaluateRecipe(every=Duration.parse("1 step"), batch_size=3, train=True),
    )
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    net(torch.zeros(1, 3, 8, 8))
    splits = (index_image_folder(root, "train"), index_image_folder(root, "val"))
    worker = Worker(0, 1, CPU, num_threads=1, decodes_regions=False)
    evaluates = module.evaluator(recipe, worker, net, splits, Liveness(), None, lambda autocast: None)  # type: ignore[arg-type,return-value]
    first = evaluates(1)
    assert evaluates(2) == first
    assert first.train is not None
    assert (first.num_samples, first.train.num_samples) == (8, 8)
    [(_, regions)] = made
    assert regions is False
    assert len(built) == (decoder == "dali")


# --- metrics


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_metrics_of_evaluator_test.py").write_text(
        "import torch\n"
        "def margin(logits, labels):\n"
        "    return logits.gather(1, labels[:, None]).squeeze(1)\n"
        "def is_even(logits, labels):\n    return labels % 2 == 0\n"
        "def mean(logits, labels):\n    return logits.mean()\n"
        "def word(logits, labels):\n    return 'x'\n"
        "def three(logits, labels, more):\n    return labels\n"
        "def infinite(logits, labels):\n    return torch.full((len(labels),), torch.inf)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_metrics_of_evaluator_test"


def test_a_metric_is_averaged_over_the_split(users: str) -> None:
    metrics = load_metrics([f"{users}:margin", f"{users}:is_even"], CLASSES, CPU)
    net = model().eval()
    found = evaluator(net, metrics=metrics, train=split(2, 12))(1)
    batches = list(split(1, 23).batches())
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    margin = net(images)[torch.arange(23), labels].mean().item()
    assert found.metrics["margin"] == pytest.approx(margin, rel=1e-12)
    assert found.metrics["is_even"] == (labels % 2 == 0).double().mean().item()
    assert found.record()["metrics"] == found.metrics


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("mean", r"mean returned a value of shape \[\] for 2 samples"),
        ("word", "word returned a value of type str for 2 samples"),
        ("three", "cannot be called with"),
        ("absent", "has no absent"),
    ],
)
def test_a_metric_that_cannot_be_one_is_refused_before_training(users: str, function: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_metrics([f"{users}:{function}"], CLASSES, CPU)
    assert caught.value.key == "evaluate.metrics"


def test_a_metric_that_is_not_finite_is_no_number_and_the_rest_is_as_ever(users: str) -> None:
    found = evaluator(model(), metrics=load_metrics([f"{users}:infinite"], CLASSES, CPU))(1)
    assert found.metrics == {"infinite": math.inf}
    assert math.isfinite(found.loss)


def test_with_logits_that_are_not_finite_no_metric_is_a_number(users: str) -> None:
    net = model()
    net[1].bias.data[0] = math.nan
    found = evaluator(net, metrics=load_metrics([f"{users}:is_even"], CLASSES, CPU))(1)
    assert math.isnan(found.metrics["is_even"])
