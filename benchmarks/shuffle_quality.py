"""How well `data.order: shards` mixes, as a function of `data.shuffle_window`.

    python -m launcher prepare fashion-mnist
    python -m benchmarks.shuffle_quality

Two measurements, each for shards that are sorted by class and for shards whose samples were shuffled when they were
written:

- The standard deviation of the number of samples of a class in a batch, relative to random batches: 1,281,167 labels
  in 1,000 classes, shards of 1,000 samples, batches of 256.
- The accuracy of a small ResNet on Fashion-MNIST: 6,000 training images in shards of 60, batches of 60, the 10,000
  test images.

Writes results/shuffle_quality.json and prints both tables; `python -m benchmarks.page` adds them to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cross_entropy

from benchmarks.measure import table, write
from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.order import Order, ShardStream, Stream, unevenness
from resnet_dist.data.sources.subset import subset_of
from resnet_dist.models import build_model
from resnet_dist.recipe.schema import ModelRecipe

NUM, CLASSES, PER_SHARD, BATCH = 1_281_167, 1_000, 1_000, 256
WINDOWS = (1_000, 4_096, 16_384, 65_536, 262_144, 1_281_167)

SMALL, SMALL_PER_SHARD, SMALL_BATCH, EPOCHS = 6_000, 60, 60, 4
SMALL_WINDOWS = (60, 480, 1_920)
SEEDS = (0, 1, 2)

Labels = NDArray[np.int64]


def shards(num: int, per_shard: int, labels: Labels, *, shuffled: bool) -> NDArray[np.int64]:
    """The shard of each sample, [num], if samples are written by class, or in random order."""
    in_turn = np.random.default_rng(0).permutation(num) if shuffled else np.argsort(labels, kind="stable")
    found = np.empty(num, np.int64)
    found[in_turn] = np.arange(num) // per_shard
    return found


def orders(num: int, per_shard: int, labels: Labels, windows: Sequence[int], seed: int) -> Iterator[tuple[str, Order]]:
    """All orders that are compared, by name: uniform first."""
    yield "uniform", Stream(num, seed)
    for shuffled in (False, True):
        of_samples = shards(num, per_shard, labels, shuffled=shuffled)
        for window in windows:
            yield f"{'shuffled' if shuffled else 'sorted'} {window}", ShardStream(of_samples, seed, window)


def deviations(labels: Labels, per_shard: int, windows: Sequence[int], batch_size: int) -> dict[str, float]:
    """The unevenness of each order."""
    of_all = orders(len(labels), per_shard, labels, windows, seed=0)
    return {name: unevenness(order, labels, batch_size) for name, order in of_all}


def pixels(index: Index) -> torch.Tensor:
    """All images, float32 [n, 3, 28, 28], about 0 with a deviation of about 1."""
    images = [np.asarray(Image.open(index.path(row)).convert("RGB")) for row in range(len(index))]
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - 0.286) / 0.353


def accuracy(order: Order, seed: int, train: tuple[torch.Tensor, Labels], test: tuple[torch.Tensor, Labels]) -> float:
    """Top-1 on `test` after training in `order`: resnet8, SGD with momentum, cosine decay from 0.1."""
    model = build_model(ModelRecipe(name="resnet8", num_classes=10, width=0.5), seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    num_steps = EPOCHS * order.num_samples // SMALL_BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        ids = order.sample_ids(step * SMALL_BATCH + np.arange(SMALL_BATCH))
        optimizer.zero_grad()
        cross_entropy(model(train[0][ids]), torch.from_numpy(train[1][ids])).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in test[0].split(500)])
    return float((predicted.numpy() == test[1]).mean())


def accuracies(images: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The deviations of the small set's orders, and the accuracies with each seed."""
    index = subset_of(index_image_folder(str(images), "train"), SMALL, seed=0)
    val = index_image_folder(str(images), "val")
    train, test = (pixels(index), index.labels), (pixels(val), val.labels)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for name, order in orders(SMALL, SMALL_PER_SHARD, index.labels, SMALL_WINDOWS, seed):
            found.setdefault(name, []).append(accuracy(order, seed, train, test))
            print(name, seed, f"{found[name][-1]:.4f}", flush=True)
    return deviations(index.labels, SMALL_PER_SHARD, SMALL_WINDOWS, SMALL_BATCH), found


def section(found: Mapping[str, Any]) -> Iterator[str]:
    """The tables, as Markdown."""
    large, small, top1 = found["deviations"], found["small_deviations"], found["top1"]
    yield "The standard deviation of the number of samples of a class in a batch, relative to random batches.\n"
    yield f"Batches of {BATCH}; {NUM:,} samples, {CLASSES:,} classes, {PER_SHARD:,} samples a shard:\n"
    rows = [[f"{w:,}", f"{large[f'sorted {w}']:.2f}", f"{large[f'shuffled {w}']:.2f}"] for w in WINDOWS]
    yield table(["shuffle_window", "shards sorted by class", "shuffled shards"], rows) + "\n"
    yield f"Fashion-MNIST: {SMALL:,} images, shards of {SMALL_PER_SHARD}, batches of {SMALL_BATCH}, {EPOCHS} epochs,"
    yield f"a small ResNet. Top-1 on the 10,000 test images: mean and deviation of {len(found['seeds'])} seeds.\n"
    uniform = [f"{small['uniform']:.2f}", _top1(top1["uniform"])]
    rows = [["order: uniform", *uniform, *uniform]]
    for w in SMALL_WINDOWS:
        cells = ([f"{small[name]:.2f}", _top1(top1[name])] for name in (f"sorted {w}", f"shuffled {w}"))
        rows.append([f"{w:,}", *(cell for pair in cells for cell in pair)])
    yield table(["shuffle_window", "sorted by class", "top-1", "shuffled shards", "top-1"], rows) + "\n"


def _top1(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} %"


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("~/resnet_data/fashion-mnist"), help="(%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    labels = np.arange(NUM, dtype=np.int64) * CLASSES // NUM
    large = deviations(labels, PER_SHARD, WINDOWS, BATCH)
    small, top1 = accuracies(given.images.expanduser())
    found = {"deviations": large, "small_deviations": small, "top1": top1, "seeds": list(SEEDS)}
    print(*section(found), sep="\n")
    print(write("shuffle_quality", found))


if __name__ == "__main__":
    main()
