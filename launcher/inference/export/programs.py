"""Exports that hold the computation as well as the weights: torch.export and ONNX. The size of the batch is free."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from launcher.errors import UsageError
from launcher.formatting import printable_lines
from launcher.inference.export.comparison import Outputs
from launcher.inference.export.description import Description
from resnet_dist.inference import TrainedModel

METADATA = "metadata.json"  # the extra file in a .pt2 file
INPUT, OUTPUT = "images", "logits"
_EXAMPLE = 2  # images to trace with; torch takes sizes of 0 and 1 for constants
_DYNAMIC = ({0: Dim("batch")},)  # of the arguments
_LINES_OF_ERRORS = 3


def save_program(file: Path, trained: TrainedModel, about: Description) -> None:
    """Write a program of torch.export, with the description as the extra file `METADATA`.

    Raises UsageError for a model that torch.export cannot trace.
    """
    with _tracing("torch.export", about):
        program = torch.export.export(*_traced(trained, about), dynamic_shapes=_DYNAMIC)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, file, extra_files={METADATA: json.dumps(about.plain())})


def with_torch_export(file: Path) -> Outputs:
    """The program in `file`."""
    module: Outputs = torch.export.load(file).module()
    return module


def save_onnx(file: Path, trained: TrainedModel, about: Description) -> None:
    """Write an ONNX model that onnx's checker accepts, with the description as its metadata.

    Raises UsageError for a model that torch.onnx cannot translate.
    """
    import onnx

    with _tracing("onnx", about):
        made = torch.onnx.export(
            *_traced(trained, about),
            dynamo=True,
            dynamic_shapes=_DYNAMIC,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert made is not None  # with dynamo
    model = made.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths of this machine
    for key, value in about.as_strings().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(file))


def with_onnxruntime(file: Path) -> Outputs:
    """The model in `file`, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _traced(trained: TrainedModel, about: Description) -> tuple[nn.Module, tuple[Tensor]]:
    """The model in float32, and its arguments in the trace."""
    return copy.deepcopy(trained.model).float(), (torch.zeros((_EXAMPLE, *about.input["shape"])),)


@contextlib.contextmanager
def _tracing(format: str, about: Description) -> Iterator[None]:
    """Turn an error in the block into a UsageError: a user's model may do what cannot be traced."""
    try:
        yield
    except Exception as error:  # of many kinds
        problem = f"{about.architecture} cannot be exported for any size of the batch"
        said = "; ".join(printable_lines(error)[:_LINES_OF_ERRORS])
        raise UsageError(f"--format {format}: {problem}: {said}. Allowed: --format safetensors") from error
