"""The amounts of a run, and when two configs count as the same."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from launcher.config.schema import RunConfig, Workers
from launcher.planning.work import configuration, program, work_of
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.network_cost import training_flops
from resnet_dist.recipe.schema import BatchNormRecipe, BatchRecipe, EvaluateRecipe, ModelRecipe


def test_steps_images_and_events_are_counted(config: RunConfig) -> None:
    work = work_of(config, num_samples=100, num_val=30)
    assert (work.steps, work.worker_images, work.evaluations, work.saves) == (20, 10, 2, 2)
    assert work.evaluated_images == 2 * 30
    assert work.flops == training_flops(config.model, 32)
    assert work.decodes


def test_the_worker_with_the_most_images_counts(config: RunConfig) -> None:
    config = replace(config, workers=Workers(2, 3), batch=BatchRecipe(size=20, num_micro_batches=2))
    assert work_of(config, 100).worker_images == 2 * 4  # 10 images on 3 workers, twice
    assert work_of(config, 100, 30).evaluated_images == 10 * 2


def test_progressive_resizing_gives_the_mean_of_the_operations(config: RunConfig) -> None:
    half = Duration(Fraction(1), "epochs")
    config = replace(config, data=replace(config.data, progressive={half: 64}))
    small, large = (training_flops(config.model, pixels) for pixels in (32, 64))
    assert small is not None
    assert large is not None
    assert work_of(config, 100).flops == pytest.approx((small + large) / 2)


def test_what_a_run_ended_with_replaces_the_duration(config: RunConfig) -> None:
    work = work_of(config, 100, 30, steps=7, evaluations=5)
    assert (work.steps, work.evaluations, work.saves) == (7, 5, 1)


def test_a_model_of_the_users_has_no_known_operations(config: RunConfig) -> None:
    work = work_of(replace(config, model=ModelRecipe(name="my.models:net")), 100)
    assert work.flops is work.weights is work.evaluation_flops is None


def test_evaluation_beside_training_leaves_the_last_one(config: RunConfig) -> None:
    evaluate = EvaluateRecipe(every=Duration(Fraction(1), "epochs"), beside=True)
    assert work_of(replace(config, evaluate=evaluate), 100).evaluations == 1


def test_names_lengths_and_seeds_do_not_make_another_configuration(config: RunConfig) -> None:
    others = {"name": "other", "seed": 3, "duration": Duration(Fraction(9), "steps"), "storage": "/elsewhere"}
    assert configuration(replace(config, **others)) == configuration(config)
    assert configuration(replace(config, batch=BatchRecipe(size=20))) != configuration(config)
    assert configuration(replace(config, workers=Workers(2, 2))) != configuration(config)
    assert program(replace(config, batch=BatchRecipe(size=20))) == program(config)
    of_span = {span: replace(config, batch_norm=BatchNormRecipe(span=span)) for span in ("auto", "global", 5)}
    assert configuration(of_span["auto"]) == configuration(of_span["global"])  # what a run with `auto` records
    assert configuration(of_span["auto"]) != configuration(of_span[5])
    assert program(replace(config, precision="bfloat16")) != program(config)


@pytest.mark.parametrize("has_ray", [True, False])
def test_auto_is_the_configuration_of_the_place_that_it_is_here(
    config: RunConfig, has_ray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.config.schema.has_ray", lambda: has_ray)
    auto = configuration(replace(config, place="auto"))
    assert (auto == configuration(replace(config, place="ray"))) is has_ray
    assert (auto == configuration(replace(config, place="local"))) is not has_ray
