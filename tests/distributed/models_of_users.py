"""Models that are not exactly ours, as users write them: `package.module:function` of the tests around."""

from __future__ import annotations

import numpy as np
import timm
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Two blocks with batch norm, and whatever a test puts between them."""

    def __init__(self, num_classes: int, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.second = block(3), between or nn.Identity(), block(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(self.second(self.between(self.first(images))).mean((2, 3)))
        return output


def block(channels: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    layers[1].running_mean.fill_(0.3)
    layers[1].running_var.fill_(0.3)
    return layers


def plain(*, num_classes: int) -> nn.Module:
    return Net(num_classes)


class Recomputed(Net):
    """Its blocks are computed again in the backward pass."""

    reentrant = False

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images) if self.reentrant else checkpoint(self.first, images, use_reentrant=False)
        hidden = checkpoint(self.second, self.between(hidden), use_reentrant=self.reentrant)
        output: Tensor = self.head(hidden.mean((2, 3)))
        return output


class RecomputedReentrantly(Recomputed):
    reentrant = True


def recomputed(*, num_classes: int) -> nn.Module:
    return Recomputed(num_classes)


def recomputed_reentrantly(*, num_classes: int) -> nn.Module:
    return RecomputedReentrantly(num_classes)


def frozen(*, num_classes: int) -> nn.Module:
    net = Net(num_classes)
    net.second[1].eval()
    return net


class Uncalled(nn.Module):
    """Leaves out the layer that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = block(4)[1]

    def forward(self, images: Tensor) -> Tensor:
        return images


def uncalled(*, num_classes: int) -> nn.Module:
    return Net(num_classes, Uncalled())


class Twice(nn.Module):
    """One batch norm at two places, whose inputs differ in size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = block(4)[1]

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.norm(nn.functional.avg_pool2d(self.norm(images), 2) + 1)
        return output


def twice(*, num_classes: int) -> nn.Module:
    return Net(num_classes, Twice())


class OnSomeWorkers(nn.Module):
    """A batch norm that every worker but the last calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        if dist.is_initialized() and dist.get_rank() == dist.get_world_size() - 1:
            return images
        output: Tensor = self.norm(images)
        return output


def on_some_workers(*, num_classes: int) -> nn.Module:
    return Net(num_classes, OnSomeWorkers())


class SometimesUsed(nn.Module):
    """Two scales: one never used, one for samples whose mean is above the middle one of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.sometimes = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3)) > 0.5
        if not bright.any():
            return images
        return torch.where(bright.view(-1, 1, 1, 1), images * self.sometimes, images)


class NeverUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        return images


def never_used(*, num_classes: int) -> nn.Module:
    return Net(num_classes, NeverUsed())


def sometimes_used(*, num_classes: int) -> nn.Module:
    return Net(num_classes, SometimesUsed())


def dropout(*, num_classes: int) -> nn.Module:
    return Net(num_classes, nn.Dropout(0.3))


class TrainOverride(Net):
    """Freezes a layer in `train`, as torchvision's segmentation models and many others do."""

    def train(self, mode: bool = True) -> TrainOverride:
        super().train(mode)
        for module in self.second.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def frozen_by_train(*, num_classes: int) -> nn.Module:
    return TrainOverride(num_classes)


class HiddenAndUnused(RecomputedReentrantly):
    """A parameter without a gradient in a graph that does not show it."""


def hidden_and_unused(*, num_classes: int) -> nn.Module:
    return HiddenAndUnused(num_classes, NeverUsed())


def reshaped(*, num_classes: int) -> nn.Module:
    return Net(num_classes, nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8), nn.Unflatten(0, (-1, 4))))


def spectral_norm(*, num_classes: int) -> nn.Module:
    net = Net(num_classes)
    nn.utils.parametrizations.spectral_norm(net.second[0])
    return net


class MixesSamples(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - images.mean(0, keepdim=True) / 8


class NumpyNoise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * float(np.random.rand())


def careless(*, num_classes: int) -> nn.Module:
    return Net(num_classes, nn.Sequential(NumpyNoise(), MixesSamples(), SometimesUsed()))


def instance_norm(*, num_classes: int) -> nn.Module:
    return Net(num_classes, nn.InstanceNorm2d(4, affine=True, track_running_stats=True))


class LargeLogits(Net):
    """Logits whose gradients exceed what float16 can hold, whatever the loss scale is; the loss itself is finite."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).float() * 1e9


def large_logits(*, num_classes: int) -> nn.Module:
    return LargeLogits(num_classes)


def timm_recomputed(*, num_classes: int) -> nn.Module:
    model: nn.Module = timm.create_model("resnet18", num_classes=num_classes, channels=(8, 16, 32, 64))
    model.set_grad_checkpointing()
    return model


def torchvision_frozen(*, num_classes: int) -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    model: nn.Module = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return model
