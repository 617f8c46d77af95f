from __future__ import annotations

import os
import subprocess
import sys

import pytest

from resnet_dist.training.device import own_cpus

PIN = """
import os
from resnet_dist.training.device import pin_to_cpus
allowed = sorted(os.sched_getaffinity(0))
own = pin_to_cpus(1, len(allowed), 1)
print(own == [allowed[1]] and sorted(os.sched_getaffinity(0)) == own)
print(pin_to_cpus(0, 2, 8) == own)
"""


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_of_a_node_share_no_cpu_and_have_as_many(workers: int) -> None:
    allowed = [0, 1, 2, 3, 8, 9, 10, 11]
    parts = [own_cpus(allowed, rank, workers) for rank in range(workers)]
    assert {len(part) for part in parts} == {8 // workers}
    assert len({cpu for part in parts for cpu in part}) == workers * (8 // workers)


def test_with_less_than_a_cpu_each_they_share_all() -> None:
    assert own_cpus([4, 5], local_rank=2, local_world_size=3) == [4, 5]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system offers no affinity")
def test_a_process_stays_on_its_cpus_unless_they_are_too_few() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    done = subprocess.run([sys.executable, "-c", PIN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
