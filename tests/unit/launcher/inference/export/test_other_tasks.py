"""An exported ResNet is the backbone of torchvision's detection and segmentation networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from launcher.inference.export.exporting import Exported, export
from launcher.inference.trained import saved

WriteCheckpoint = Callable[..., Path]


def backbone_in(file: Path) -> dict[str, Tensor]:
    """The weights in `file` without the classifier."""
    weights = torch.load(file, weights_only=True)
    return {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}


def last_stage(model: nn.Module, images: Tensor) -> Tensor:
    """The output of the last stage of our own network."""
    found: list[Tensor] = []
    model.get_submodule("layer4").register_forward_hook(lambda module, given, output: found.append(output))
    model(images)
    return found[0]


@torch.no_grad()
def test_faster_rcnn(resnet18: Path, exported: Callable[..., Exported]) -> None:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    file = exported("torchvision", resnet18).file
    norm = functools.partial(FrozenBatchNorm2d, eps=1e-3)  # that of the checkpoint
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=3)
    backbone.body.load_state_dict(backbone_in(file))
    images = torch.rand(1, 3, 64, 64)
    expected = last_stage(saved(resnet18).load().model, images)
    assert (backbone.body(images)["3"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    detector = FasterRCNN(backbone, num_classes=2, min_size=64, max_size=64).eval()
    [found] = detector([images[0]])
    assert found["boxes"].shape[1] == 4


@torch.no_grad()
def test_deeplab(checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    from torchvision.models.segmentation import deeplabv3_resnet50

    path = saved(checkpoint({"name": "resnet50", "num_classes": 3}))
    file = export(path, "torchvision", tmp_path / "small.pth").file
    segmenter = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2).eval()
    segmenter.backbone.load_state_dict(backbone_in(file))
    assert segmenter(torch.rand(1, 3, 64, 64))["out"].shape == (1, 2, 64, 64)
