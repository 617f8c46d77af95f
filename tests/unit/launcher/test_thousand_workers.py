"""A run on 1,024 workers whose nodes fail at random, through the real retry policy, batch layout and order.

128 nodes of 8 workers that do nothing but say which images they take. Whatever fails, and however many workers are
left, step k has the images that an undisturbed run gives it, each once, and the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from launcher.recovery.policy import Failure, History, Policy, Retry, decide, workers_for
from resnet_dist.data.order import Stream
from resnet_dist.recipe.batch_layout import BatchLayout

NUM_NODES, WORKERS_PER_NODE = 128, 8
BATCH_SIZE, NUM_MICRO_BATCHES = 4096, 2
NUM_SAMPLES = 10_007  # a prime: epochs end inside batches
TOTAL_STEPS, SAVE_EVERY = 60, 7
POLICY = Policy(min_workers=512, max_workers=1024, max_failures=3, max_node_failures=2)


@dataclass
class Cluster:
    """Nodes that fail, and come back a few attempts later, unless they are lemons."""

    chance: np.random.Generator
    failure_rate: float  # of a node in a step
    lemons: frozenset[int] = frozenset()  # nodes that fail far more often
    down: dict[int, int] = field(default_factory=dict)  # node -> attempts until it is back

    def slots(self) -> dict[str, int]:
        return {f"n{node}": WORKERS_PER_NODE for node in range(NUM_NODES) if node not in self.down}

    def new_attempt(self) -> None:
        self.down = {node: left - 1 for node, left in self.down.items() if left > 1}

    def failing(self, used: list[int]) -> int | None:
        """The node of those in use that fails in this step, if any."""
        rates = np.where(np.isin(used, list(self.lemons)), 0.05, self.failure_rate)
        hit = np.flatnonzero(self.chance.random(len(used)) < rates)
        if not hit.size:
            return None
        node = used[int(hit[0])]
        self.down[node] = int(self.chance.integers(1, 4))
        return node


@dataclass
class Outcome:
    """What became of the run."""

    steps: dict[int, NDArray[np.int64]]  # the samples of each completed step, as its last execution took them
    world_sizes: list[int]
    excluded: tuple[str, ...]
    exit_code: int | None  # None: it reached its end
    steps_made: int = 0


def take(stream: Stream, step: int, world_size: int) -> NDArray[np.int64]:
    """The samples of a step, micro-batch by micro-batch and worker by worker: each worker works out its own alone."""
    layout = BatchLayout(BATCH_SIZE, NUM_MICRO_BATCHES, world_size)
    parts = [
        layout.worker_micro_batch(number, rank) for number in range(NUM_MICRO_BATCHES) for rank in range(world_size)
    ]
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    positions = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    return stream.sample_ids(step * BATCH_SIZE + positions)


def train(cluster: Cluster, seed: int, policy: Policy = POLICY) -> Outcome:
    """The driver's loop: as many workers as there are, from the newest checkpoint, until the end or a decision."""
    stream = Stream(NUM_SAMPLES, seed)
    outcome = Outcome({}, [], (), None)
    history, saved, attempt = History(), 0, 0
    while True:
        attempt += 1
        assert attempt < 1_000, "it does not end"
        slots = cluster.slots()
        world_size = workers_for(policy, slots, history.excluded)
        if not world_size:
            cluster.new_attempt()  # the driver waits for nodes
            continue
        outcome.world_sizes.append(world_size)
        names = [name for name in slots if name not in history.excluded][: -(-world_size // WORKERS_PER_NODE)]
        used = [int(name[1:]) for name in names]
        first, step, failed = saved, saved, None
        while step < TOTAL_STEPS and failed is None:
            failed = cluster.failing(used)
            if failed is None:  # a failure in a step leaves nothing of it
                outcome.steps[step] = take(stream, step, world_size)
                outcome.steps_made += 1
                step += 1
                saved = step if step % SAVE_EVERY == 0 or step == TOTAL_STEPS else saved
        if failed is None:
            outcome.excluded = history.excluded
            return outcome
        failure = Failure(
            attempt=attempt,
            kind="WorkerLost",
            message="killed",
            exit_code=76,
            retry=Retry.RESTART,
            first_step=first,
            saved_step=saved,
            node=f"n{failed}",
        )
        decision = decide(policy, history, failure, cluster.slots(), BATCH_SIZE)
        history = decision.history
        if not decision.again:
            outcome.excluded, outcome.exit_code = history.excluded, decision.exit_code
            return outcome
        cluster.new_attempt()


@pytest.mark.parametrize("seed", range(3))
def test_every_step_has_the_images_of_an_undisturbed_run_whatever_fails(seed: int) -> None:
    cluster = Cluster(np.random.default_rng(seed), failure_rate=5e-4)
    outcome = train(cluster, seed)
    assert outcome.exit_code is None
    assert len(outcome.world_sizes) > 1  # something did fail
    assert outcome.steps_made > TOTAL_STEPS  # and steps were done again
    assert sorted(outcome.steps) == list(range(TOTAL_STEPS))
    stream = Stream(NUM_SAMPLES, seed)
    for step, samples in outcome.steps.items():
        positions = np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        np.testing.assert_array_equal(samples, stream.sample_ids(positions))


def test_every_sample_is_seen_exactly_once_an_epoch() -> None:
    outcome = train(Cluster(np.random.default_rng(7), failure_rate=5e-4), seed=7)
    seen = np.concatenate([outcome.steps[step] for step in range(TOTAL_STEPS)])
    num_epochs, rest = divmod(seen.size, NUM_SAMPLES)
    assert num_epochs == 24
    assert rest
    for epoch in range(num_epochs):
        assert np.unique(seen[epoch * NUM_SAMPLES : (epoch + 1) * NUM_SAMPLES]).size == NUM_SAMPLES
    assert np.unique(seen[num_epochs * NUM_SAMPLES :]).size == rest


def test_the_run_shrinks_when_nodes_are_gone_and_grows_when_they_are_back() -> None:
    outcome = train(Cluster(np.random.default_rng(1), failure_rate=1e-3), seed=1)
    assert outcome.world_sizes[0] == 1024
    assert min(outcome.world_sizes) < 1024
    changes = np.diff(outcome.world_sizes)
    assert changes.min() < 0 < changes.max()
    assert all(POLICY.min_workers <= size <= POLICY.max_workers for size in outcome.world_sizes)


def test_nodes_that_fail_again_and_again_are_left_out_and_the_run_ends() -> None:
    lemons = frozenset({3, 77})
    outcome = train(Cluster(np.random.default_rng(2), failure_rate=0.0, lemons=lemons), seed=2)
    assert outcome.exit_code is None
    assert set(outcome.excluded) == {"n3", "n77"}
    assert outcome.world_sizes[-1] == 1024 - 2 * WORKERS_PER_NODE


def test_a_cluster_that_lets_nothing_through_is_given_up() -> None:
    outcome = train(Cluster(np.random.default_rng(3), failure_rate=0.2), seed=3)
    assert outcome.exit_code == 76
    assert len(outcome.world_sizes) == POLICY.max_failures + 1
