"""A real SLURM on this machine: munged, slurmctld and three slurmd, each on a host of its own made of namespaces.

Needs root, util-linux, iproute2 and `apt-get install slurm-wlm munge`; without them the tests are skipped. Hosts share
this machine's files, but for SCRATCH and /dev/shm; each has its own network, processes and name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRATCH = Path("/tmp/slurm-lab")  # a file system of its own on every host
FREEZER = Path("/sys/fs/cgroup/freezer")
NUM_NODES = 3
KILL_WAIT_S = 5
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare", "nsenter", "setpriv", "ip", "mount")

# Requeued jobs may run again after cred_expire + 1 s. Signals go to the first process of each task alone where the
# freezer keeps track of processes, as on real clusters.
CONF = """\
ClusterName=lab
SlurmctldHost=control({control})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType={proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
KillWait={kill_wait}
SlurmdTimeout=6
JobRequeue=1
{nodes}
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
CGROUP_CONF = "CgroupMountpoint=/sys/fs/cgroup\nCgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"

# The first process of a host: it names itself, mounts what it has alone, waits for its cable, and reaps orphans.
HOST_INIT = """
set -e
hostname "$1"
mount -t tmpfs shm /dev/shm
mount -t tmpfs scratch "$4"
mount --bind "$3" /etc/hosts
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip address add "$2/24" dev eth0
ip link set eth0 up
echo up
trap 'exit 0' TERM
: the host itself, which reaps orphans
while :; do sleep 3600 & wait $! || true; done
"""


class Host:
    """One machine of the lab, on the bridge of the process `switch`."""

    def __init__(self, name: str, address: str, hosts_file: Path, switch: int) -> None:
        self.name, self.address = name, address
        self._hosts_file, self._switch = hosts_file, switch
        self.boot()

    def boot(self) -> None:
        """Switch it on, for the first time or after `kill`."""
        self._owner = namespaces(
            *("--pid", "--mount-proc", "--mount", "--propagation", "private", "--uts", "--ipc", "--net"),
            *("bash", "-c", HOST_INIT, "host", self.name, self.address, str(self._hosts_file), str(SCRATCH)),
        )
        self._pid = only_child(self._owner.pid)
        number = self.address.rpartition(".")[2]
        cable = f"to-{number}"
        in_switch = ("nsenter", "--target", str(self._switch), "--net", "ip", "link")
        # The same hardware address after each boot: others keep the old one for up to 8 s, and credentials last 5 s.
        card = ("name", "eth0", "address", f"02:00:00:00:00:{int(number):02x}")
        call(*in_switch, *("add", cable, "type", "veth", "peer", *card, "netns", str(self._pid)))
        call(*in_switch, *("set", cable, "master", "bridge", "up"))
        assert self._owner.stdout is not None
        with self._owner.stdout as output:
            assert output.readline() == "up\n", f"host {self.name} did not come up"

    def popen(self, *command: str, **keywords: object) -> subprocess.Popen[str]:
        """Start `command` there, in the folder `cwd`."""
        line = (*self.enter(str(keywords.pop("cwd", "/"))), *command)
        return subprocess.Popen(line, stdin=subprocess.DEVNULL, text=True, **keywords)  # type: ignore[call-overload,no-any-return]

    def enter(self, folder: str) -> tuple[str, ...]:
        """The words that run the command after them there, in `folder`."""
        enter = ("nsenter", "--target", str(self._pid), "--mount", "--uts", "--ipc", "--net", "--pid")
        return (*enter, "bash", "-c", 'cd "$0" && exec "$@"', folder)  # nsenter goes to the root

    def run(self, *command: str, check: bool = True, **keywords: object) -> str:
        """Run `command` there; what it printed."""
        process = self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keywords)
        output, _ = process.communicate(timeout=60)
        assert not check or process.returncode == 0, f"{command}: {output}"
        return output

    def processes(self) -> list[str]:
        """The command lines of all that runs there."""
        lines = self.run("ps", "-ww", "-eo", "args=").splitlines()
        return [line for line in lines if not line.startswith("ps ")]

    def kill(self) -> None:
        """Cut its power: every process is gone at once."""
        self._owner.kill()
        self._owner.wait()


