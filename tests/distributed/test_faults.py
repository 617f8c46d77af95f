"""Struck for real, a run ends where the untouched one does. One host: processes are killed, stopped, hung and poisoned.

Each case is a line: where it strikes, and what is equal after. Several hosts are in tests/lab/ray_hosts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from launcher import heartbeats
from launcher.run_directory import RunDirectory
from resnet_dist.checkpoint import restore
from resnet_dist.sink import read_metrics

PACED = Path(__file__).parents[2] / "benchmarks"  # where the model paced:build is
STEPS = 60
CONFIG: dict[str, Any] = {
    "schema": 1,
    "name": "struck",
    "place": "local",
    "duration": f"{STEPS} steps",
    "model": {"name": "paced:build", "num_classes": 10},
    "data": {"resolution": 16, "flip": False, "crop_area": [0.7, 1.0]},
    "batch": {"size": 37},
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "convention": "lr_outside"},
    "schedule": {"peak_lr": 0.5, "warmup": "5 steps", "decay": "cosine"},
    "evaluate": {"every": "20 steps"},
    "checkpoint": {"every": "10 steps"},
    "faults": {"hang_timeout_s": 15},
    "log": {"every_steps": 1, "tensorboard": False},
    "precision": "float64",
}


def environment() -> dict[str, str]:
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return {**kept, "PYTHONPATH": str(PACED)}


class Struck:
    """A run as its tormentor sees it."""

    def __init__(self, folder: Path, root: Path, **more: Any) -> None:
        self.directory = RunDirectory(folder / "runs", "struck")
        self.run = self.directory.path
        self.pace_file = folder / "pace.json"
        config = {**CONFIG, "storage": str(folder / "runs"), "data": {**CONFIG["data"], "root": str(root)}, **more}
        config["model"] = {**config["model"], "arguments": {"pace": str(self.pace_file)}}
        self.file = folder / "struck.yaml"
        self.file.write_text(yaml.safe_dump(config))
        self._log = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *overrides: str) -> None:
        """Start the main job."""
        with self._log.open("ab") as output:
            command = [sys.executable, "-m", "launcher.train", str(self.file), *overrides]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def end(self, code: int = 0, timeout_s: float = 180) -> str:
        """Wait for the end, which must come with `code`; what the run has printed."""
        self.process.wait(timeout_s)
        output = self._log.read_text()
        assert self.process.returncode == code, output
        return output

    def until(self, true: Callable[[], Any], timeout_s: float = 120) -> Any:
        """Wait, as short as can be, until `true` gives something; that."""
        deadline = time.monotonic() + timeout_s
        while not (found := true()):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.002)
        return found

    def has_written(self, text: str) -> bool:
        """Whether metrics.jsonl holds `text`."""
        return self.directory.metrics.exists() and text in self.directory.metrics.read_text()

    def wait_for_step(self, step: int) -> None:
        self.until(lambda: self.has_written(f'"train", "step": {step},'))

    def pace(self, **seconds: float) -> None:
        self.pace_file.write_text(json.dumps(seconds))

    def pid(self, rank: int = 0, attempt: int = 1) -> int:
        """The process that trains."""
        beats = self.until(lambda: heartbeats.read(self.directory.logs(attempt)).get(rank))
        return int(beats.pid)

    def child(self) -> int:
        """The child of the main job's process, as soon as there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(self.until(lambda: children.read_text().split())[0])

    def losses(self) -> dict[int, float]:
        return {r["step"]: r["loss"] for r in read_metrics(self.directory.metrics) if r["kind"] == "train"}

    def weights(self) -> dict[str, Any]:
        checkpoint = restore.newest(self.directory.checkpoints)
        assert checkpoint is not None
        assert checkpoint.step == STEPS
        return checkpoint.model()

    def failures(self) -> list[tuple[str, int]]:
        """(class of the error, steps done again) of every attempt that failed."""
        facts = [attempt.end_facts for attempt in self.directory.attempts()]
        return [(fact["class"], fact["steps_redone"]) for fact in facts if "class" in fact]

    def incident(self, attempt: int = 1) -> str:
        return (self.directory.incident(attempt) / "summary.txt").read_text()


Make = Callable[..., Struck]


@pytest.fixture
def struck(tmp_path: Path, digits: Path) -> Iterator[Make]:
    made: list[Struck] = []

    def make(root: Path = digits, **more: Any) -> Struck:
        made.append(Struck(tmp_path, root, **more))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Struck:
    run = Struck(tmp_path_factory.mktemp("untouched"), digits)
    run.start()
    run.end()
    return run


