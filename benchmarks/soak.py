"""A soak test: random faults at random moments of one long run must not change its result.

    python -m benchmarks.soak --minutes 40                  100 faults, two workers under the local supervisor
    python -m benchmarks.soak --minutes 40 --workers 1      100 faults, one process under the local supervisor
    python -m benchmarks.soak --minutes 60 --ray            40 faults, two workers through Ray
    python -m benchmarks.soak --minutes 40 --gpu            100 faults, one process on a GPU

The same run is also done without faults; the final weights must be bit-identical. Afterwards no process, port,
temporary folder or lease may be left. Prints a table and writes JSON (--output): by kind of fault, the steps that were
done again (those with two records) and the seconds until a step was done for the first time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import origin
from launcher.prepare.digits import write_digits
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import restore

HERE = Path(__file__).parent
STEPS_PER_FAULT = 14  # between two faults, on average
STEPS_TO_EFFECT = 8  # from a fault to its effect
CHECKPOINT_EVERY = 10  # steps: a fault that no worker survives costs at most these and those during a save
HANG_TIMEOUT_S = 6.0
EXIT_STOPPED = {signal.SIGTERM: 75, signal.SIGUSR2: 75, signal.SIGINT: 130}
CONFIG: dict[str, Any] = {
    "schema": 1,
    "model": {"name": "paced:build", "num_classes": 10},
    "data": {"resolution": 16, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 37},
    "schedule": {"peak_lr": 0.05, "decay": "constant"},
    "evaluate": {"every": "25 steps"},
    "checkpoint": {"every": f"{CHECKPOINT_EVERY} steps"},
    "faults": {"hang_timeout_s": HANG_TIMEOUT_S, "max_failures": 5, "max_node_failures": 1000},
    "log": {"every_steps": 1, "tensorboard": False},
}


@dataclass(frozen=True)
class InjectedFault:
    """A fault and its cost."""

    kind: str
    at_step: int
    seconds: float  # until a step completed for the first time
    steps_redone: int


@dataclass
class Soak:
    """A run, and the faults that were injected into it."""

    folder: Path
    name: str
    steps: int
    workers: int
    ray: bool = False  # instead of the local supervisor
    gpu: bool = False
    process: subprocess.Popen[bytes] | None = None
    injected: list[InjectedFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.folder / "runs", self.name)
        self.pace_file = self.folder / f"{self.name}-pace.json"
        config = {**CONFIG, "name": self.name, "storage": str(self.folder / "runs")}
        config["duration"] = f"{self.steps} steps"
        config |= {"place": "ray" if self.ray else "local", "workers": self.workers}
        if not self.ray:  # an idle process is kept for a worker that dies, whatever memory is left
            config["resources"] = {"local_workers": self.workers}
            config["faults"] = {**CONFIG["faults"], "warm_spares": 1}
        if self.gpu:  # the same bits in both runs
            resources = {**config.get("resources", {}), "gpus_per_worker": 1, "cpus_per_worker": 2}
            config |= {"resources": resources, "deterministic": True}
        config["data"] = {**CONFIG["data"], "root": str(self.folder / "digits")}
        config["model"] = {**CONFIG["model"], "arguments": {"pace": str(self.folder / "pace.json")}}
        self.file = self.folder / f"{self.name}.yaml"
        self.file.write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Start the main job."""
        environment = {**os.environ, "PYTHONPATH": str(HERE), "RESNET_SOAK": str(self.folder)}
        with (self.folder / f"{self.name}.output").open("ab") as output:
            command = [sys.executable, "-m", "launcher.train", str(self.file)]
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def done(self) -> int:
        """The newest step that was ever recorded."""
        return self._newest('"kind": "train"')

    def poll(self) -> int | None:
        """The exit code, once the main job has ended."""
        assert self.process is not None
        return self.process.poll()

    def wait_until(self, true: Callable[[], object], timeout_s: float = 300) -> bool:
        """Wait until `true` returns a true value; False if the run ends before."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if self.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / f"{self.name}.output").read_text()[-3000:])
            time.sleep(0.01)
        return True

    def workers_now(self) -> dict[int, int]:
        """{rank: process id} of the newest attempt's workers that have not ended."""
        attempts = self.directory.attempts()
        beats = heartbeats.read(self.directory.logs(attempts[-1].number)) if attempts else {}
        return {rank: beat.pid for rank, beat in beats.items() if beat.ended is None}

    def _newest(self, kind: str) -> int:
        try:
            with self.directory.metrics.open("rb") as file:
                file.seek(max(file.seek(0, 2) - 100_000, 0))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return 0
        steps = []
        for line in lines:
            if kind in line:
                with contextlib.suppress(ValueError):
                    steps.append(json.loads(line)["step"])
        self._furthest = max([getattr(self, "_furthest", 0), *steps])
        return self._furthest


Fault = Callable[[Soak], None]


def kill(soak: Soak, number: int = signal.SIGKILL) -> None:
    """Send a signal to a random worker."""
    workers = soak.workers_now()
    if workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(list(workers.values())), number)


