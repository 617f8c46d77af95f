"""Models that are not exactly ours train right on 1, 2 and 3 workers, under DDP in float64 and under ZeRO."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import launcher
from launcher.train import main
from resnet_dist.testing import check_model
from resnet_dist.testing.trial import Result, Trial, run

MODELS = (
    *("plain", "recomputed", "recomputed_reentrantly", "frozen", "frozen_by_train"),
    *("uncalled", "twice", "never_used"),
)
# workers, micro-batches, engine; with spans of 5 of 10 samples some lie on one worker, others on several
WAYS = [(1, 1, "ddp"), (1, 2, "ddp"), (2, 1, "ddp"), (2, 2, "ddp"), (3, 1, "ddp"), (3, 2, "ddp")]
WAYS += [(1, 1, "zero-0"), (2, 2, "zero-1"), (2, 1, "zero-2")]
ONE_ORDER = WAYS[:-1]  # in which gradients are exchanged in an order that no graph changes
TOLERANCE = {"ddp": 1e-9, "zero": 2e-6}  # relative; ZeRO's weights are float32
STATISTICS = torch.full((4,), 0.3)  # what running means and variances begin with

Way = tuple[int, int, str]
Runs = dict[tuple[str, Way], list[Result]]


@pytest.fixture(scope="module", autouse=True)
def models() -> Iterator[None]:
    """The folder of `models_of_users`, for this process and for workers."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


def trial(model: str, way: Way = (1, 1, "ddp"), **more: Any) -> Trial:
    workers, num_micro_batches, engine = way
    return Trial(
        f"models_of_users:{model}",
        resolution=8,
        span=5,
        workers=workers,
        num_micro_batches=num_micro_batches,
        engine=engine,
        **more,
    )


@pytest.fixture(scope="module")
def runs(models: None) -> Runs:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    keys = [*itertools.product(MODELS, WAYS), *itertools.product(["sometimes_used"], ONE_ORDER)]
    found = run([trial(*key) for key in keys])
    assert [result for result in found if isinstance(result, str)] == []
    return dict(zip(keys, found, strict=True))  # type: ignore[arg-type]


