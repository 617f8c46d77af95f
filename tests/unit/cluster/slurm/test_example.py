"""cluster/examples/rn50_8node.sbatch is what configs/rn50_8node.yaml becomes.

After a change that is meant:

    WRITE_EXAMPLES=1 python -m pytest tests/unit/cluster/slurm/test_example.py
"""

from __future__ import annotations

import os
from pathlib import Path

from cluster.slurm.script import render
from cluster.spec import RunSpec
from launcher.config import load as configs
from launcher.config.profiles import load_profile

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "cluster" / "examples" / "rn50_8node.sbatch"


def test_the_example_is_what_is_rendered() -> None:
    config = configs.load(ROOT / "configs" / "rn50_8node.yaml")
    assert config.cluster.walltime == "04:00:00"
    spec = RunSpec(
        name=config.name,
        config=configs.to_yaml(config),
        storage=config.storage,
        data_root=config.data.root,
        least_workers=config.workers.least,
        most_workers=config.workers.most,
        nodes=config.cluster.nodes,
        gpus_per_worker=config.resources.gpus_per_worker,
        cpus_per_worker=config.resources.cpus_per_worker,
        walltime_s=4 * 3600,
        max_failures=config.faults.max_failures,
        start_timeout_s=int(config.faults.start_timeout_s),
    )
    text = render(spec, load_profile("slurm", "slurm"))
    if os.environ.get("WRITE_EXAMPLES") == "1":
        EXAMPLE.write_text(text)
    assert EXAMPLE.read_text() == text
