"""Metrics of the studies in configs/studies: each gets a finished run, and returns numbers by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from launcher.api import Run
from launcher.config.schema import RunConfig
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint.restore import newest
from resnet_dist.data.crops import evaluation_windows
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import BatchRequest
from resnet_dist.data.index.shared import index_file
from resnet_dist.data.index.table import Index
from resnet_dist.data.loader import normalise
from resnet_dist.data.order import Stream
from resnet_dist.data.storage.files import files_of
from resnet_dist.models import build_model
from resnet_dist.models.loss import cross_entropy_sum, num_correct
from resnet_dist.telemetry.metrics_file import read_metrics

END = 0.2  # the part of a run, at its end, over which the training loss is averaged
SMALL = 1e-3  # magnitude below which a weight counts as small
TARGET = 0.8  # training loss for `steps_to_target`
WINDOW = 2_048  # images over which the training loss is averaged for `steps_to_target`
MODE_IMAGES = 1_024  # for `modes`


def training(run: Run) -> dict[str, float]:
    """training_loss: mean of the last fifth of the steps, in training mode; needs `log.every_steps: 1`."""
    losses = _losses(run)
    return {"training_loss": float(np.mean(losses[-max(1, round(END * len(losses))) :]))}


def steps_to_target(run: Run) -> dict[str, float]:
    """steps_to_target: steps until the mean training loss of the latest images is at most `TARGET`.

    Left out if the run does not come that far.
    """
    losses, window = _losses(run), max(1, WINDOW // run.config.batch.size)
    for step in range(window, len(losses) + 1):
        if np.mean(losses[step - window : step]) <= TARGET:
            return {"steps_to_target": float(step)}
    return {}


def parameters(run: Run) -> dict[str, float]:
    """parameters: the number of parameters of the network."""
    return {"parameters": float(sum(parameter.numel() for parameter in _model(run).parameters()))}


def gradients(run: Run) -> dict[str, float]:
    """gradient_ratio: norm of the first layer's gradient / norm of the last convolution's, at step 1."""
    norms = [layer["gradient_norm"] for name, layer in _layers(run).items() if name != "fc"]
    return {"first_gradient": norms[0], "gradient_ratio": norms[0] / norms[-1] if norms[-1] > 0 else float("nan")}


def activations(run: Run) -> dict[str, float]:
    """activation_ratio: standard deviation of the last convolution's outputs / the first one's, at step 1.

    gradient_ratio is that of the gradient of the loss with respect to the outputs: first / last.
    """
    layers = [layer for name, layer in _layers(run).items() if name != "fc"]
    forward = [layer["activation_std"] for layer in layers]
    backward = [layer["output_gradient_std"] for layer in layers]
    found = {"activation_ratio": forward[-1] / forward[0]}
    if backward[-1] > 0:
        found["gradient_ratio"] = backward[0] / backward[-1]
    return found


def weights(run: Run) -> dict[str, float]:
    """small_weights: the fraction of decaying weights below `SMALL`; weight_norm: the L2 norm of all of them."""
    decaying = torch.cat([weight.flatten() for weight in _decaying(_model(run))])
    return {
        "small_weights": float((decaying.abs() < SMALL).double().mean()),
        "weight_norm": float(decaying.double().norm()),
    }


@torch.no_grad()
def modes(run: Run) -> dict[str, float]:
    """The same network on the same val images in training mode (statistics of a span) and in evaluation mode.

    Nothing without batch norm.
    """
    model, config = _model(run), run.config
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return {}
    span = config.batch_norm.span if isinstance(config.batch_norm.span, int) else config.batch.size
    images, labels = _val_images(run, config)
    parts = list(zip(torch.split(images, span), torch.split(labels, span), strict=True))
    found: dict[str, float] = {}
    for mode in ("evaluation", "training"):  # a pass in training mode changes the running statistics
        model.train(mode == "training")
        outputs = [(model(part), targets) for part, targets in parts]
        loss = sum(float(cross_entropy_sum(logits, targets)) for logits, targets in outputs)
        correct = sum(int(num_correct(logits, targets)) for logits, targets in outputs)
        found |= {f"{mode}_mode_loss": loss / len(labels), f"{mode}_mode_top1": correct / len(labels)}
    return found


def _losses(run: Run) -> list[float]:
    records = read_metrics(RunDirectory.at(run.path).metrics)
    return [float(record["loss"]) for record in records if record["kind"] == "train"]


def _layers(run: Run) -> dict[str, dict[str, float]]:
    """The first "layers" record."""
    records = read_metrics(RunDirectory.at(run.path).metrics)
    return next(dict(record["layers"]) for record in records if record["kind"] == "layers")


def _model(run: Run) -> nn.Module:
    """The network with the weights of the newest checkpoint."""
    config = run.config
    checkpoint = newest(RunDirectory.at(run.path).checkpoints)
    assert checkpoint is not None, run.path
    model = build_model(config.model, config.seed)
    model.load_state_dict(checkpoint.model())
    return model


def _decaying(model: nn.Module) -> Iterator[Tensor]:
    """The weights of convolutions and linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.weight.detach()


def _val_images(run: Run, config: RunConfig) -> tuple[Tensor, Tensor]:
    """`MODE_IMAGES` images of the val split in a random order, float32 [n, 3, height, width], and labels int64 [n]."""
    index = Index.load(index_file(RunDirectory.at(run.path).index, "val"))
    positions = np.arange(MODE_IMAGES, dtype=np.int64)
    ids = Stream(len(index), 0).sample_ids(positions)
    windows = evaluation_windows(index.heights[ids], index.widths[ids], config.data.evaluation_crop)
    flips, files = np.zeros(len(ids), dtype=np.bool_), files_of(index)
    request = BatchRequest.of(index, files, positions, ids, windows, flips, config.data.resolution)
    (decoded,) = CpuDecoder(1, 1).decode(iter([request]))
    pixels = normalise(decoded.images, config.data.mean, config.data.std, torch.float32)
    return pixels, torch.from_numpy(index.labels[ids])
