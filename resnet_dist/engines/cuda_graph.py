"""Forward and backward pass as one CUDA graph: launched by one call instead of a thousand.

It pays where kernels are shorter than their launches: shares of a few dozen images. Written after torch's notes on
CUDA graphs; never run here for want of a GPU. What does not need one (when it is captured, what is copied, what is
restored) is tested with a stand-in for the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_dist.models.batch_norm import SpanBatchNorm

WARM_UPS = 11  # what torch asks for where DDP is captured: it looks at its buckets again in the first ten

# images, labels -> sum of losses, number of right answers; gradients are left in the parameters
ForwardBackward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Recorder(Protocol):
    """What captures and replays: CUDA's graphs, or a stand-in."""

    def warming_up(self) -> AbstractContextManager[None]:
        """The stream in which the work runs before it is captured."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once while it is recorded; returns what repeats it."""
        ...


class CudaRecorder:
    """CUDA graphs by torch."""

    def warming_up(self) -> AbstractContextManager[None]:
        """A side stream, as torch asks for: the default stream cannot be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        context: AbstractContextManager[None] = torch.cuda.stream(stream)
        return context

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` as a graph."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class GraphedGradients:
    """Calls `run` a few times, records it once, and replays it from then on; for inputs of one shape.

    Gradients are set by each replay, not added to: one micro-batch a step.
    """

    def __init__(self, run: ForwardBackward, module: nn.Module, recorder: Recorder | None = None) -> None:
        self._run, self._module = run, module
        self._recorder = CudaRecorder() if recorder is None else recorder
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of these images; returns the sum of losses and the number of right answers."""
        if self._inputs is None:
            self._inputs = images.clone(), labels.clone()
            self._capture()
        else:
            self._inputs[0].copy_(images)
            self._inputs[1].copy_(labels)
        assert self._replay is not None
        assert self._outputs is not None
        self._replay()
        return self._outputs[0].clone(), self._outputs[1].clone()

    def _capture(self) -> None:
        assert self._inputs is not None
        images, labels = self._inputs
        layers = [layer for layer in self._module.modules() if isinstance(layer, SpanBatchNorm)]
        collected = next((layer.collected for layer in layers if layer.collected is not None), None)  # of all layers
        before = None if collected is None else collected.clone()
        with self._recorder.warming_up():
            for _ in range(WARM_UPS):
                self._run(images, labels)
                self._module.zero_grad(set_to_none=True)

        def work() -> None:
            self._outputs = self._run(images, labels)

        self._replay = self._recorder.capture(work)
        if collected is not None and before is not None:  # nothing of all this belongs to a step
            collected.copy_(before)
