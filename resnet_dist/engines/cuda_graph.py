"""Forward and backward pass as one CUDA graph: one launch instead of about a thousand.

It is faster if kernels are shorter than their launches: with per-worker batches of a few dozen images. Follows torch's
notes on CUDA graphs. Not tested on a GPU; the parts that need none (when the graph is captured, what is copied, what is
restored) are tested with a replacement for the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resnet_dist.models.batch_norm import SpanBatchNorm

WARM_UPS = 11  # as torch requires for DDP, which may rebuild its buckets in the first ten iterations

# images, labels -> sum of losses, number of correct predictions; sets the gradients of the parameters
ForwardBackward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class CudaRecorder:
    """Captures and replays work with torch's CUDA graphs."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Return a side stream, as torch requires: the default stream cannot be captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        context: AbstractContextManager[None] = torch.cuda.stream(stream)
        return context

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once while recording it; return a function that repeats it."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class GraphedGradients:
    """Calls `run` a few times, records it once, and then replays it. All inputs must have the same shape.

    A replay sets gradients and does not add to them, so a step has one micro-batch.
    """

    def __init__(self, run: ForwardBackward, module: nn.Module, recorder: CudaRecorder | None = None) -> None:
        self._run, self._module = run, module
        self._recorder = CudaRecorder() if recorder is None else recorder
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients; return the sum of losses and the number of correct predictions."""
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
        collected = next(
            (layer.collected for layer in layers if layer.collected is not None), None
        )  # shared by all layers
        before = None if collected is None else collected.clone()
        with self._recorder.warming_up():
            for _ in range(WARM_UPS):
                self._run(images, labels)
                self._module.zero_grad(set_to_none=True)

        def work() -> None:
            self._outputs = self._run(images, labels)

        self._replay = self._recorder.capture(work)
        if collected is not None and before is not None:  # the warm-up is not part of a step
            collected.copy_(before)
