"""Forward and backward pass as one CUDA graph: one launch instead of about a thousand.

It is faster if kernels are shorter than their launches: with per-worker batches of a few dozen images. Follows torch's
notes on CUDA graphs. Not run on a GPU: tests/gpu/test_cuda_graph.py does that. The parts that need none (which stream
is current for what, when the graph is captured, what is copied and restored) are tested with a replacement for the
recorder.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from resnet_dist.models.batch_norm import SpanBatchNorm

WARM_UPS = 11  # as torch requires for DDP, which may rebuild its buckets in the first ten iterations

# images, labels -> sum of losses, number of correct predictions; sets the gradients of the parameters
ForwardBackward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Graph(Protocol):
    """Captured work, as torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        """Repeat the work on the current stream."""
        ...

    def reset(self) -> None:
        """Delete the graph."""
        ...


class Recorder(Protocol):
    """Captures work on a stream of its own."""

    def on_stream(self) -> AbstractContextManager[None]:
        """Make the stream of the capture current; before and after, one stream waits for the other."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Run `work` once on that stream while recording it."""
        ...


class CudaRecorder:
    """Captures work as torch's CUDA graphs.

    All work before the capture is done on the same side stream as the capture: the default stream cannot be captured,
    and the node that adds to a parameter's gradient runs on the stream on which it was created, which DDP's constructor
    does for all parameters. On another stream it would not be part of the graph.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """See `Recorder.on_stream`."""
        callers = torch.cuda.current_stream()
        self._stream.wait_stream(callers)
        with torch.cuda.stream(self._stream):
            yield
        callers.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """See `Recorder.capture`.

        In the mode "thread_local", calls that are not allowed during a capture (such as an allocation or the query of
        an event) end it only if this thread makes them. In torch's default mode, those of NCCL's watchdog and of a
        decoder's threads would, too. One call is not allowed in any thread: to wait for the whole device. A thread of
        DALI does that when an image batch is freed, so no DALI pipeline may be in use: see `GraphedGradients.capture`.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):  # waits for the device
            work()
        return graph


class GraphedGradients:
    """Replays `run`, which was recorded once. All inputs must have the same shape and dtype.

    A replay sets gradients and does not add to them, so a step has one micro-batch.
    """

    def __init__(self, run: ForwardBackward, module: nn.Module, recorder: Recorder | None = None) -> None:
        self._run, self._module = run, module
        self._recorder = CudaRecorder() if recorder is None else recorder
        self._inputs: tuple[Tensor, Tensor] | None = None  # always the same tensors, which the graph reads
        self._outputs: tuple[Tensor, Tensor] | None = None
        self._graph: Graph | None = None

    def on_stream(self) -> AbstractContextManager[None]:
        """The stream of the graph, on which DDP must be constructed."""
        return self._recorder.on_stream()

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients; return the sum of losses and the number of correct predictions.

        The replay and the copies to its inputs are on the current stream, so they wait for what this stream waits for:
        the copy stream, and DALI. The first call captures the graph, if `capture` has not. Raises ValueError for inputs
        of another shape or dtype.
        """
        if self._graph is None:
            self.capture(images, labels)
        assert self._inputs is not None
        assert self._graph is not None
        assert self._outputs is not None
        for own, given in zip(self._inputs, (images, labels), strict=True):
            if (own.shape, own.dtype) != (given.shape, given.dtype):  # copy_ would repeat or convert it
                was, found = f"{own.dtype} {list(own.shape)}", f"{given.dtype} {list(given.shape)}"
                raise ValueError(f"the CUDA graph was captured for inputs of {was}, got {found}")
            own.copy_(given)
        self._graph.replay()
        return self._outputs[0].clone(), self._outputs[1].clone()

    def capture(self, images: Tensor, labels: Tensor) -> None:
        """Warm up and capture, with inputs whose values do not matter. No DALI pipeline may be in use.

        Under DDP a collective. The gradients have no meaning until the next call; the statistics of batch norm are left
        as they were. The warm-up draws from torch's generators.
        """
        self._inputs = images.clone(), labels.clone()
        layers = [layer for layer in self._module.modules() if isinstance(layer, SpanBatchNorm)]
        collected = next(
            (layer.collected for layer in layers if layer.collected is not None), None
        )  # shared by all layers
        before = None if collected is None else collected.clone()
        with self._recorder.on_stream():
            for _ in range(WARM_UPS):
                self._run(*self._inputs)
                self._module.zero_grad(set_to_none=True)

        def work() -> None:
            assert self._inputs is not None
            self._outputs = self._run(*self._inputs)

        gc.collect()  # not during the capture: an earlier run of this process may have left DALI pipelines
        self._graph = self._recorder.capture(work)
        if collected is not None and before is not None:  # the warm-up is not part of a step
            collected.copy_(before)

    def release(self) -> None:
        """Delete the graph; the next call captures another one. To be called before the process group is destroyed.

        NCCL waits with that for the end of every graph that contains its exchanges (pytorch issue 115388).
        """
        if self._graph is not None:
            self._graph.reset()
        self._graph = self._inputs = self._outputs = None
