from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchNormRecipe,
    BatchRecipe,
    DataRecipe,
    EmaRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.telemetry import memory

RECIPE = Recipe(
    data=DataRecipe(root="/data", resolution=32),
    batch=BatchRecipe(size=96),
    duration=Duration.parse("1 epoch"),
    schedule=ScheduleRecipe(peak_lr=0.1),
    model=ModelRecipe(name="resnet20", num_classes=10),
    batch_norm=BatchNormRecipe(span=8),
)


def test_only_numbers_that_change_no_result_are_allowed() -> None:
    assert memory.allowed_micro_batches(RECIPE, world_size=2) == [1, 2, 3, 4, 6, 12]  # 96 / 12 = one span of 8
    assert memory.allowed_micro_batches(RECIPE, world_size=16) == [1, 2, 3, 4, 6]  # 12 leaves 8 samples for 16 workers
    whole = replace(RECIPE, batch_norm=BatchNormRecipe(span="global"))
    assert memory.allowed_micro_batches(whole, world_size=2) == [1]
    automatic = replace(RECIPE, batch_norm=BatchNormRecipe(span="auto"))  # 48
    assert memory.allowed_micro_batches(automatic, world_size=2) == [1, 2]
    own = replace(RECIPE, batch_norm=BatchNormRecipe(span="worker"), batch=BatchRecipe(size=96, num_micro_batches=3))
    assert memory.allowed_micro_batches(own, world_size=2) == [3]
    paired = replace(RECIPE, regularization=RegularizationRecipe(mixup=0.2), batch_norm=BatchNormRecipe(span=3))
    assert memory.allowed_micro_batches(paired, world_size=2) == [1, 2, 4, 8, 16]  # 32 leaves 3 samples, 16 3 pairs
    assert memory.allowed_micro_batches(paired, world_size=4) == [1, 2, 4, 8]


def test_without_batch_norm_every_divisor_is_allowed() -> None:
    model = ModelRecipe(name="resnet8", normalisation="none")
    recipe = replace(RECIPE, model=model, batch=BatchRecipe(size=12), batch_norm=BatchNormRecipe())
    assert memory.allowed_micro_batches(recipe, world_size=2) == [1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("keys", "least", "most"),
    [
        ({"normalisation": "none"}, 0.3, 0.8),  # the inputs of batch norms are not kept
        ({"activation_order": "pre"}, 0.9, 1.2),
        ({"residual": False}, 0.7, 1.0),
        ({"width": 2.0}, 1.9, 2.0),
        ({"name": "resnet20", "block": "bottleneck"}, 2.0, 6.0),
    ],
)
def test_the_count_is_made_for_every_network(keys: dict[str, Any], least: float, most: float) -> None:
    def sample_bytes(**keys: Any) -> int:
        model = ModelRecipe(**{"name": "resnet20", "num_classes": 10, **keys})
        return memory.step_bytes(replace(RECIPE, model=model))[1]

    assert least <= sample_bytes(**keys) / sample_bytes() <= most


def test_the_smallest_number_that_fits_is_named() -> None:
    static, sample = memory.step_bytes(RECIPE)
    assert memory.num_micro_batches_that_fit(RECIPE, 2, static + 48 * sample) == 2  # more than the present 1
    assert memory.num_micro_batches_that_fit(RECIPE, 2, static + 13 * sample) == 4  # shares of 12
    assert memory.num_micro_batches_that_fit(RECIPE, 2, static + 3 * sample) is None


def test_weights_gradients_momentum_and_an_average_are_counted() -> None:
    static, _ = memory.step_bytes(RECIPE)
    assert round(static / 4 / 3 / 1e6, 2) == 0.27  # million parameters: He et al. 2015, table 6
    averaged, _ = memory.step_bytes(replace(RECIPE, ema=EmaRecipe(decay=0.9)))
    assert averaged == static / 3 * 4
    for name, copies in (("lars", 3), ("lamb", 4), ("adamw", 4)):
        assert memory.step_bytes(replace(RECIPE, optimizer=OptimizerRecipe(name=name)))[0] == static / 3 * copies


def test_activations_grow_with_the_image_and_shrink_with_the_precision() -> None:
    def sample_bytes(resolution: int, precision: str) -> int:
        data = DataRecipe(root="/data", resolution=resolution)
        return memory.step_bytes(replace(RECIPE, data=data, precision=precision))[1]  # type: ignore[arg-type]

    assert sample_bytes(64, "float32") == pytest.approx(4 * sample_bytes(32, "float32"), rel=0.02)
    assert sample_bytes(32, "bfloat16") == pytest.approx(sample_bytes(32, "float32") / 2, rel=0.05)
    assert sample_bytes(32, "float64") == pytest.approx(sample_bytes(32, "float32") * 2, rel=0.05)


def test_memory_is_that_of_the_largest_resolution_of_training() -> None:
    def sample_bytes(resolution: int, **parts: int) -> int:
        progressive = {Duration.parse(time.replace("_", " ")): pixels for time, pixels in parts.items()}
        data = DataRecipe(root="/data", resolution=resolution, progressive=progressive)
        return memory.step_bytes(replace(RECIPE, data=data))[1]

    largest = sample_bytes(64)
    times = [{"0_epochs": 32, "1_epoch": 64}, {"0_epochs": 64, "1_epoch": 32}]
    assert [sample_bytes(96, **parts) for parts in times] == [largest, largest]
    assert sample_bytes(64, **{"1_epoch": 32}) == largest


def test_the_count_is_that_of_a_real_backward_pass() -> None:
    """Tensors that autograd keeps of a real batch, against the count without memory."""
    from resnet_dist.models import build_model

    model = build_model(RECIPE.model, seed=0)

    def saved(num: int) -> int:
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.rand(num, 3, 32, 32)).sum()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    assert memory.step_bytes(RECIPE)[1] / 1.2 == pytest.approx(saved(5) - saved(4), rel=0.02)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("shape mismatch"), False),
        (KeyError("x"), False),
    ],
)
def test_only_a_lack_of_memory_is_explained(error: BaseException, is_memory: bool) -> None:
    explained = memory.translate_oom(error, RECIPE, 2, torch.device("cpu"))
    assert (explained is not None) == is_memory
    if explained is not None:
        assert (explained.current, explained.num_micro_batches) == (1, 2)
        assert "batch.num_micro_batches=2 would fit" in str(explained)


def test_without_a_number_that_fits_the_message_says_what_else_helps() -> None:
    whole = replace(RECIPE, batch_norm=BatchNormRecipe(span="global"))
    explained = memory.translate_oom(MemoryError(), whole, 2, torch.device("cpu"))
    assert explained is not None
    assert explained.num_micro_batches is None
    assert "use more workers, or a smaller batch_norm.span" in str(explained)
