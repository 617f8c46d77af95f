"""Starting from a state dict."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resnet_dist.errors import MissingPackage, RecipeError
from resnet_dist.models import build_model, load_weights
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
    ("content", "problem"),
    [
        (
            {"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": 3},
            "contains values that are not tensors: state_dict, epoch",
        ),
        ([1, 2], "contains an object of type list"),
        (Path("code"), "not a file of tensors only"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_weights(_model(), _save(content, tmp_path / "w.pt"), 10)


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors here, only a sentence"])
def test_a_torn_file_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(RecipeError, match="not a"):
        load_weights(_model(), str(tmp_path / file), 10)


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
