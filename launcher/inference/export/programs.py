"""Exports that hold the computation as well as the weights: torch.export and ONNX. The size of the batch is free."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import Dim, ExportedProgram

from launcher.errors import UsageError
from launcher.formatting import printable_lines
from launcher.inference.export.comparison import Outputs
from launcher.inference.export.description import Description
from resnet_dist.inference import TrainedModel

if TYPE_CHECKING:
    from onnx import GraphProto

METADATA = "metadata.json"  # the extra file in a .pt2 file
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_EXAMPLE = 2  # images to trace with; torch takes sizes of 0 and 1 for constants


def save_program(file: Path, trained: TrainedModel, about: Description) -> None:
    """Write a program of torch.export, with the description as the extra file `METADATA`.

    Raises UsageError for a model that torch.export cannot trace.
    """
    program = _traced("torch.export", trained, about)
    torch.export.save(program, file, extra_files={METADATA: json.dumps(about.plain())})


def with_torch_export(file: Path) -> Outputs:
    """The program in `file`."""
    module: Outputs = torch.export.load(file).module()
    return module


def save_onnx(file: Path, trained: TrainedModel, about: Description) -> None:
    """Write an ONNX model that onnx's checker accepts, with the description as its metadata.

    Raises UsageError for a model that torch.export cannot trace or torch.onnx cannot translate.
    """
    import onnx

    program = _traced("onnx", trained, about)
    with _errors("onnx", about):
        made = torch.onnx.export(program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert made is not None  # with dynamo
    model = made.model_proto
    _name_batch(model.graph)
    for key, value in about.as_strings().items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(file))


def with_onnxruntime(file: Path) -> Outputs:
    """The model in `file`, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _traced(format: str, trained: TrainedModel, about: Description) -> ExportedProgram:
    """The model in float32, traced for any size of the batch, without paths of this machine."""
    example = torch.zeros((_EXAMPLE, *about.input["shape"]))
    with _errors(format, about):
        model = copy.deepcopy(trained.model).float()
        program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim(BATCH)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _name_batch(graph: GraphProto) -> None:
    """Give the size of the batch its name: torch.onnx numbers the unknowns of a program."""
    number = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = size.dim_param.replace(number, BATCH)


@contextlib.contextmanager
def _errors(format: str, about: Description) -> Iterator[None]:
    """Turn an error in the block into a UsageError: a user's model may do what cannot be traced.

    What torch prints and logs about it, graphs and advice for its developers, is left out.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:  # of many kinds
        problem = f"{about.architecture} cannot be exported for any size of the batch"
        said = printable_lines(error)[0].rstrip(".")
        raise UsageError(f"--format {format}: {problem}: {said}. Allowed: --format safetensors") from error
    finally:
        logging.disable(disabled)
