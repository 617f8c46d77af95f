"""A Ray cluster of several hosts on this machine: each has its own network, processes, name, /dev/shm and /tmp/ray.

Needs root, util-linux and iproute2; without them the tests are skipped. Hosts share this machine's files: the run
directory is their shared storage. A host's power can be cut, its cable pulled, its Ray drained.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.prepare.digits import write_digits
from resnet_dist.telemetry.metrics_file import read_metrics

BIN = Path(sys.executable).parent
PACED = Path(__file__).parents[3] / "benchmarks"  # where the model paced:build is
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "mount")
PORT = 6379
NET = "10.87.0."

# Deaths are noticed in 3 s instead of 25: the tests wait for them. On a machine that is busier than this one, raise it.
FAST_HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
# The first process of a host: it names itself, mounts what it has alone, waits for its cable, and reaps orphans.
HOST_INIT = """
set -e
hostname "$1"
mount -t tmpfs shm /dev/shm
mkdir -p /tmp/ray
mount -t tmpfs ray /tmp/ray
mount --bind "$3" /etc/hosts
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip address add "$2/24" dev eth0
ip link set eth0 up
echo up
trap 'exit 0' TERM
while :; do sleep 3600 & wait $! || true; done
"""
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "run",
    "place": "ray",
    "duration": "60 steps",
    "model": {"name": "paced:build", "num_classes": 10},
    "data": {"resolution": 16, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 37},
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "lr_in_momentum": False},
    "schedule": {"peak_lr": 0.5, "warmup": "5 steps", "decay": "cosine"},
    "evaluate": {"every": "1000 steps"},
    "checkpoint": {"every": "10 steps"},
    "log": {"every_steps": 1, "tensorboard": False},
    "faults": {"hang_timeout_s": 20, "start_timeout_s": 90},
    "precision": "float64",
}


class Host:
    """One machine of the lab, on the bridge of the process `switch`."""

    def __init__(self, name: str, address: str, hosts_file: Path, switch: int) -> None:
        self.name, self.address = name, address
        self._hosts_file, self._switch = hosts_file, switch
        self.on = False

    def boot(self) -> None:
        """Switch it on, for the first time or after `kill`."""
        self._owner = namespaces(
            *("--pid", "--mount-proc", "--mount", "--propagation", "private", "--uts", "--ipc", "--net"),
            *("bash", "-c", HOST_INIT, "host", self.name, self.address, str(self._hosts_file)),
        )
        self._pid = only_child(self._owner.pid)
        number = self.address.rpartition(".")[2]
        self._cable = f"to-{number}"
        # The same hardware address after each boot: others keep the old one for up to 8 s.
        card = ("name", "eth0", "address", f"02:00:00:00:00:{int(number):02x}")
        self._in_switch("add", self._cable, "type", "veth", "peer", *card, "netns", str(self._pid))
        self._in_switch("set", self._cable, "master", "bridge", "up")
        assert self._owner.stdout is not None
        with self._owner.stdout as output:
            assert output.readline() == "up\n", f"host {self.name} did not come up"
        self.on = True

    def popen(self, *command: str, **keywords: Any) -> subprocess.Popen[str]:
        """Start `command` there."""
        enter = ("nsenter", "--target", str(self._pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--")
        return subprocess.Popen([*enter, *command], stdin=subprocess.DEVNULL, text=True, **keywords)

    def run(self, *command: str) -> str:
        """Run `command` there; what it printed."""
        process = self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return process.communicate(timeout=60)[0]

    def kill(self) -> None:
        """Cut its power: every process is gone at once."""
        if self.on:
            self._owner.kill()
            self._owner.wait()
            self.on = False
            # The kernel takes the cable's other end away a moment after the host, unless that was done already.
            gone = ("nsenter", "--target", str(self._switch), "--net", "ip", "link", "delete", self._cable)
            subprocess.run(gone, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    def cable(self, state: str) -> None:
        """Pull its cable (down) or plug it in (up)."""
        self._in_switch("set", self._cable, state)

    def signal(self, number: int, *words: str) -> None:
        """Send a signal to the processes there whose command line has all `words`."""
        for line in self.run("ps", "-ww", "-eo", "pid=,args=").splitlines():
            pid, _, arguments = line.strip().partition(" ")
            if all(word in arguments for word in words) and "nsenter" not in arguments:
                self.run("kill", f"-{number}", pid)

    def _in_switch(self, *command: str) -> None:
        call("nsenter", "--target", str(self._switch), "--net", "ip", "link", *command)


class RayHosts:
    """A head without CPUs, on whose host drivers run, and workers with one CPU each.

    `own_name`: the address that a host has for its own name, in place of its network address.
    """

    def __init__(self, root: Path, workers: list[str], own_name: str | None = None) -> None:
        self.root, self.workers = root, workers
        self.environment = {
            **plain_environment(),
            **FAST_HEALTH,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PACED),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60",
        }
        addresses = {name: f"{NET}{10 + number}" for number, name in enumerate(["head", *workers])}
        files = {name: root / f"{name}.hosts" for name in addresses}
        for name, file in files.items():
            known = addresses if own_name is None else {**addresses, name: own_name}
            file.write_text("127.0.0.1 localhost\n" + "".join(f"{at} {other}\n" for other, at in known.items()))
        self._switch = namespaces("--net", "sleep", "infinity")
        switch = only_child(self._switch.pid)
        call("nsenter", "--target", str(switch), "--net", "ip", "link", "add", "bridge", "type", "bridge")
        call("nsenter", "--target", str(switch), "--net", "ip", "link", "set", "bridge", "up")
        self.hosts = {name: Host(name, at, files[name], switch) for name, at in addresses.items()}
        self._ray: dict[str, subprocess.Popen[str]] = {}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def boot(self, *names: str) -> None:
        """Have these hosts up, without starting Ray."""
        for name in names:
            if not self.hosts[name].on:
                self.hosts[name].boot()

    def start(self, *workers: str) -> None:
        """Have exactly these workers up, and the head; what is up already stays."""
        self.boot("head", *workers)
        for name in ("head", *workers):
            if name not in self._ray or self._ray[name].poll() is not None:
                self._start_ray(name)
            if name == "head":
                self._wait(lambda: self.alive() is not None)
        for name in set(self.workers) - set(workers):
            self.kill(name)
        self._wait(lambda: self.alive() == sorted(["head", *workers]))

    def kill(self, name: str) -> None:
        """Cut a host's power."""
        self.hosts[name].kill()
        if name in self._ray:
            self._ray.pop(name).wait()

    def kill_all(self) -> None:
        """Cut every host's power."""
        for name in self.hosts:
            self.kill(name)

    def drain(self, name: str) -> None:
        """What SLURM and Kubernetes do to a node that will go away: SIGTERM to `ray start --block`."""
        self.hosts[name].signal(signal.SIGTERM, "ray start", "--block")

    def alive(self) -> list[str] | None:
        """The hosts that Ray believes alive; None where the head does not answer."""
        code = (
            "import json, ray; ray.init(log_to_driver=False, logging_level='ERROR'); "
            "print(json.dumps(sorted(n['NodeManagerHostname'] for n in ray.nodes() if n['Alive'])))"
        )
        head = self.hosts["head"]
        process = head.popen(
            *(sys.executable, "-c", code), env=self.driver_environment(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None
        found: list[str] = (
            # Ray's own words may come after the answer
            json.loads(next(line for line in reversed(output.splitlines()) if line.startswith('["')))
            if process.returncode == 0
            else None
        )
        return found

    def driver_environment(self) -> dict[str, str]:
        """What a driver on the head's host has."""
        return {**self.environment, "RAY_ADDRESS": f"{self.hosts['head'].address}:{PORT}"}

    def train(self, config: Path, *overrides: str) -> subprocess.Popen[str]:
        """Start the main job on the head's host."""
        command = (sys.executable, "-m", "launcher.train", str(config), *overrides)
        return self.hosts["head"].popen(
            *command, env=self.driver_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def close(self) -> None:
        self.kill_all()
        self._switch.kill()
        self._switch.wait()
        if self._switch.stdout is not None:
            self._switch.stdout.close()

    def _start_ray(self, name: str) -> None:
        host, head = self.hosts[name], self.hosts["head"]
        where = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        if name != "head":
            where = [f"--address={head.address}:{PORT}", "--num-cpus=1"]
        command = [str(BIN / "ray"), "start", *where, f"--node-ip-address={host.address}", "--num-gpus=0"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        with (self.root / f"{name}.output").open("a") as output:
            self._ray[name] = host.popen(*command, env=self.environment, stdout=output, stderr=output)

    def _wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert time.monotonic() < deadline, "".join(file.read_text() for file in self.root.glob("*.output"))
            time.sleep(0.3)


def namespaces(*options_and_command: str) -> subprocess.Popen[str]:
    """A process in namespaces of its own, which end with this one, however that ends."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child=KILL", *options_and_command]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def only_child(pid: int) -> int:
    """The process id of the child of `pid`, once it is in namespaces of its own."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(500):
        children = file.read_text().split()
        if children and Path(f"/proc/{children[0]}/ns/net").readlink() != Path("/proc/self/ns/net").readlink():
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("unshare has no child")


def call(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def plain_environment() -> dict[str, str]:
    """This process's, without what would make a run think that it is in a job or has a cluster."""
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(gone)}


def missing() -> str:
    """Why there can be no lab here; empty where there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    if absent:
        return f"needs {', '.join(absent)}: apt-get install util-linux iproute2"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"this machine allows no namespaces: {tried.stderr.strip()}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """The hosts, for all tests: a head and three workers, off until `start`."""
    pytest.importorskip("ray", reason="Ray is not installed")
    if reason := missing():
        pytest.skip(reason)
    hosts = RayHosts(tmp_path_factory.mktemp("ray-hosts"), ["w1", "w2", "w3"])
    yield hosts
    hosts.close()


@pytest.fixture(scope="module")
def debian_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """Hosts whose own name is 127.0.1.1, as in Debian's /etc/hosts; off until `boot` or `start`."""
    pytest.importorskip("ray", reason="Ray is not installed")
    if reason := missing():
        pytest.skip(reason)
    hosts = RayHosts(tmp_path_factory.mktemp("debian-hosts"), ["w1", "w2"], own_name="127.0.1.1")
    yield hosts
    hosts.close()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


class Training:
    """A run on the lab's hosts, as a test sees it."""

    def __init__(self, lab: RayHosts, config: Path, *overrides: str) -> None:
        self.run = config.parent / "runs" / "run"
        self._pace_file = config.parent / "pace.json"
        self._lab, self._config, self._overrides = lab, config, overrides
        self.process = lab.train(config, *overrides)

    def wait_for_step(self, step: int, timeout_s: float = 120) -> None:
        """Until so many steps are recorded."""
        deadline = time.monotonic() + timeout_s
        while max(self.losses(), default=0) < step:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, (self.run / "attempts.jsonl").read_text()
            time.sleep(0.1)

    def wait_for_attempt(self, number: int, timeout_s: float = 150) -> None:
        """Until the attempt has begun."""
        deadline = time.monotonic() + timeout_s
        while len(self.attempts("started")) < number:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, (self.run / "attempts.jsonl").read_text()
            time.sleep(0.1)

    def pace(self, **seconds: float) -> None:
        """Let every training step last so long: `all=`, or of one rank, `**{"1": ...}`."""
        self._pace_file.write_text(json.dumps(seconds))

    def beat(self, attempt: int, rank: int) -> dict[str, Any]:
        """A worker's heartbeat."""
        content: dict[str, Any] = json.loads((self.run / f"logs/attempt-{attempt}/heartbeat/rank-{rank}").read_bytes())
        return content

    def end(self, code: int = 0) -> str:
        """Until the driver has ended, with `code`; what it printed."""
        output, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == code, output
        return output

    def losses(self) -> dict[int, float]:
        """{step: loss}, every step once."""
        file = self.run / "metrics.jsonl"
        records = read_metrics(file) if file.exists() else []
        return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}

    def attempts(self, event: str) -> list[dict[str, Any]]:
        """The lines of attempts.jsonl of one kind."""
        lines = [json.loads(line) for line in (self.run / "attempts.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def workers(self) -> list[int]:
        """The number of workers of each attempt."""
        return [line["facts"]["workers"] for line in self.attempts("started")]


def write_config(folder: Path, digits: Path, **more: Any) -> Path:
    """The lab's config in a file; its model asks `folder`/pace.json how long a step should last."""
    data = {**CONFIG["data"], "root": str(digits)}
    model = {**CONFIG["model"], "arguments": {"pace": str(folder / "pace.json")}}
    config = {**CONFIG, "storage": str(folder / "runs"), "data": data, "model": model, **more}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> Path:
    """The config of a run, in a file."""
    return write_config(tmp_path, digits)


@pytest.fixture
def train(request: pytest.FixtureRequest, config: Path) -> Iterator[Callable[..., Training]]:
    """Start a run with overrides, on the hosts of `lab` or of `on`."""
    started: list[Training] = []

    def start(*overrides: str, on: RayHosts | None = None) -> Training:
        started.append(Training(on or request.getfixturevalue("lab"), config, *overrides))
        return started[-1]

    yield start
    for training in started:
        training.process.kill()
        training.process.wait()
        if training.process.stdout is not None:
            training.process.stdout.close()


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[int, float]:
    """{step: loss} of the same run in one process, left alone."""
    folder = tmp_path_factory.mktemp("untouched")
    config = write_config(folder, digits, place="local")
    command = [sys.executable, "-m", "launcher.train", str(config)]
    environment = {**plain_environment(), "PYTHONPATH": str(PACED)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_metrics(folder / "runs/run/metrics.jsonl")
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}