def kill_rank_0(soak: Soak) -> None:
    """Kill the worker that writes metrics and checkpoints."""
    workers = soak.workers_now()
    if 0 in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)


def kill_while_saving(soak: Soak) -> None:
    """Kill the worker that writes checkpoints during a write."""
    workers = soak.workers_now()

    def half_written() -> bool:
        return any(path.name.startswith(".step-") for path in soak.directory.checkpoints.iterdir())

    if 0 in workers and soak.wait_until(half_written):
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0], signal.SIGKILL)


def kill_twice(soak: Soak) -> None:
    """Kill a worker, and a worker of the next attempt as soon as there is one."""
    kill(soak)
    number = len(soak.directory.attempts())
    if soak.wait_until(lambda: len(soak.directory.attempts()) > number and soak.workers_now()):
        kill(soak)


def stop(soak: Soak) -> None:
    """Stop a worker: the process exists and does nothing."""
    kill(soak, signal.SIGSTOP)


def crash(soak: Soak) -> None:
    """A segmentation fault in a worker."""
    kill(soak, signal.SIGSEGV)


def hang(soak: Soak) -> None:
    """Hang the training thread of a worker."""
    rank = random.choice(list(soak.workers_now()) or [0])
    number = len(soak.directory.attempts())
    pace = soak.folder / "pace.json"
    pace.write_text(json.dumps({"all": 0, str(rank): 3600}))
    soak.wait_until(lambda: soak.directory.attempts()[number - 1].ended)
    pace.write_text("{}")


def stopping(number: int) -> Fault:
    """Ask the main job to stop with a signal, and start it again."""

    def ask(soak: Soak) -> None:
        assert soak.process is not None
        soak.process.send_signal(number)
        code = soak.process.wait(120)
        if code != 0 and code != EXIT_STOPPED[signal.Signals(number)]:
            raise AssertionError(f"exit code {code} after {signal.Signals(number).name}")
        soak.start()

    ask.__name__ = signal.Signals(number).name
    return ask


def kill_the_driver(soak: Soak) -> None:
    """Kill the main job, and start it again."""
    assert soak.process is not None
    workers = soak.workers_now()
    soak.process.kill()
    soak.process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    soak.start()


LOCAL: tuple[Fault, ...] = (
    *(kill, kill_rank_0, kill_while_saving, kill_twice, stop, crash, hang, kill_the_driver),
    *(stopping(signal.SIGTERM), stopping(signal.SIGUSR2), stopping(signal.SIGINT)),
)
RAY: tuple[Fault, ...] = (kill, kill_rank_0, kill_while_saving, stop, hang, stopping(signal.SIGTERM))


