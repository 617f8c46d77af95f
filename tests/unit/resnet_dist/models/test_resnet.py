"""The networks: torchvision's for ImageNet, the paper's numbers for small images."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from resnet_dist.models import MODELS, Bottleneck, ResidualBlock
from resnet_dist.models.resnet import PaddedShortcut

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
SMALL = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


def _on_meta(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name](num_classes)


@pytest.mark.parametrize("name", IMAGENET)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=7)
    ours = _on_meta(name, 7).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert list(ours) == list(theirs.state_dict())


def _meta_then_random(model: nn.Module, seed: int) -> nn.Module:
    """Values everywhere, running statistics too: with 0 and 1 a swapped pair of them would not show."""
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            # Positive for variances; He's variance for weights, so that 152 layers neither explode nor vanish.
            bound = (6 / tensor[0].numel()) ** 0.5
            low, high = (0.2, 0.8) if tensor.dim() == 1 else (-bound, bound)
            tensor.uniform_(low, high, generator=generator)
        else:
            tensor.zero_()
    return model.eval()


@pytest.mark.parametrize("name", IMAGENET)
def test_state_dicts_load_both_ways_and_give_torchvisions_outputs(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=7).double()
    ours = _meta_then_random(_on_meta(name, 7).double(), seed=1)
    theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 33, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, expected = ours(images), theirs(images)
    assert torch.isfinite(logits).all()
    assert (logits - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_gradients_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=7).double()
    ours = _meta_then_random(_on_meta(name, 7).double(), seed=1).train()
    theirs.to_empty(device="cpu").train()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for model in (ours, theirs):
        model(images).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[key].grad, rtol=1e-9, atol=1e-9), key  # type: ignore[arg-type]


def test_a_bottleneck_has_its_stride_on_the_3x3() -> None:
    block = Bottleneck(8, 4, stride=2, downsample=None)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_the_small_networks_have_the_papers_number_of_parameters(name: str, millions: float) -> None:
    """Table 6 of He et al. 2015, in its own number of digits."""
    total = sum(parameter.numel() for parameter in _on_meta(name, 10).parameters())
    assert round(total / 1e6, 1 if name == "resnet110" else 2) == millions


@pytest.mark.parametrize("name", SMALL)
def test_the_small_networks_have_the_depth_in_their_name(name: str) -> None:
    layers = [m for m in _on_meta(name, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert f"resnet{len(layers)}" == name


def test_the_small_networks_keep_32_pixels_then_16_then_8() -> None:
    model = MODELS["resnet20"](10)
    sizes: list[torch.Size] = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape))  # type: ignore[union-attr]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_option_a_takes_every_other_pixel_and_adds_channels_of_zeros() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float64).reshape(1, 2, 4, 4)
    y = PaddedShortcut(stride=2, new_channels=3)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert torch.equal(y[:, 2:], torch.zeros(1, 3, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_channels_last_is_kept_and_changes_nothing(name: str) -> None:
    model = _meta_then_random(_on_meta(name, 5).double(), seed=3)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        layouts = []
        for block in (m for m in model.modules() if isinstance(m, ResidualBlock)):
            block.register_forward_hook(
                lambda _module, _inputs, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last))
            )
        logits = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_the_network_is_one_graph(name: str) -> None:
    """Nothing in it depends on values: tracing fails otherwise."""
    exported = torch.export.export(_on_meta(name, 5).eval(), (torch.zeros(2, 3, 32, 32, device="meta"),), strict=False)
    assert any(node.op == "output" for node in exported.graph.nodes)
