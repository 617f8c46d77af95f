"""Export a trained model: write it, load it in the target, compare the outputs, and only then give it its name."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.inference.export import formats
from launcher.inference.export.formats import Format
from launcher.inference.trained import Saved
from resnet_dist.checkpoint.disk import storage_errors, sync

if TYPE_CHECKING:
    from launcher.inference.export.comparison import Agreement, Images, Outputs
    from launcher.inference.export.description import Description
    from resnet_dist.inference import TrainedModel, Weights