def assert_same_bits(found: Struck, expected: Struck) -> None:
    assert found.losses() == expected.losses()
    weights, others = found.weights(), expected.weights()
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(tensor) for name, tensor in others.items())


def assert_nothing_is_left(run: Struck) -> None:
    """No process of the run, no half-written checkpoint, no lease."""
    left = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and _names(pid, str(run.run))]
    assert left == []
    assert [path.name for path in run.directory.checkpoints.iterdir() if path.name.startswith(".")] == []
    assert [path.suffix for path in run.directory.lease.iterdir() if path.suffix not in (".json", ".released")] == []


def _names(process: Path, folder: str) -> bool:
    try:
        return any(str(link.readlink()).startswith(folder) for link in (process / "fd").iterdir())
    except OSError:
        return False


# --- one process under its supervisor: the same topology, so the same bits


@dataclass(frozen=True)
class Strike:
    """`when` returns at the moment to strike, with the process to strike."""

    name: str
    signal: int
    when: Callable[[Struck], int]
    error: str
    most_redone: int = 10  # steps: a checkpoint's interval


def at_a_random_step(run: Struck) -> int:
    run.wait_for_step(random.randint(12, 50))
    return run.pid()


def while_a_checkpoint_is_written(run: Struck) -> int:
    pid = run.pid()
    run.wait_for_step(19)
    run.until(lambda: any(path.name.startswith(".step-00000020") for path in run.directory.checkpoints.iterdir()))
    return pid


def in_evaluation(run: Struck) -> int:
    pid = run.pid()
    run.wait_for_step(20)
    assert not run.has_written('"eval", "step": 20,')
    return pid


def at_start_up(run: Struck) -> int:
    return run.child()


STRIKES = [
    Strike("killed at a random step", signal.SIGKILL, at_a_random_step, "WorkerLost"),
    Strike("killed while a checkpoint is written", signal.SIGKILL, while_a_checkpoint_is_written, "WorkerLost", 11),
    Strike("killed in evaluation", signal.SIGKILL, in_evaluation, "WorkerLost"),
    Strike("killed at start-up", signal.SIGKILL, at_start_up, "WorkerLost", 0),
    Strike("stopped at a random step", signal.SIGSTOP, at_a_random_step, "WorkerHung"),
    Strike("crashed at a random step", signal.SIGSEGV, at_a_random_step, "WorkerLost"),
]


@pytest.mark.parametrize("strike", STRIKES, ids=lambda strike: strike.name)
def test_a_struck_process_is_replaced_and_the_bits_are_the_same(
    struck: Make, untouched: Struck, strike: Strike
) -> None:
    run = struck()
    run.start()
    os.kill(strike.when(run), strike.signal)
    run.end()
    [(error, redone)] = run.failures()
    assert error == strike.error
    assert redone <= strike.most_redone
    assert_same_bits(run, untouched)
    assert_nothing_is_left(run)


def test_a_thread_that_hangs_is_noticed_named_and_replaced(struck: Make, untouched: Struck) -> None:
    run = struck()
    run.start()
    run.wait_for_step(15)
    run.pace(all=3600)
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    run.end()
    assert [error for error, _ in run.failures()] == ["WorkerHung"]
    assert run.incident().startswith("attempt 1 failed after step 1")
    assert "paced.py" in (run.directory.incident(1) / "stacks/rank-0.txt").read_text()
    assert_same_bits(run, untouched)


def test_restarts_without_progress_use_up_the_budget_and_are_told(struck: Make) -> None:
    run = struck(faults={"hang_timeout_s": 15, "max_failures": 1})
    run.start()
    for attempt in (1, 2):
        os.kill(run.pid(attempt=attempt), signal.SIGKILL)
    output = run.end(code=76)
    assert "2 failures without a later checkpoint; faults.max_failures is 1. What happened:" in output
    fatal = run.directory.fatal()
    assert fatal is not None
    assert "attempt 2, steps 0.., saved 0: WorkerLost" in fatal.message