def close(found: Result, expected: Result, engine: str) -> None:
    tolerance = TOLERANCE[engine.partition("-")[0]]
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)
    assert found.evaluation == pytest.approx(expected.evaluation, rel=tolerance)
    for name, tensor in expected.state.items():
        torch.testing.assert_close(
            found.state[name].double(), tensor.double(), rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("way", WAYS[1:], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_one_curve(runs: Runs, model: str, way: Way) -> None:
    for result in runs[model, way]:
        close(result, runs[model, WAYS[0]][0], way[2])


@pytest.mark.parametrize("way", ONE_ORDER[1:], ids=str)
def test_a_parameter_that_some_samples_use_has_one_curve(runs: Runs, way: Way) -> None:
    for result in runs["sometimes_used", way]:
        close(result, runs["sometimes_used", WAYS[0]][0], way[2])
        assert result.state["between.sometimes"].std() > 0


def test_compiled_models_have_one_curve_where_workers_share_spans(runs: Runs) -> None:
    ways = [(2, 1, "ddp"), (2, 2, "ddp")]  # aot_eager: the compiler's front, without minutes of C++
    keys = list(itertools.product(["plain", "frozen", "twice"], ways))
    found = run([trial(*key, compile_backend="aot_eager") for key in keys])
    for key, results in zip(keys, found, strict=True):
        assert not isinstance(results, str), results
        for result, expected in zip(results, runs[key], strict=True):
            close(result, expected, "ddp")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant checkpointing in an evaluation
def test_a_parameter_without_a_gradient_is_refused_where_the_graph_hides_it_from_several_workers() -> None:
    (error,) = run([trial("hidden_and_unused", (2, 1, "ddp"))])
    assert isinstance(error, str)
    assert error.startswith("RecipeError: model.name: the loss does not depend on between.never, which reentrant")
    ways = [
        (1, 1, "ddp"),
        (1, 1, "zero-0"),
        (2, 1, "zero-0"),
        (2, 1, "zero-1"),
        (2, 1, "zero-2"),
    ]  # these need no order
    keys = [(model, way) for way in ways for model in ("hidden_and_unused", "never_used")]
    results = dict(zip(keys, run([trial(*key) for key in keys]), strict=True))
    for way in ways:
        found, expected = results["hidden_and_unused", way], results["never_used", way]
        assert not isinstance(found, str), found
        assert not isinstance(expected, str), expected
        assert found[0].losses == expected[0].losses
        assert torch.equal(found[0].state["between.never"], expected[0].state["between.never"])


def test_a_parameter_that_some_workers_use_is_refused_where_gradients_are_exchanged_as_they_come() -> None:
    (error,) = run([trial("sometimes_used", (2, 1, "zero-2"))])
    assert isinstance(error, str)
    assert "RecipeError: engine.stage: the loss depends on between.sometimes in some steps or on some" in error


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("model", ["recomputed", "recomputed_reentrantly"])
def test_recomputation_changes_nothing(runs: Runs, model: str, way: Way) -> None:
    for found, expected in zip(runs[model, way], runs["plain", way], strict=True):
        assert found.losses == expected.losses
        for name, tensor in expected.state.items():
            assert torch.equal(found.state[name], tensor), name


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    ("model", "layer"), [("frozen", "second.1"), ("frozen_by_train", "second.1"), ("uncalled", "between.norm")]
)
def test_a_layer_that_normalises_nothing_in_training_keeps_its_bits(
    runs: Runs, model: str, layer: str, way: Way
) -> None:
    for result in runs[model, way]:
        for name in ("running_mean", "running_var"):
            statistics = result.state[f"{layer}.{name}"]
            assert torch.equal(statistics, STATISTICS.to(statistics.dtype))
            assert not torch.equal(result.state[f"first.1.{name}"], statistics)  # the others move
        assert result.state[f"{layer}.num_batches_tracked"] == 0
        assert result.state["first.1.num_batches_tracked"] == 4


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_parameter_without_a_gradient_decays_everywhere(runs: Runs, way: Way) -> None:
    """Of SGD with weight decay 1e-3, momentum 0.9 and learning rate 0.01, by hand."""
    weight, velocity = 1.0, 0.0
    for _ in range(4):
        velocity = 0.9 * velocity + 1e-3 * weight
        weight -= 0.01 * velocity
    for result in runs["never_used", way]:
        never = result.state["between.never"].double()
        torch.testing.assert_close(never, torch.full_like(never, weight), rtol=1e-7, atol=0)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_shared_layer_that_only_some_workers_call_is_refused(workers: int) -> None:
    (error,) = run([trial("on_some_workers", (workers, 2, "ddp"))])
    assert isinstance(error, str)
    assert error.startswith("RecipeError: batch_norm.span: worker 0 is at between.norm (forward pass), worker")
    assert f"worker {workers - 1} at second.1 (forward pass): workers with common spans must" in error
    assert ";" not in error  # all workers say the same


class TestCheckModel:
    @pytest.mark.parametrize(
        ("model", "more"),
        [
            ("models_of_users:twice", {}),
            ("models_of_users:dropout", {"draws_random_numbers": True}),
            ("timm:create_model", {"arguments": {"model_name": "resnet10t", "channels": [8, 16, 32, 64]}}),
            ("models_of_users:timm_recomputed", {}),
            ("models_of_users:torchvision_frozen", {}),
        ],
    )
    def test_a_model_that_keeps_its_curve_conforms(self, model: str, more: dict[str, Any]) -> None:
        check_model(model, resolution=8, num_steps=2, batch_size=6, **more)

    @pytest.mark.parametrize(
        ("model", "lines"),
        [
            (
                "dropout",
                ["a run on 2 workers has another loss in step 1", "between draws random numbers, which depend"],
            ),
            (
                "careless",
                [
                    "a second run has another loss in step 1",
                    "a run with 2 micro-batches has another loss in step 1",
                    "between.0 draws random numbers from other generators than torch's",
                    "between.1 mixes samples",
                    "between.2.never does not affect the loss",
                ],
            ),
            ("reshaped", ["a second run fails: RecipeError: model.name: between.1 gets 40 rows for 10 samples"]),
            ("spectral_norm", ["a run with 2 micro-batches has the same losses, but ends with another second.0.param"]),
            ("instance_norm", ["a run on 2 workers leaves worker 1 with another between.running_mean than worker 0"]),
            (
                "on_some_workers",
                ["a run on 2 workers with 2 micro-batches fails: RecipeError: batch_norm.span: worker"],
            ),
        ],
    )
    def test_what_does_not_hold_is_said_in_a_line_each(self, model: str, lines: list[str]) -> None:
        with pytest.raises(AssertionError) as caught:
            check_model(f"models_of_users:{model}", resolution=8, num_steps=2)
        first, *said = str(caught.value).splitlines()
        assert first == f"models_of_users:{model} does not conform:"
        for line in lines:
            assert [found for found in said if found.startswith(f"- {line}")], said
        accused = [found for found in said if "draws random numbers" in found]
        assert accused == [] or model in ("dropout", "careless")

    @pytest.mark.parametrize("sizes", [{"num_steps": 1}, {"batch_size": 9}, {"batch_size": 2}])
    def test_sizes_that_are_too_small_are_refused(self, sizes: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="at least 2 steps, and an even batch of at least 4"):
            check_model("models_of_users:plain", **sizes)

    def test_a_function_that_workers_cannot_import_is_refused(self) -> None:
        with pytest.raises(ValueError, match="workers cannot import it"):
            check_model(lambda num_classes: torch.nn.Identity())


# --- through the launcher


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "first",
        "storage": str(tmp_path / "runs"),
        "place": "local",
        "duration": "6 steps",
        "model": {"name": "models_of_users:dropout", "num_classes": 10},
        "data": {"root": str(digits), "resolution": 16, "flip": False},
        "batch": {"size": 8},
        "schedule": {"peak_lr": 0.01, "decay": "constant"},
        "evaluate": {"every": "1000 steps"},
        "log": {"every_steps": 1, "tensorboard": False},
    }


