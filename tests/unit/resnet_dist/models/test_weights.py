"""Starting from a state dict."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resnet_dist.errors import DataError, MissingPackage, RecipeError
from resnet_dist.models import MODELS, ResNet, build_model, load_weights
from resnet_dist.recipe.schema import ModelRecipe


def _model(num_classes: int = 10, seed: int = 0) -> nn.Module:
    return build_model(ModelRecipe(name="resnet20", num_classes=num_classes), seed)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    return _model(seed=7).state_dict()


def _save(state: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.safetensors"])
def test_weights_are_read_from_every_format(tmp_path: Path, trained: dict[str, Tensor], file: str) -> None:
    path = _save(trained, tmp_path / file)
    model = build_model(ModelRecipe(name="resnet20", num_classes=10, weights=path), seed=0)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


def test_a_head_of_another_size_stays_at_its_initialisation_and_is_logged(
    tmp_path: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, fresh = _model(num_classes=3), _model(num_classes=3).state_dict()
    with caplog.at_level(logging.WARNING):
        left_out = load_weights(model, _save(trained, tmp_path / "w.pt"), 3)
    assert left_out == ("fc.weight", "fc.bias")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in left_out else trained[name]), name
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'w.pt'} has a head of another number of classes, which starts untrained: 2 of the model's "
        f"{len(fresh)} tensors, for example fc.weight, [10, 64] in the file and [3, 64] in the model"
    ]


def test_a_head_of_the_same_size_is_loaded_without_a_word(
    tmp_path: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    assert load_weights(_model(), _save(trained, tmp_path / "w.pt"), 10) == ()
    assert not caplog.records


def test_files_without_batch_counters_are_read_and_the_counters_counted(
    tmp_path: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    old = {name: tensor for name, tensor in trained.items() if not name.endswith("num_batches_tracked")}
    model = _model()
    load_weights(model, _save(old, tmp_path / "w.pt"), 10)
    assert torch.equal(model.state_dict()["conv1.weight"], trained["conv1.weight"])
    [message] = caplog.messages
    num = len(trained) - len(old)
    assert f"lacks counters of batch norms, which start at 0: {num} of the model's {len(trained)} tensors" in message
    assert message.endswith("bn1.num_batches_tracked, absent in the file and [] in the model")


def test_missing_names_are_listed_up_to_five(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    few = {name: tensor for name, tensor in trained.items() if not name.startswith("layer3")}
    with pytest.raises(RecipeError, match=r"lacks layer3\.0\.bn1\.bias, .* and 25 more") as caught:
        load_weights(_model(), _save(few, tmp_path / "w.pt"), 10)
    assert caught.value.key == "model.weights"
    assert caught.value.problem.count("layer3") == 5


def test_unexpected_names_are_refused(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    path = _save(trained | {"extra.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(RecipeError, match=r"has names that the model does not have: extra\.weight"):
        load_weights(_model(), path, 10)


def test_another_shape_is_refused_and_nothing_is_loaded(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    path = _save(trained | {"layer1.0.conv1.weight": torch.zeros(16, 16, 1, 1)}, tmp_path / "w.pt")
    model, before = _model(), _model().state_dict()
    with pytest.raises(
        RecipeError, match=r"layer1\.0\.conv1\.weight \[16, 16, 1, 1\] \(the model's is \[16, 16, 3, 3\]\)"
    ):
        load_weights(model, path, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_head_of_another_width_is_not_another_number_of_classes(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    path = _save(trained | {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}, tmp_path / "w.pt")
    with pytest.raises(RecipeError, match=r"another shape: fc\.weight \[5, 32\]"):
        load_weights(_model(), path, 10)


@pytest.mark.parametrize(
    ("wrapped", "logged"),
    [
        (lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}, 0),
        (lambda state: {"state_dict": state, "arch": "resnet20", "best_acc1": torch.tensor(75.0)}, 0),
        (lambda state: {"model_state_dict": state}, 0),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, 0),
        (lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, 0),
        (lambda state: {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}}, 0),
        # timm: the moving average is what it evaluates; the command line is a Namespace
        (lambda state: {"state_dict": _model().state_dict(), "state_dict_ema": state, "args": Namespace(lr=0.1)}, 1),
        # torchvision's references: an AveragedModel
        (
            lambda state: {
                "model": _model().state_dict(),
                "model_ema": {"n_averaged": torch.tensor(7)} | {f"module.{name}": t for name, t in state.items()},
            },
            1,
        ),
    ],
)
def test_state_dicts_are_found_in_the_files_of_training_programs(
    wrapped: Callable[[Any], Any],
    logged: int,
    tmp_path: Path,
    trained: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _save(wrapped(trained), tmp_path / "checkpoint.pth.tar")
    model = build_model(ModelRecipe(name="resnet20", num_classes=10, weights=path), seed=0)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert len(caplog.messages) == logged
    assert all("the moving average of the weights" in message for message in caplog.messages)


def test_a_file_without_a_head_leaves_the_head_untrained(
    tmp_path: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    features = {name: tensor for name, tensor in trained.items() if not name.startswith("fc.")}
    model, fresh = _model(num_classes=3), _model(num_classes=3).state_dict()
    assert load_weights(model, _save(features, tmp_path / "w.pt"), 3) == ("fc.weight", "fc.bias")
    assert torch.equal(model.state_dict()["fc.weight"], fresh["fc.weight"])
    assert torch.equal(model.state_dict()["conv1.weight"], trained["conv1.weight"])
    assert f"{tmp_path / 'w.pt'} has no head, which starts untrained: 2 of the model's" in caplog.text


@pytest.mark.parametrize("name", ["resnet32", "resnet50d"])
def test_weights_of_another_network_of_ours_are_named(name: str, tmp_path: Path) -> None:
    state = {key: torch.zeros(tensor.shape) for key, tensor in ours_without_memory(name).items()}
    with pytest.raises(RecipeError, match=rf"They are weights of {name}\. Allowed: model\.name {name}") as caught:
        load_weights(_model(), _save(state, tmp_path / "w.pt"), 10)
    assert caught.value.others == ("model.name",)


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def ours_without_memory(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return ResNet(MODELS[name], num_classes=7).state_dict()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_names_are_ours(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=7).state_dict()
    assert shapes(theirs) == shapes(ours_without_memory(name))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d", "resnet101d"])
def test_timms_names_are_ours(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=7).state_dict()
    assert shapes(theirs) == shapes(ours_without_memory(name))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"weights": {"conv1.weight": torch.zeros(1)}, "epoch": 3},
            "contains values that are not tensors: weights, epoch",
        ),
        ({"state_dict": {"epoch": 3}}, "contains values that are not tensors: epoch"),
        ([1, 2], "contains an object of type list"),
        (Path("code"), "not a file of tensors only .*save such a file again"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_weights(_model(), _save(content, tmp_path / "w.pt"), 10)


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors here, only a sentence", b"torn"])
def test_a_damaged_file_is_refused(tmp_path: Path, trained: dict[str, Tensor], file: str, content: bytes) -> None:
    if content == b"torn":
        content = Path(_save(trained, tmp_path / file)).read_bytes()[:-100]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged, or not a .*model\.weights") as caught:
        load_weights(_model(), str(tmp_path / file), 10)
    assert caught.value.path == str(tmp_path / file)
    assert "weights_only" not in str(caught.value)  # torch advises to load such a file without it


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match=r"/nowhere/w\.pt: no such file"):
        load_weights(_model(), "/nowhere/w.pt", 10)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"unknown format '\.bin'"):
        load_weights(_model(), str(tmp_path / "w.bin"), 10)


def test_without_safetensors_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingPackage, match="pip install safetensors"):
        load_weights(_model(), str(tmp_path / "w.safetensors"), 10)
