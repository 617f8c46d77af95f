"""A recipe that cannot be trained, or that holds an option without effect, is refused with its key."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.errors import RecipeError
from resnet_dist.models import MODELS
from resnet_dist.recipe import rules
from resnet_dist.recipe.batch_layout import BatchLayout, automatic_span
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import BatchRecipe, DataRecipe, Recipe, ScheduleRecipe

parse = Duration.parse

GOOD = Recipe(
    data=DataRecipe(root="/data", num_samples=1000),
    batch=BatchRecipe(size=96),
    duration=parse("10 epochs"),
    schedule=ScheduleRecipe(base_lr=0.1, warmup=parse("1 epoch")),
)


def changed(recipe: Any, **changes: Any) -> Any:
    """`recipe` with values at `section__key`."""
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        value = changed(getattr(recipe, section), **{rest: value}) if rest else value
        recipe = dataclasses.replace(recipe, **{section: value})
    return recipe


STEP = {"schedule__decay": "step"}
MINE = "my_package.my_module:build"
SYNTHETIC = {"data__source": "synthetic", "data__root": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch__num_micro_batches": 4, "batch_norm__span": 24},
        {"batch_norm__span": "worker", "batch__num_micro_batches": 3},
        {"batch_norm__span": "auto", "batch__num_micro_batches": 2},
        {"batch_norm__span": "auto", "batch__size": 2 * 131},
        {"batch_norm__momentum": None, "batch_norm__epsilon": None},
        {"batch_norm__momentum": 0.01, "batch_norm__epsilon": 1e-3},
        {"speed__compile": True, "engine__bucket_mb": 1.0},
        {"optimizer__nesterov": True},
        {"optimizer__nesterov": True, "optimizer__name": "lars"},
        {"ema__decay": 0.9999, "ema__every_steps": 32},
        {"optimizer__name": "lars", "optimizer__trust_coefficient": 0.001, "optimizer__lr_in_momentum": False},
        {"optimizer__name": MINE, "optimizer__arguments": {"beta": 1}},
        {"model__name": MINE, "model__arguments": {"width": 2}, "model__zero_gamma": True},
        {"schedule__decay": "polynomial", "schedule__power": 2.0, "schedule__end_lr": 1e-4},
        {"schedule__decay": MINE, "schedule__end_lr": 1e-4},
        {"schedule__decay": "exponential", "schedule__end_lr": 1e-4},
        {"schedule__decay": "trapezoid", "schedule__decay_length": parse("9 epochs")},
        {"schedule__decay": "trapezoid", "schedule__warmup": parse("10 %"), "schedule__decay_length": parse("90 %")},
        {"schedule__scaling": "none"},
        {"evaluate__precise_batch_norm": 10, "evaluate__train": True, "evaluate__metrics": (MINE, "a.b:c")},
        {"stop_at__top1": 0.759},
        {"evaluate__beside": True, "evaluate__metrics": (MINE,)},
        {"stop_at__loss": 0.0},
        {**STEP, "schedule__milestones": (parse("3 epochs"), parse("5000 samples")), "schedule__gamma": 0.2},
        {"schedule__warmup": parse("10 epochs")},
        {"data__source": MINE},
        {"batch_norm__span": 48, "speed__cuda_graph": True},
        {"batch_norm__span": "worker", "speed__cuda_graph": True},
        {"batch_norm__span": "auto", "speed__cuda_graph": True},
        SYNTHETIC,
        {**SYNTHETIC, "data__crop_area": (1.0, 1.0), "data__flip": False, "data__order": "shards"},
        {"data__order": "shards", "data__shuffle_window": 1},
        {"data__crop_area": (1.0, 1.0), "data__crop_aspect": (1.0, 1.0)},
        {"data__progressive": {parse("0 %"): 128, parse("3 epochs"): 160, parse("5000 samples"): 128}},
        {"data__progressive": {parse("99 %"): 192}, "speed__compile": True, "evaluate__resolution": 224},
    ],
)
def test_a_recipe_that_can_be_trained_has_no_problems(changes: dict[str, Any]) -> None:
    assert rules.problems(changed(GOOD, **changes), world_size=2) == []


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"seed": -1}, "seed", "found -1"),
    ({"duration": parse("0 steps")}, "duration", "above 0"),
    ({"evaluate__every": parse("0 epochs")}, "evaluate.every", "above 0"),
    ({"evaluate__batch_size": 0}, "evaluate.batch_size", "from 1 to"),
    ({"regularization__label_smoothing": 1.0}, "regularization.label_smoothing", "below 1"),
    ({"ema__decay": 1.0}, "ema.decay", "above 0 and below 1"),
    ({"ema__decay": 0.0}, "ema.decay", "above 0 and below 1"),
    ({"ema__decay": 0.9, "ema__every_steps": 0}, "ema.every_steps", "from 1 to"),
    ({"ema__every_steps": 2}, "ema.every_steps", "only with ema.decay above 0"),
    ({"engine__name": "deepspeed"}, "engine.name", "ddp, zero, or package.module:function"),
    ({"engine__name": "zero", "engine__stage": 3}, "engine.stage", "fit on every worker"),
    ({"engine__name": "zero", "engine__stage": 4}, "engine.stage", "0, 1 or 2"),
    ({"engine__stage": 1}, "engine.stage", "only with engine.name zero"),
    ({"engine__bucket_mb": 0.0}, "engine.bucket_mb", "above 0"),
    ({"engine__arguments": {"a": 1}}, "engine.arguments", "only with engine.name package.module:function"),
    ({"engine__name": "zero", "precision": "float64"}, "precision", "the weights that ZeRO updates are float32"),
    ({"engine__name": "zero", "precision": "float16"}, "precision", "no loss scaler"),
    ({"precision": "float64", "engine__gradient_dtype": "bfloat16"}, "engine.gradient_dtype", "leave it out"),
    ({"engine__name": "zero", "speed__compile": True}, "speed.compile", "only with engine.name ddp"),
    ({"optimizer__name": "lars", "speed__sgd_kernel": "fused"}, "speed.sgd_kernel", "only with optimizer.name sgd"),
    ({"speed__compile": True, "engine__bucket_mb": 0.5}, "speed.compile", "engine.bucket_mb from 1 up"),
    ({"precision": "float16", "speed__cuda_graph": True}, "speed.cuda_graph", "needs the host"),
    ({"data__on_error": "replace", "speed__cuda_graph": True}, "speed.cuda_graph", "a fixed number of samples"),
    ({"data__known_bad": "/bad.txt", "speed__cuda_graph": True}, "speed.cuda_graph", "a fixed number of samples"),
    ({"batch_norm__span": 32, "speed__cuda_graph": True}, "speed.cuda_graph", "exchanged between workers"),
    ({"batch_norm__span": "global", "speed__cuda_graph": True}, "speed.cuda_graph", "exchanged between workers"),
    ({"data__max_bad_images": 5}, "data.max_bad_images", "only with data.on_error replace"),
    ({"data__on_error": "replace", "data__max_bad_images": 1.0}, "data.max_bad_images", "a number of images"),
    ({"precision": "float16", "speed__sgd_kernel": "fused"}, "speed.sgd_kernel", "uninitialised"),
    ({"optimizer__gradient_clipping": 0.0}, "optimizer.gradient_clipping", "above 0"),
    ({"model__name": "resnt50"}, "model.name", "Did you mean resnet50?"),
    ({"model__name": "resnet21"}, "model.name", "Did you mean resnet20?"),
    ({"model__name": "vgg"}, "model.name", "package.module:function"),
    ({"model__num_classes": 1}, "model.num_classes", "from 2 to"),
    ({"model__arguments": {"width": 2}}, "model.arguments", "has no effect"),
    ({"model__name": MINE, "model__arguments": {"num_classes": 2}}, "model.arguments", "passed already"),
    ({"data__source": "imagefolders"}, "data.source", "Did you mean imagefolder?"),
    ({"data__root": ""}, "data.root", "folder or address of the data set"),
    ({"data__source": "synthetic"}, "data.root", "leave it out"),
    ({**SYNTHETIC, "data__num_samples": None}, "data.num_samples", "the number of training images"),
    ({**SYNTHETIC, "data__decoder": "dali"}, "data.decoder", "only with data.source that has files"),
    ({**SYNTHETIC, "data__on_error": "replace"}, "data.on_error", "only with data.source that has files"),
    ({"data__shuffle_window": 7}, "data.shuffle_window", "only with data.order shards"),
    ({"data__order": "shards", "data__shuffle_window": 0}, "data.shuffle_window", "from 1 to"),
    ({"data__resolution": 7}, "data.resolution", "from 8 to 65535"),
    ({"data__crop_area": (0.0, 1.0)}, "data.crop_area", "0 < low <= high <= 1"),
    ({"data__crop_area": (0.9, 0.5)}, "data.crop_area", "0 < low <= high <= 1"),
    ({"data__crop_area": (0.5, 1.5)}, "data.crop_area", "0 < low <= high <= 1"),
    ({"data__crop_aspect": (0.0, 1.0)}, "data.crop_aspect", "0 < low <= high"),
    ({"data__crop_aspect": (1.0, math.inf)}, "data.crop_aspect", "0 < low <= high"),
    ({"data__evaluation_crop": 1.1}, "data.evaluation_crop", "at most 1"),
    ({"data__mean": (0.5, 0.5, math.nan)}, "data.mean", "finite"),
    ({"data__std": (0.5, 0.0, 0.5)}, "data.std", "above 0"),
    ({"data__prefetch": 0}, "data.prefetch", "from 1 to"),
    ({"data__num_samples": 0}, "data.num_samples", "from 1 to"),
    ({"batch__size": 0}, "batch.size", "from 1"),
    ({"batch__size": 10**18}, "batch.size", "from 1"),
    ({"batch__num_micro_batches": 0}, "batch.num_micro_batches", "from 1 up"),
    ({"batch__num_micro_batches": 5, "batch_norm__span": 1}, "batch.num_micro_batches", "nearest: 4 or 6"),
    ({"batch__size": 2, "batch__num_micro_batches": 2, "batch_norm__span": 1}, "workers", "at most 1"),
    ({"batch_norm__span": 0}, "batch_norm.span", "nearest: 1;"),
    ({"batch_norm__span": 20}, "batch_norm.span", "nearest: 16 or 24;"),
    ({"batch_norm__span": 96, "batch__num_micro_batches": 2}, "batch_norm.span", "nearest: 48;"),
    ({"batch_norm__span": "global", "batch__num_micro_batches": 2}, "batch_norm.span", "num_micro_batches 1"),
    ({"batch_norm__span": "auto", "batch__size": 262, "batch__num_micro_batches": 2}, "batch_norm.span", "from 32 to"),
    ({"batch_norm__span": "auto", "batch__size": 458, "batch__num_micro_batches": 2}, "batch_norm.span", ": 1 or 229;"),
    ({"batch_norm__momentum": 0.0}, "batch_norm.momentum", "above 0"),
    ({"batch_norm__epsilon": 0.0}, "batch_norm.epsilon", "above 0"),
    ({"optimizer__name": "sdg"}, "optimizer.name", "Did you mean sgd?"),
    ({"optimizer__momentum": 1.0}, "optimizer.momentum", "below 1"),
    ({"optimizer__momentum": math.nan}, "optimizer.momentum", "below 1"),
    ({"optimizer__weight_decay": -1e-4}, "optimizer.weight_decay", "from 0 up"),
    (
        {"optimizer__nesterov": True, "optimizer__name": "lars", "optimizer__momentum": 0.0},
        *("optimizer.nesterov", "momentum above 0"),
    ),
    ({"optimizer__nesterov": True, "optimizer__name": MINE}, "optimizer.nesterov", "optimizer.name sgd"),
    ({"optimizer__nesterov": True, "optimizer__momentum": 0.0}, "optimizer.nesterov", "momentum above 0"),
    ({"optimizer__trust_coefficient": 0.001}, "optimizer.trust_coefficient", "only with optimizer.name lars"),
    ({"optimizer__epsilon": 0.0}, "optimizer.epsilon", "only with optimizer.name lars"),
    ({"optimizer__lr_in_momentum": True}, "optimizer.lr_in_momentum", "only with optimizer.name lars"),
    ({"optimizer__name": "lars", "optimizer__trust_coefficient": 0.0}, "optimizer.trust_coefficient", "above 0"),
    ({"optimizer__name": "lars", "optimizer__epsilon": -1.0}, "optimizer.epsilon", "from 0 up"),
    ({"optimizer__arguments": {"beta": 1}}, "optimizer.arguments", "has no effect"),
    ({"optimizer__name": MINE, "optimizer__arguments": {"momentum": 1}}, "optimizer.arguments", "passed already"),
    ({"schedule__base_lr": None}, "schedule.peak_lr", "neither"),
    ({"schedule__peak_lr": 0.1}, "schedule.peak_lr", "both"),
    ({"schedule__base_lr": 0.0}, "schedule.base_lr", "above 0"),
    ({"schedule__base_lr": math.inf}, "schedule.base_lr", "above 0"),
    ({"schedule__end_lr": -0.1}, "schedule.end_lr", "from 0 up"),
    ({"schedule__end_lr": 0.1 * 96 / 256}, "schedule.end_lr", "below the peak LR, 0.0375"),
    ({"schedule__warmup_start_lr": 0.05}, "schedule.warmup_start_lr", "below the peak LR, 0.0375"),
    (
        {"schedule__warmup_start_lr": 0.01, "schedule__warmup": parse("0 steps")},
        "schedule.warmup_start_lr",
        "only with schedule.warmup above 0",
    ),
    ({"schedule__warmup": parse("11 epochs")}, "schedule.warmup", "at most the duration, 10 epochs"),
    ({"schedule__warmup": parse("10001 samples")}, "schedule.warmup", "longer than the run"),
    ({"schedule__decay": "cosin"}, "schedule.decay", "Did you mean cosine?"),
    ({"schedule__power": 2.0}, "schedule.power", "only with schedule.decay polynomial"),
    ({"schedule__decay": "polynomial", "schedule__power": 0.0}, "schedule.power", "above 0"),
    ({"schedule__decay": "constant", "schedule__end_lr": 1e-3}, "schedule.end_lr", "cosine, polynomial,"),
    ({"schedule__decay": "exponential"}, "schedule.end_lr", "above 0, which the LR reaches at the end"),
    ({"schedule__decay_length": parse("1 epoch")}, "schedule.decay_length", "only with schedule.decay trapezoid"),
    ({"schedule__decay": "trapezoid", "schedule__decay_length": parse("0 %")}, "schedule.decay_length", "above 0"),
    (
        {"schedule__decay": "trapezoid", "schedule__decay_length": parse("901 steps"), "batch__size": 10},
        "schedule.decay_length",
        "at most 10 epochs with the warm-up",
    ),
    ({"schedule__decay": "trapezoid", "schedule__warmup": parse("81 %")}, "schedule.decay_length", "found 2 epochs"),
    (
        {"schedule__base_lr": None, "schedule__peak_lr": 1.0, "schedule__scaling": "none"},
        "schedule.scaling",
        "only with schedule.base_lr",
    ),
    ({"duration": parse("10 %")}, "duration", "a number of epochs, steps or samples"),
    ({"evaluate__precise_batch_norm": -1}, "evaluate.precise_batch_norm", "from 0 to"),
    ({"evaluate__metrics": ("accuracy",)}, "evaluate.metrics", "package.module:function"),
    ({"evaluate__metrics": ("a.b:c", "d:c")}, "evaluate.metrics", "functions of different names"),
    ({"stop_at__top1": 75.9}, "stop_at.top1", "at most 1, for example 75.9 %"),
    ({"stop_at__top1": 0.0}, "stop_at.top1", "above 0"),
    ({"stop_at__loss": -0.1}, "stop_at.loss", "from 0 up"),
    ({"stop_at__loss": math.nan}, "stop_at.loss", "from 0 up"),
    ({"stop_at__top1": 0.5, "stop_at__loss": 1.0}, "stop_at.loss", "one of the two"),
    ({"evaluate__beside": True, "stop_at__top1": 0.5}, "evaluate.beside", "together with stop_at.top1"),
    ({"evaluate__beside": True, "stop_at__loss": 0.5}, "evaluate.beside", "together with stop_at.loss"),
    ({"evaluate__beside": True, "evaluate__train": True}, "evaluate.beside", "only the val split"),
    ({"evaluate__beside": True, "evaluate__precise_batch_norm": 5}, "evaluate.beside", "not in a checkpoint"),
    ({"schedule__gamma": 0.1}, "schedule.gamma", "only with schedule.decay step"),
    ({"schedule__milestones": (parse("3 epochs"),)}, "schedule.milestones", "only with schedule.decay step"),
    (STEP, "schedule.milestones", "found none"),
    ({**STEP, "schedule__milestones": (parse("3 epochs"),), "schedule__gamma": 1.0}, "schedule.gamma", "below 1"),
    ({**STEP, "schedule__milestones": (parse("3 epochs"), parse("2500 samples"))}, "schedule.milestones", "ascending"),
    ({**STEP, "schedule__milestones": (parse("3 epochs"), parse("3 epochs"))}, "schedule.milestones", "ascending"),
    ({**STEP, "schedule__milestones": (parse("10 epochs"),)}, "schedule.milestones", "not within the run"),
    ({**STEP, "schedule__milestones": (parse("1 epoch"),)}, "schedule.milestones", "not after warm-up"),
    ({"data__progressive": {parse("1 epoch"): 7}}, "data.progressive", "from 8 to 65535"),
    ({"data__progressive": {parse("1 epoch"): 224}}, "data.progressive", "224 from 1 epoch on"),
    ({"data__progressive": {parse("0 steps"): 8, parse("1 step"): 8}}, "data.progressive", "another resolution"),
    ({"data__progressive": {parse("2 epochs"): 8, parse("1 epoch"): 9}}, "data.progressive", "ascending"),
    ({"data__progressive": {parse("1000 samples"): 8, parse("1 epoch"): 9}}, "data.progressive", "ascending"),
    ({"data__progressive": {parse("20 %"): 8, parse("2 epochs"): 9}}, "data.progressive", "one time twice"),
    ({"data__progressive": {parse("10 epochs"): 8}}, "data.progressive", "not within the run"),
    ({"data__progressive": {parse("100 %"): 8}}, "data.progressive", "not within the run"),
    ({"data__progressive": {parse("10000 samples"): 8}}, "data.progressive", "before the end at 10 epochs"),
    ({"data__progressive": {parse("1 epoch"): 8}, "speed__cuda_graph": True}, "speed.cuda_graph", "of one size"),
    (
        {"data__progressive": {parse(f"{n} epochs"): 8 * n for n in range(1, 9)}, "speed__compile": True},
        "speed.compile",
        "found true with 9 resolutions",
    ),
    ({"evaluate__resolution": 4}, "evaluate.resolution", "from 8 to 65535"),
]


@pytest.mark.parametrize(("changes", "key", "said"), BAD)
def test_a_mistake_is_named_by_its_key_with_what_is_allowed(changes: dict[str, Any], key: str, said: str) -> None:
    [problem] = rules.problems(changed(GOOD, **changes), world_size=2)
    assert problem.key == key
    assert said in str(problem)


def test_all_mistakes_are_found_at_once() -> None:
    recipe = changed(GOOD, optimizer__momentum=2.0, data__prefetch=0, schedule__decay="step")
    assert {problem.key for problem in rules.problems(recipe, world_size=1)} == {
        "optimizer.momentum",
        "data.prefetch",
        "schedule.milestones",
    }


def test_check_raises_the_first_problem() -> None:
    recipe = changed(GOOD, optimizer__momentum=2.0, data__prefetch=0)
    with pytest.raises(RecipeError) as caught:
        rules.check(recipe, world_size=1)
    assert str(caught.value) == str(rules.problems(recipe, world_size=1)[0])
    rules.check(GOOD, world_size=96)


def test_every_worker_needs_a_sample() -> None:
    assert rules.problems(GOOD, world_size=96) == []
    [problem] = rules.problems(GOOD, world_size=97)
    assert problem.key == "workers"


def test_durations_of_different_units_are_compared_only_where_the_data_sets_size_is_known() -> None:
    recipe = changed(GOOD, data__num_samples=None, schedule__warmup=parse("200 steps"))  # 19,200 samples of 10 epochs
    assert rules.problems(recipe, world_size=1) == []
    assert rules.problems(recipe, world_size=1, num_samples=2000) == []
    assert [problem.key for problem in rules.problems(recipe, 1, num_samples=1000)] == ["schedule.warmup"]
    in_samples = changed(recipe, duration=parse("19199 samples"))
    assert [problem.key for problem in rules.problems(in_samples, world_size=1)] == ["schedule.warmup"]


@pytest.mark.parametrize(
    ("size", "parts", "span"),
    [(8192, 1, 64), (96, 1, 48), (37, 1, 37), (262, 1, "global"), (192, 2, 48), (192, "auto", 64)],
)
def test_auto_is_settled_as_a_number_or_global(size: int, parts: Any, span: Any) -> None:
    recipe = rules.settled(changed(GOOD, batch__size=size, batch__num_micro_batches=parts))
    assert recipe.batch_norm.fixed_span == span
    assert recipe == changed(GOOD, batch__size=size, batch__num_micro_batches=parts, batch_norm__span=span)


@pytest.mark.parametrize("span", [24, "global", "worker"])
def test_a_span_that_is_given_stays(span: Any) -> None:
    recipe = changed(GOOD, batch_norm__span=span)
    assert rules.settled(recipe) is recipe


@pytest.mark.parametrize(("size", "parts"), [(0, 1), (96, 5), (262, 2)])
def test_an_auto_without_a_span_stays_and_is_refused_by_the_rules(size: int, parts: int) -> None:
    recipe = rules.settled(changed(GOOD, batch__size=size, batch__num_micro_batches=parts))
    assert recipe.batch_norm.span == "auto"
    assert rules.problems(recipe, world_size=1) != []


def test_the_models_that_are_allowed_are_those_that_exist() -> None:
    assert sorted(rules.MODEL_NAMES) == sorted(MODELS)


def test_the_rules_need_no_torch() -> None:
    script = "import resnet_dist.recipe.rules, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@given(
    size=st.integers(-2, 120),
    parts=st.integers(-1, 8),
    world_size=st.integers(1, 130),
    span=st.one_of(st.integers(-1, 130), st.sampled_from(["auto", "global", "worker"])),
)
@settings(deadline=None)
def test_a_batch_without_problems_can_be_laid_out_and_one_with_problems_cannot(
    size: int, parts: int, world_size: int, span: Any
) -> None:
    recipe = changed(GOOD, batch__size=size, batch__num_micro_batches=parts, batch_norm__span=span)
    recipe = changed(recipe, schedule__base_lr=None, schedule__peak_lr=0.1)
    works = size >= 1 and parts >= 1 and size % parts == 0 and size // parts >= world_size
    if works:
        BatchLayout(size, parts, world_size)
        span = automatic_span(size // parts) if span == "auto" else span
        works = parts == 1 if span == "global" else span == "worker" or (span >= 1 and size // parts % span == 0)
    assert (rules.problems(recipe, world_size) == []) == works
