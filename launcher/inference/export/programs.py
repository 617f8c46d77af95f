"""Exports that hold the computation as well as the weights: torch.export and ONNX."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher.errors import UsageError
from launcher.formatting import first_line
from launcher.inference.export.description import Description
from resnet_dist.inference import TrainedModel

METADATA = "metadata.json"  # the extra file in a .pt2 file
INPUT, OUTPUT = "images", "logits"