def losses(fitted: launcher.Run) -> list[float]:
    return [record["loss"] for record in fitted.metrics.to_dict("records") if record["kind"] == "train"]


def test_a_model_with_dropout_repeats_its_bits_in_a_second_run_and_after_a_resume(config: dict[str, Any]) -> None:
    first = losses(launcher.fit(config))
    assert losses(launcher.fit(config, name="second", evaluate={"every": "1 steps"})) == first
    launcher.fit(config, name="third", duration="3 steps")
    assert losses(launcher.fit(config, name="third")) == first
    assert losses(launcher.fit(config, name="other", seed=1)) != first


def test_one_value_a_channel_is_refused_by_name(config: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    model = {"name": "resnet18", "num_classes": 10}
    data = {**config["data"], "resolution": 32}
    file = written({**config, "model": model, "data": data, "batch_norm": {"span": 1}}, tmp_path)
    assert main([file, "faults.max_failures=0"]) == 78
    error = capsys.readouterr().err
    assert "batch_norm.span: a span of 1 sample has one value per channel at layer4.0." in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("steps", "last", "problem"),
    [
        (5, 5, "all 5 steps were skipped: float16 gradients overflow with a loss scale of 4096."),
        (30, 17, "float16 gradients of step 17 overflow with a loss scale of 1, the smallest."),
    ],
)
def test_float16_that_skips_every_step_ends_with_79_and_names_the_scale(
    config: dict[str, Any], tmp_path: Path, capsys: Any, steps: int, last: int, problem: str
) -> None:
    model = {"name": "models_of_users:large_logits", "num_classes": 10}
    file = written({**config, "model": model, "precision": "float16", "duration": f"{steps} steps"}, tmp_path)
    assert main([file, "faults.max_failures=0"]) == 79
    error = capsys.readouterr().err
    assert f"training diverged: {problem} Use precision bfloat16 or float32" in error
    records = [json.loads(line) for line in (tmp_path / "runs" / "first" / "metrics.jsonl").read_text().splitlines()]
    rows = [record for record in records if record["kind"] == "train"]
    assert [row["num_skipped"] for row in rows] == [row["step"] for row in rows]
    assert [row["loss_scale"] for row in rows] == [65536 / 2 ** (row["step"] - 1) for row in rows]
    assert len(rows) == last - 1  # the row of the step that ends the run is not written


def written(config: dict[str, Any], folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)
