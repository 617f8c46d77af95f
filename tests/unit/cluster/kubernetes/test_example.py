"""cluster/examples/rn50_8node.kubernetes.yaml is what configs/rn50_8node.yaml becomes.

After a change that is meant:

    WRITE_EXAMPLES=1 python -m pytest tests/unit/cluster/kubernetes/test_example.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.kubernetes.manifests import manifests, to_yaml
from cluster.spec import RunSpec
from launcher.config import load as configs
from launcher.config.profiles import load_profile, shipped

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "cluster" / "examples" / "rn50_8node.kubernetes.yaml"
HEADING = ["launcher render kubernetes configs/rn50_8node.yaml --profile kubernetes-gpu-rdma"]


def _spec() -> RunSpec:
    config = configs.load(ROOT / "configs" / "rn50_8node.yaml")
    hours, minutes, seconds = map(int, config.cluster.walltime.split(":"))
    return RunSpec(
        name=config.name,
        config=configs.to_yaml(config),
        storage=config.storage,
        data_root=config.data.root,
        least_workers=config.workers.least,
        most_workers=config.workers.most,
        nodes=config.cluster.nodes,
        gpus_per_worker=config.resources.gpus_per_worker,
        cpus_per_worker=config.resources.cpus_per_worker,
        walltime_s=hours * 3600 + minutes * 60 + seconds,
        max_failures=config.faults.max_failures,
    )


def test_the_example_is_what_is_rendered():
    text = to_yaml(manifests(_spec(), load_profile("kubernetes-gpu-rdma", "kubernetes")), heading=HEADING)
    if os.environ.get("WRITE_EXAMPLES") == "1":
        EXAMPLE.write_text(text)
    assert EXAMPLE.read_text() == text


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("kubernetes")])
def test_every_profile_that_is_shipped_can_run_something(name):
    profile = load_profile(name, "kubernetes")
    config = "schema: 1\n"
    data_root = None if profile.data is None else "/data"
    small = RunSpec(name="small", config=config, storage="/runs", data_root=data_root, walltime_s=600)
    assert manifests(small, profile)[-1]["kind"] == "RayJob"