class Slurm:
    """The cluster, and how a user talks to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.scratch = root, SCRATCH
        self.jobs_folder = root / "jobs"
        for folder in (self.jobs_folder, root / "munge", root / "state", SCRATCH):
            folder.mkdir(exist_ok=True)
        # The freezer's groups are named for the nodes, and one tree for the whole machine.
        self.nodes = [f"n{os.getpid()}-{number}" for number in range(1, NUM_NODES + 1)]
        addresses = {name: f"10.86.0.{10 + number}" for number, name in enumerate(["control", *self.nodes])}
        hosts_file = root / "hosts"
        hosts_file.write_text("127.0.0.1 localhost\n" + "".join(f"{at} {name}\n" for name, at in addresses.items()))
        self._switch = namespaces("--net", "sleep", "infinity")
        switch = only_child(self._switch.pid)
        call("nsenter", "--target", str(switch), "--net", "ip", "link", "add", "bridge", "type", "bridge")
        call("nsenter", "--target", str(switch), "--net", "ip", "link", "set", "bridge", "up")
        self.hosts = {name: Host(name, at, hosts_file, switch) for name, at in addresses.items()}
        self._write_config()
        self.environment = {**plain_environment(), "SLURM_CONF": str(root / "slurm.conf")}
        self._daemons = {"munged": self._start_munged()}
        self._daemons["control"] = self._daemon("control", "slurmctld", "-D", "-i")
        for name in self.nodes:
            self.start_node(name)
        self.wait_for_nodes()

    def start_node(self, name: str) -> None:
        self._daemons[name] = self._daemon(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """SLURM notices after about 28 s."""
        self.hosts[name].kill()
        self._daemons[name].wait()

    def boot_node(self, name: str) -> None:
        self.hosts[name].boot()
        self.start_node(name)
        self.wait_for_nodes()

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run a command of SLURM on the control host, in the folder where jobs leave their output."""
        host = self.hosts["control"]
        return host.run(*command, check=check, cwd=self.jobs_folder, env=self.environment)

    def submit(self, script: str, *options: str) -> str:
        """Give `script` to sbatch; the job's id."""
        file = self.jobs_folder / f"job-{time.monotonic_ns()}.sh"
        file.write_text(script)
        return self("sbatch", "--parsable", *options, str(file)).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self("scontrol", "-o", "show", "job", job, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, restarts: int | None = None, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job is in one of `states` (ended, where there are none), in that life; its description."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.job(job)
            if seen.get("JobState") in wanted and restarts in (None, int(seen["Restarts"])):
                return seen
            assert time.monotonic() < deadline, f"{seen}\n{self.outputs()}"
            time.sleep(0.2)

    def wait_for_output(self, text: str, job: str, count: int = 1, timeout_s: float = 60) -> str:
        """Wait until the job has printed `text` so many times; all that it printed."""
        deadline = time.monotonic() + timeout_s
        while (output := self.output(job)).count(text) < count:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{output}"
            time.sleep(0.1)
        return output

    def output(self, job: str) -> str:
        """What the job has printed in all its lives; an array's task is ARRAY_TASK."""
        return "".join(file.read_text() for file in self.jobs_folder.glob(f"slurm-*-{job}.out"))

    def outputs(self) -> str:
        return "".join(f"--- {file.name}\n{file.read_text()}" for file in sorted(self.jobs_folder.glob("slurm-*.out")))

    def leftovers(self, job: str, patience_s: float = 15) -> list[str]:
        """What the job has left on the nodes: processes that it started, folders in SCRATCH."""
        deadline = time.monotonic() + patience_s
        variable = f"^SLURM_JOB_ID={job}$"
        while True:
            found = []
            for name in self.nodes:
                search = f"cd /proc; grep -lzs '{variable}' [0-9]*/environ; ls -d {SCRATCH}/rl-{job}-* 2> /dev/null"
                found += [f"{name}: {line}" for line in self.hosts[name].run("sh", "-c", search, check=False).split()]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.3)

    def wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 60
        while self("sinfo", "-h", "-p", "normal", "-o", "%D %t", check=False).split() != [str(NUM_NODES), "idle"]:
            assert time.monotonic() < deadline, self("sinfo", "-N", "-l") + (self.root / "slurmctld.log").read_text()
            time.sleep(0.1)

    def close(self) -> None:
        for host in self.hosts.values():
            host.kill()
        self._switch.kill()
        if self._switch.stdout is not None:
            self._switch.stdout.close()
        self._daemons["munged"].terminate()
        for process in (self._switch, *self._daemons.values()):
            process.wait()
        for name in self.nodes:
            remove_groups(FREEZER, f"slurm_{name}")

    def _write_config(self) -> None:
        described = [
            f"NodeName={name} NodeHostname={name} NodeAddr={self.hosts[name].address} CPUs=8 RealMemory=8000"
            for name in self.nodes
        ]
        for name in self.nodes:
            (self.root / f"spool-{name}").mkdir(exist_ok=True)
        proctrack = "proctrack/cgroup" if FREEZER.is_dir() else "proctrack/linuxproc"
        text = CONF.format(
            control=self.hosts["control"].address,
            root=self.root,
            proctrack=proctrack,
            kill_wait=KILL_WAIT_S,
            nodes="\n".join(described),
        )
        (self.root / "slurm.conf").write_text(text)
        (self.root / "cgroup.conf").write_text(CGROUP_CONF)

    def _start_munged(self) -> subprocess.Popen[str]:
        folder = self.root / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        names = {"socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log", "key-file": "key"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                ["munged", "--foreground", "--force", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                text=True, start_new_session=True,
            )  # fmt: skip
        while not (folder / "socket").exists():
            assert process.poll() is None, (folder / "output").read_text()
            time.sleep(0.02)
        return process

    def _daemon(self, host: str, *command: str) -> subprocess.Popen[str]:
        with (self.root / f"{host}.output").open("a") as output:
            return self.hosts[host].popen(*command, env=self.environment, stdout=output, stderr=output)


def namespaces(*options_and_command: str) -> subprocess.Popen[str]:
    """A process in namespaces of its own, which end with this one, however that ends."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child=KILL", *options_and_command]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def only_child(pid: int) -> int:
    """The process id of the child of `pid`, once it is there."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(500):
        children = file.read_text().split()
        # unshare's child becomes the command only after it has its namespaces
        if children and Path(f"/proc/{children[0]}/ns/net").readlink() != Path("/proc/self/ns/net").readlink():
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("unshare has no child")


def call(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def remove_groups(tree: Path, name: str) -> None:
    """Remove a killed node's control groups, innermost first; a killed process leaves its own a moment later."""
    for _ in range(50):
        groups = sorted(tree.glob(f"{name}/**/"), key=lambda group: -len(group.parts))
        try:
            for group in groups:
                group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def plain_environment() -> dict[str, str]:
    """This process's, without what would make a run think that it is in a job or has a cluster."""
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM", "RAY_", "SBATCH", "CI")
    return {name: value for name, value in os.environ.items() if not name.startswith(gone)}


def missing() -> str:
    """Why there can be no lab here; empty where there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge util-linux iproute2"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"this machine allows no namespaces: {tried.stderr.strip()}"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The cluster, for all tests."""
    if reason := missing():
        pytest.skip(reason)
    lab = Slurm(tmp_path_factory.mktemp("slurm"))
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def scratch() -> Path:
    """The folder that every host has for itself."""
    return SCRATCH
