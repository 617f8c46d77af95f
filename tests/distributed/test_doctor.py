"""The doctor's measurements between real processes, on torchrun's hosts and on the nodes of a Ray cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.checks.collective import reduce_here
from launcher.checks.network import unused_port

MAIN = """
import sys
from launcher.arguments import Parser
from launcher.commands.doctor import add_parser
parser = Parser()
add_parser(parser.add_subparsers(parser_class=Parser))
given = parser.parse_args(["doctor", "--json", *sys.argv[1:]])
sys.exit(given.run(given))
"""

RAY = """
import json, sys
from launcher.ray_backend import environment as ray_environment
ray_environment.set_up()
import ray
from ray.cluster_utils import Cluster
from launcher.ray_backend.doctor import RayHosts, ray_findings
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
hosts = RayHosts(None)
facts = hosts.run({host: ("facts", {}) for host in hosts.hosts}, 60)
findings = [finding.described() for finding in ray_findings(None, 200)]
print(json.dumps({"facts": list(facts.values()), "findings": findings}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


def reduce(processes: int, world_size: int, seconds: float) -> dict[str, Any]:
    return reduce_here(
        first_rank=0, processes=processes, world_size=world_size, address="127.0.0.1", port=unused_port(), gpus=False,
        num_bytes=2**16, seconds=seconds,
    )  # fmt: skip


def test_two_processes_reduce_right_and_report_their_speed() -> None:
    answer = reduce(processes=2, world_size=2, seconds=60)
    assert (answer["problems"], answer["wrong"]) == ([], 0)
    assert answer["bus_bytes_per_s"] > 0


def test_a_process_without_a_partner_reports_a_problem() -> None:
    answer = reduce(processes=1, world_size=2, seconds=1)
    assert len(answer["problems"]) == 1


def by_name(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["name"]: finding["status"] for finding in findings}


def test_two_hosts_of_torchrun_are_checked_together(tmp_path: Path) -> None:
    script = tmp_path / "doctor.py"
    script.write_text(MAIN)
    port = unused_port()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend",
        "c10d", "--rdzv-id", "doctor", "--rdzv-endpoint", f"localhost:{port}", str(script),
    ]  # fmt: skip
    agents = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [agent.communicate(timeout=150) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    (said,) = [out for out, _ in outputs if out.strip()]  # rank 0 alone speaks
    report = json.loads(said)
    found = by_name(report["findings"])
    assert (report["exit_code"], found["all-reduce"], found["clocks"]) == (0, "pass", "pass")


@pytest.mark.ray
def test_every_node_of_a_ray_cluster_is_checked(tmp_path: Path) -> None:
    script = tmp_path / "ray_doctor.py"
    script.write_text(RAY)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["facts"]) == 2
    assert all(facts["packages"]["torch"] for facts in answer["facts"])
    found = by_name(answer["findings"])
    assert (found["reached"], found["all-reduce"], found["matmul"]) == ("pass", "pass", "pass")