def test_a_second_start_of_a_run_at_work_is_refused_and_names_the_first(struck: Make, untouched: Struck) -> None:
    run = struck()
    run.start()
    run.wait_for_step(3)
    second = [sys.executable, "-m", "launcher.train", str(run.file)]
    done = subprocess.run(second, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 69
    assert f"in use by process {run.process.pid}" in done.stderr
    run.end()
    assert run.failures() == []
    assert_same_bits(run, untouched)


def test_a_killed_supervisor_takes_its_process_along_and_the_next_start_goes_on(
    struck: Make, untouched: Struck
) -> None:
    run = struck()
    run.start()
    run.wait_for_step(15)
    child = run.pid()
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    run.start("--resume", "must")
    run.end()
    assert_same_bits(run, untouched)


def test_a_notice_file_saves_and_ends_with_75(struck: Make, tmp_path: Path, untouched: Struck) -> None:
    notice = tmp_path / "notice"
    run = struck(preemption={"notice_file": str(notice)})
    run.start()
    run.wait_for_step(15)
    notice.touch()
    run.pace(all=0.1)
    run.end(code=75)
    [attempt] = run.directory.attempts()
    saved = restore.newest(run.directory.checkpoints)
    assert saved is not None
    assert (attempt.exit_code, attempt.last_step) == (75, saved.step)
    assert max(run.losses()) == saved.step  # no step was lost
    notice.unlink()
    run.pace(all=0)
    run.start()
    run.end()
    assert_same_bits(run, untouched)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The digits with one training image all white, on which paced:build has a loss that is no number."""
    root = tmp_path_factory.mktemp("poisoned") / "digits"
    for split in ("train", "val"):
        for source in sorted((digits / split).rglob("*.*")):
            target = root / source.relative_to(digits)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    victim = sorted((root / "train" / "4").iterdir())[0]
    with Image.open(victim) as image:
        size, mode = image.size, image.mode
    victim.unlink()
    Image.fromarray(np.full((size[1], size[0]), 255, dtype=np.uint8)).convert(mode).save(victim)
    return root


def test_a_loss_that_is_not_finite_ends_the_run_with_79(struck: Make, poisoned: Path) -> None:
    run = struck(poisoned)
    run.start()
    output = run.end(code=79)
    assert "training diverged" in output
    assert [error for error, _ in run.failures()] == ["DivergedError"]


def test_a_loss_that_is_not_finite_is_skipped_with_its_samples(struck: Make, poisoned: Path) -> None:
    faults = {"hang_timeout_s": 15, "on_nonfinite": "skip", "max_failures": 1}
    run = struck(poisoned, faults=faults)
    run.start()
    output = run.end()
    errors = {error for error, _ in run.failures()}
    assert errors == {"DivergedError"}
    assert "skipping the samples of steps" in output
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    assert all(np.isfinite(loss) for loss in run.losses().values())
    assert run.directory.is_finished()


# --- Ray's workers on one host: two ranks, so sums are added in another order


def assert_same_losses(found: Struck, expected: Struck) -> None:
    losses, others = found.losses(), expected.losses()
    assert sorted(losses) == sorted(others)
    assert max(abs(losses[step] - loss) / abs(loss) for step, loss in others.items()) < 1e-9


@pytest.mark.ray
def test_a_stopped_rank_is_named_with_the_stacks_of_the_others_and_replaced(struck: Make, untouched: Struck) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    run = struck(place="ray", workers=2)
    run.start()
    run.wait_for_step(12)
    os.kill(run.pid(rank=1), signal.SIGSTOP)
    run.end(timeout_s=240)
    facts = json.loads((run.directory.incident(1) / "incident.json").read_text())
    assert (facts["class"], facts["rank"]) == ("WorkerHung", 1)
    assert "all_reduce" in (run.directory.incident(1) / "stacks/rank-0.txt").read_text()
    flight = json.loads((run.directory.incident(1) / "flight/rank-0.json").read_text())
    assert flight["entries"][-1]["profiling_name"] == "gloo:all_reduce"
    assert_same_losses(run, untouched)


@pytest.mark.ray
def test_a_straggler_and_a_rank_that_hangs_are_named(struck: Make, untouched: Struck) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    run = struck(place="ray", workers=2)
    run.pace(**{"all": 0.02, "1": 0.2})
    run.start()
    run.wait_for_step(35)
    [straggler] = [r for r in read_metrics(run.directory.metrics) if r.get("event") == "straggler"]
    assert straggler["detail"]["rank"] == 1
    assert straggler["detail"]["host"] == os.uname().nodename
    run.pace(**{"all": 0.0, "1": 3600})
    run.until(lambda: run.directory.incident(1).is_dir())
    run.pace(all=0)
    output = run.end(timeout_s=240)
    facts = json.loads((run.directory.incident(1) / "incident.json").read_text())
    assert (facts["class"], facts["rank"], facts["phase"]) == ("WorkerHung", 1, "step")
    assert "paced.py" in (run.directory.incident(1) / "stacks/rank-1.txt").read_text()
    assert "worker 1" in output
    assert_same_losses(run, untouched)
