"""torch.compile of a model whose batch-norm spans lie on two workers: its graphs, and the same numbers as without it.

The world of gloo processes runs once: this file, as a script, writes what every worker has computed of every case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo import utils as dynamo
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.models.batch_norm import use_spans
from resnet_dist.models.running_statistics import RunningStatistics
from resnet_dist.models.spans import Spans
from resnet_dist.recipe.batch_layout import BatchLayout
from tests.distributed.forked import run_forked, run_script

WORLD_SIZE, STEPS, TIMEOUT_S = 2, 3, 480
BUCKET_MB = 1  # the least that DDPOptimizer accepts, and less than the gradients: it splits the graph
# 7 samples: 3 | 4, one slice on each worker. 20: 10 | 10, of which 2 | 2 are one span and the others lie on one worker.
SPANS: dict[str, tuple[int, int | Literal["global", "worker"]]] = {
    "global": (7, "global"),
    "crossing": (20, 4),
    "own": (20, "worker"),
    "several": (20, 5),
}
FORMS = ("plain", "ddp")


class Network(nn.Module):
    """Not a Sequential: of torch's own modules, compiled code contains the hooks, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for channels, wider in ((3, 16), (16, 192)):
            layers += [nn.Conv2d(channels, wider, 3), nn.BatchNorm2d(wider), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192 * 16, 50)).double()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.layers(images)
        return output


def run(name: str, form: str, compiled: bool, rank: int) -> dict[str, Any]:
    """Some steps of training: the losses, the last gradients and buffers, and the graphs."""
    size, span = SPANS[name]
    layout = BatchLayout(size, world_size=WORLD_SIZE)
    net = use_spans(Network(), Spans(layout, rank, span))
    statistics = RunningStatistics(net)
    num_compiled = 0

    def backend(*arguments: Any) -> Callable[..., Any]:
        nonlocal num_compiled
        num_compiled += 1
        return aot_eager(*arguments)  # type: ignore[no-any-return]

    torch.compiler.reset()
    dynamo.counters.clear()
    model: Any = torch.compile(net, backend=backend, dynamic=False) if compiled else net
    if form == "ddp":
        model = DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB)
    own = layout.worker_micro_batch(0, rank)
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(size, 3, 8, 8, dtype=torch.float64, generator=generator)
        net.zero_grad()
        loss: Tensor = model(batch[own.start : own.stop]).square().mean()
        loss.backward()
        losses.append(loss.item())
        sums = statistics.sums()
        dist.all_reduce(sums)
        statistics.update(sums, dist.all_reduce)
    return {
        "losses": losses,
        "gradients": [parameter.grad for parameter in net.parameters()],
        "buffers": [buffer.clone() for buffer in net.buffers()],
        "graphs": dynamo.counters["stats"]["unique_graphs"],
        "breaks": dict(dynamo.counters["graph_break"]),
        "compiled": num_compiled,
    }


def worker(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    cases = [(name, form, compiled) for name in SPANS for form in FORMS for compiled in (False, True)]
    torch.save({case: run(*case, rank) for case in cases}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str, bool], dict[str, Any]]]:
    """What each worker has computed, by spans, form and whether compiled."""
    folder = tmp_path_factory.mktemp("world")
    done = run_script(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_breaks_no_graph(
    results: list[dict[tuple[str, str, bool], dict[str, Any]]], name: str, form: str
) -> None:
    for of_worker in results:
        found = of_worker[name, form, True]
        assert (found["graphs"], found["breaks"]) == (1, {})
        # under DDP it is split where its buckets end, not at batch norm
        assert found["compiled"] == of_worker["own", form, True]["compiled"]
        assert (found["compiled"] > 1) is (form == "ddp")


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_numbers_are_those_without(
    results: list[dict[tuple[str, str, bool], dict[str, Any]]], name: str, form: str
) -> None:
    for of_worker in results:
        expected, found = of_worker[name, form, False], of_worker[name, form, True]
        for key in ("losses", "gradients", "buffers"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    assert run_forked(partial(worker, target), WORLD_SIZE, TIMEOUT_S) == [0] * WORLD_SIZE
