"""Struck for real, a run ends where the untouched one does. One host: processes are killed, stopped, hung and poisoned.

Each case is a line: where it strikes, and what is equal after. Several hosts are in tests/lab/ray_hosts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
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

from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from resnet_dist.checkpoint import restore
from resnet_dist.data.index import Index
from resnet_dist.data.order import Stream
from resnet_dist.telemetry.metrics_file import read_metrics

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
    "optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4, "lr_in_momentum": False},
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

    def start(self, *overrides: str, processes: int = 1) -> None:
        """Start the main job, in a session of its own; more than one process through torchrun."""
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launch, "-m", "launcher.train", str(self.file), *overrides]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment(), start_new_session=True
            )

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


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


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


# --- told to stop, suspended, replaced


def schedulers_and_a_persons(run: Struck) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        run.process.send_signal(number)


def a_key_press_in_a_terminal(run: Struck) -> None:
    os.killpg(run.process.pid, signal.SIGINT)  # reaches the child, too, to which its parent passes it on


@pytest.mark.parametrize(("told", "code"), [(schedulers_and_a_persons, 75), (a_key_press_in_a_terminal, 130)])
def test_several_signals_at_once_save_once(struck: Make, told: Callable[[Struck], None], code: int) -> None:
    run = struck()
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(3)
    told(run)
    run.end(code=code)
    saved = [path.name for path in run.directory.checkpoints.iterdir()]
    [attempt] = run.directory.attempts()
    assert saved == [f"step-{attempt.last_step:08d}"]
    assert max(run.losses()) == attempt.last_step  # no step was lost
    assert_nothing_is_left(run)


def test_a_run_that_was_suspended_for_longer_than_a_hang_goes_on(struck: Make, untouched: Struck) -> None:
    run = struck(faults={"hang_timeout_s": 5})
    run.start()
    run.wait_for_step(15)
    os.killpg(run.process.pid, signal.SIGSTOP)
    time.sleep(7)
    os.killpg(run.process.pid, signal.SIGCONT)
    run.end()
    assert (len(run.directory.attempts()), run.failures()) == (1, [])
    assert_same_bits(run, untouched)


def test_a_suspended_run_that_another_host_has_taken_over_names_no_checkpoint_and_ends(struck: Make) -> None:
    run = struck()
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(12)  # the checkpoint of step 10 is there, or about to be
    run.until(lambda: (run.directory.checkpoints / "step-00000010").exists())
    child = run.pid()
    run.process.send_signal(signal.SIGSTOP)  # the parent, which renews the lease
    [held] = run.directory.lease.glob("*.json")
    (held.parent / "00000002.json").write_text(json.dumps({**json.loads(held.read_text()), "host": "another"}))
    deadline = time.monotonic() + 60
    while not _has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _has_ended(child)  # without a word of its parent
    assert max(run.losses()) >= 19
    assert [path.name for path in run.directory.checkpoints.iterdir()] == ["step-00000010"]
    run.process.send_signal(signal.SIGCONT)
    output = run.end(code=69)
    assert "taken" in output
    assert run.directory.fatal() is None
    assert [attempt.ended for attempt in run.directory.attempts()] == [None]  # its record is the other's now


# --- data that does harm


def _linked(source: Path, target: Path) -> Path:
    for split in ("train", "val"):
        for file in sorted((source / split).rglob("*.*")):
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    return target


def test_a_file_that_vanishes_under_rank_1_is_the_cause_though_rank_0_ends_with_it(
    struck: Make, tmp_path: Path, digits: Path
) -> None:
    root = _linked(digits, tmp_path / "images")
    run = struck(root)
    run.pace(all=0.05)
    run.start(processes=2)
    run.wait_for_step(1)
    train = Index.load(next(run.directory.index.glob("train*")))
    last_of_step_30 = np.array([30 * 37 - 1])  # in the share of rank 1
    [sample_id] = Stream(num_samples=len(train), seed=0).sample_ids(last_of_step_30)
    victim = Path(train.path(int(sample_id)))
    victim.unlink()
    run.end(code=1)  # torchrun's own
    fatal = run.directory.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.kind) == (65, "DataError")
    assert victim.name in fatal.message
    [attempt] = run.directory.attempts()  # rank 0 keeps the record
    assert (attempt.exit_code, attempt.cause) == (65, fatal.message)
    assert "Connection closed" in run.directory.logs(1).log(0).read_text()  # all that it has seen of it


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _shrink(file: Path) -> None:
    Image.new("L", (2, 2)).save(file)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "cannot be decoded: [Errno 2] No such file or directory"),
        (_cut, "cannot be decoded: "),  # why, the codec says in words of its own
        (_shrink, "is too small for its window"),  # the index no longer fits
    ],
    ids=["vanished", "cut in half", "replaced by a smaller one"],
)
def test_an_image_that_is_harmed_on_the_way_ends_the_run_named_and_for_good(
    struck: Make, tmp_path: Path, digits: Path, harm: Callable[[Path], None], reason: str
) -> None:
    root = tmp_path / "images"
    shutil.copytree(digits, root)
    run = struck(root)
    run.pace(all=0.05)
    run.start()
    run.wait_for_step(1)
    train = Index.load(next(run.directory.index.glob("train*")))
    [sample_id] = Stream(num_samples=len(train), seed=0).sample_ids(np.array([30 * 37 - 1]))
    victim = Path(train.path(int(sample_id)))
    harm(victim)
    output = run.end(code=65)
    fatal = run.directory.fatal()
    assert fatal is not None
    assert (fatal.exit_code, fatal.kind) == (65, "DataError")
    for text in (output, fatal.message):
        assert f"{victim} (sample {sample_id}): {reason}" in text
    assert "Traceback" not in output
    assert [attempt.exit_code for attempt in run.directory.attempts()] == [65]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The digits with one training image all white, on which paced:build has a loss that is no number."""
    root = _linked(digits, tmp_path_factory.mktemp("poisoned") / "digits")
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
    # rank 0 waits in the exchange of a batch norm, of gradients or of a step's totals
    stacks = (run.directory.incident(1) / "stacks/rank-0.txt").read_text()
    flight = json.loads((run.directory.incident(1) / "flight/rank-0.json").read_text())
    kind = flight["entries"][-1]["profiling_name"].removeprefix("gloo:")
    assert kind in ("all_reduce", "all_gather")
    assert kind in stacks
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
