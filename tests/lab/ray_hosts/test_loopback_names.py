"""Hosts whose own name is a loopback address, as in Debian's /etc/hosts: the workers reach each other nevertheless."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.ray_hosts.conftest import RayHosts, Training

pytestmark = [pytest.mark.lab, pytest.mark.ray]
NUM_STEPS = 6


def assert_trained_over_eth0(run: Path) -> None:
    for rank in range(2):
        log = (run / f"logs/attempt-1/rank-{rank}.log").read_text()
        assert log.count("gloo uses the network interface eth0") == 1, log
    assert json.loads((run / "environment.json").read_text())["variables"]["GLOO_SOCKET_IFNAME"] == "eth0"


def test_torchrun_selects_an_interface_also_on_the_host_that_it_knows_by_name(
    debian_lab: RayHosts, config: Path
) -> None:
    debian_lab.boot("w1", "w2")
    # On w1, the name w1 is 127.0.1.1.
    torchrun = ("torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=w1", "--master-port=29511")
    train = ("-m", "launcher.train", str(config), "place=local", "workers=2", f"duration={NUM_STEPS} steps")
    processes = [
        debian_lab[name].popen(
            *(sys.executable, "-m", *torchrun, f"--node-rank={rank}", *train),
            env=debian_lab.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank, name in enumerate(("w1", "w2"))
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert_trained_over_eth0(config.parent / "runs/run")


def test_ray_selects_an_interface_before_it_makes_the_process_group(
    debian_lab: RayHosts, train: Callable[..., Training]
) -> None:
    debian_lab.start("w1", "w2")
    training = train("workers=2", f"duration={NUM_STEPS} steps", on=debian_lab)
    training.end()
    assert sorted(training.losses()) == list(range(1, NUM_STEPS + 1))
    assert_trained_over_eth0(training.run)