def inject(soak: Soak, fault: Fault) -> bool:
    """Inject a fault and wait for the next new step; False if the run ends before."""
    target = soak.done() + random.randint(STEPS_PER_FAULT // 2, STEPS_PER_FAULT * 3 // 2)
    if not soak.wait_until(lambda: soak.done() >= target and soak.workers_now()):
        return False
    started, at_step, repeated_before = time.monotonic(), soak.done(), num_repeated(soak)
    number = len(soak.directory.attempts())
    fault(soak)
    if not soak.wait_until(lambda: len(soak.directory.attempts()) > number):
        return False
    reached = soak.done()  # a run that was asked to stop continues to the next step boundary
    if not soak.wait_until(lambda: soak.done() > reached):
        return False
    seconds = time.monotonic() - started
    soak.injected.append(InjectedFault(fault.__name__, at_step, seconds, num_repeated(soak) - repeated_before))
    return True


def num_repeated(soak: Soak) -> int:
    """The number of repeated steps so far: those with more than one record."""
    records = [line for line in soak.directory.metrics.read_text().splitlines() if '"kind": "train"' in line]
    steps = [line.partition('"step": ')[2].partition(",")[0] for line in records]
    return len(steps) - len(set(steps))


def leftovers(folder: Path) -> dict[str, list[str]]:
    """The leftovers of the runs in `folder`, by kind."""
    marked, own, others = f"RESNET_SOAK={folder}".encode(), [], []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit():
                is_own = marked in (process / "environ").read_bytes().split(b"\0")
                (own if is_own else others).append(process)
    found: dict[str, list[str]] = {
        "processes": [str(process) for process in own],
        "ports": sorted(listening() - held_by(others)),
        "half-written checkpoints": [],
        "leases": [],
    }
    for run in (folder / "runs").iterdir():
        found["half-written checkpoints"] += [str(path) for path in (run / "checkpoints").glob(".step-*")]
        held = {path.stem for path in (run / "lease").glob("*.json")}
        held -= {path.stem for path in (run / "lease").glob("*.released")}
        found["leases"] += [str(run / "lease" / name) for name in held]
    return found


def listening() -> set[str]:
    """The listening sockets of this machine, with their names in /proc: `socket:[number]`."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"}  # TCP_LISTEN, in proc(5)


def held_by(processes: Sequence[Path]) -> set[str]:
    """The sockets among the open files of `processes` of /proc."""
    held = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(str(descriptor.readlink()))
    return held


def same_weights(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether the final checkpoints are bit-identical."""
    first, second = restore.newest(one.checkpoints), restore.newest(other.checkpoints)
    if first is None or second is None or first.step != second.step:
        return False
    weights, others = first.model(), second.model()
    return weights.keys() == others.keys() and all(weights[name].equal(tensor) for name, tensor in others.items())


def soak(
    folder: Path, num_faults: int, minutes: float, workers: int, seed: int, *, ray: bool = False, gpu: bool = False
) -> dict[str, Any]:
    """Inject `num_faults` faults, or as many as fit into `minutes`; returns the report."""
    random.seed(seed)
    kernels = listening() - held_by(list(Path("/proc").glob("[0-9]*")))  # not visible to us
    write_digits(folder / "digits")
    steps = (num_faults + 1) * (STEPS_PER_FAULT + STEPS_TO_EFFECT)
    runs = {name: Soak(folder, name, steps, workers, ray, gpu) for name in ("undisturbed", "disturbed")}
    runs["undisturbed"].start()
    runs["undisturbed"].wait_until(lambda: False, timeout_s=minutes * 60)
    disturbed = runs["disturbed"]
    disturbed.start()
    faults, deadline = RAY if ray else LOCAL, time.monotonic() + minutes * 60
    bag: list[Fault] = []
    for _ in range(num_faults):
        bag = bag or random.sample(faults, len(faults))
        if time.monotonic() > deadline or not inject(disturbed, bag.pop()):
            break
    disturbed.wait_until(lambda: False, timeout_s=600)
    injected = disturbed.injected
    time.sleep(2)  # for processes that are about to end
    left = leftovers(folder)
    return {
        "place": f"{'ray' if ray else 'local'}, {workers} worker{'s' if workers > 1 else ''}",
        "seed": seed,
        "steps": steps,
        "attempts": len(disturbed.directory.attempts()),
        "exit_codes": {name: run.poll() for name, run in runs.items()},
        "same_weights": same_weights(disturbed.directory, runs["undisturbed"].directory),
        **cost(injected),
        "by_kind": {
            kind: cost([one for one in injected if one.kind == kind]) for kind in sorted({one.kind for one in injected})
        },
        "left_over": {**left, "ports": [port for port in left["ports"] if port not in kernels]},
        "injected": [asdict(one) for one in injected],
    }


def cost(injected: Sequence[InjectedFault]) -> dict[str, Any]:
    """What some faults have cost."""
    redone, seconds = [one.steps_redone for one in injected], [one.seconds for one in injected]
    return {
        "faults": len(injected),
        "steps_redone": {"sum": sum(redone), **median_and_worst(redone)},
        "seconds_to_next_new_step": median_and_worst(seconds),
    }


def median_and_worst(values: Sequence[float]) -> dict[str, float | None]:
    """The median and the largest value; None without values."""
    return {"median": statistics.median(values) if values else None, "worst": max(values, default=None)}


def table(report: dict[str, Any]) -> str:
    """The report as a table, one line per kind of fault."""
    lines = [f"{'fault':<20} {'times':>5} {'steps redone':>14} {'worst':>5} {'seconds':>9} {'worst':>7}"]
    for kind, found in {**report["by_kind"], "all": report}.items():
        if found["faults"]:
            steps, seconds = found["steps_redone"], found["seconds_to_next_new_step"]
            lines.append(
                f"{kind:<20} {found['faults']:>5} {steps['median']:>14g} {steps['worst']:>5} "
                f"{seconds['median']:>9.1f} {seconds['worst']:>7.1f}"
            )
    lines.append("steps and seconds are medians")
    left = {name: len(found) for name, found in report["left_over"].items()}
    lines.append(f"{report['faults']} faults, {report['attempts']} attempts, exit codes {report['exit_codes']}")
    lines.append(f"same weights as the undisturbed run: {report['same_weights']}; left over: {left}")
    return "\n".join(lines)


def passes(report: dict[str, Any]) -> bool:
    """Whether the result is the same and there are no leftovers."""
    ended = set(report["exit_codes"].values()) == {0}
    return bool(report["same_weights"]) and ended and not any(report["left_over"].values()) and report["faults"] > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak test; 0 if it passes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, help="default: 100, through Ray 40")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="default: 2, with --gpu 1")
    parser.add_argument("--ray", action="store_true", help="through Ray, instead of the local supervisor")
    parser.add_argument(
        "--gpu", action="store_true", help="each worker on a GPU of its own, with deterministic kernels"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help="working folder, which is kept (default: a temporary one)")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        faults, workers = given.faults or (40 if given.ray else 100), given.workers or (1 if given.gpu else 2)
        report = soak(folder.absolute(), faults, given.minutes, workers, given.seed, ray=given.ray, gpu=given.gpu)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(report))
    if given.output is not None:
        given.output.write_text(json.dumps({**origin(), **report}, indent=2) + "\n")
    return 0 if passes(report) else 1


if __name__ == "__main__":
    sys.exit(main())
