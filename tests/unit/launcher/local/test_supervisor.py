"""The parent of a local run: its workers are refused, silent, hang, end, or stay for the next attempt."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config.schema import Faults, RunConfig
from launcher.console import Progress
from launcher.errors import CollectiveFault, ConfigError, LauncherError, Problem, UsageError, WorkerHung, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.local import supervisor as local_supervisor
from launcher.local.messages import Abandon, Failed, Job, Message, Order
from launcher.local.spares import Spares, WorkerProcess
from launcher.local.supervisor import ANSWER_S, Workers, run_supervised
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.notify import Notifier
from launcher.recovery.session import Session
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat

BEAT = Heartbeat(rank=0, host="here", pid=1, tick=1, phase="step", step=5, age_s=0.0)
FAULTS = Faults(hang_timeout_s=60.0, start_timeout_s=60.0, warm_spares=0)
LOST = "the connection was closed"


class Process(WorkerProcess):
    """A worker process that sends what a test says, one message a look; None: nothing. Then it runs, or ends."""

    def __init__(self, *messages: Message | None, ends: bool = False) -> None:
        self.is_ready, self.end_descriptor, self.link = True, None, object()  # type: ignore[assignment]
        self.orders: list[Order] = []
        self.signals: list[int] = []
        self.ended = False
        self._messages, self._ends = list(messages), ends

    @property
    def runs(self) -> bool:
        return not (self.ended or self.signals or (self._ends and not self._messages))

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def receive(self) -> tuple[list[Message], bool]:
        message = self._messages.pop(0) if self._messages else None
        return ([] if message is None else [message]), True

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def finish(self, seconds: float) -> None:
        self.ended = True

    def end(self) -> None:
        self.ended = True

    def how_it_ended(self, rank: int) -> WorkerLost:
        return WorkerLost("here", rank, "killed")


class Given(Spares):
    """Hands out the processes of a test, in their order."""

    def __init__(self, *processes: Process) -> None:
        super().__init__(Progress())
        self.processes = list(processes)
        self.num_started: list[int] = []

    def start(self, num: int = 1) -> None:
        self.num_started.append(num)

    def take(self) -> WorkerProcess:
        return self.processes.pop(0)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query of the clock advances it by a second, and nothing waits."""
    seconds = itertools.count()
    monkeypatch.setattr("launcher.local.supervisor.time.monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("launcher.local.supervisor.time.sleep", lambda seconds: None)
    monkeypatch.setattr("launcher.local.supervisor.wait_for_any", lambda *_: [])


@pytest.fixture
def config(write_config: Callable[..., Path]) -> RunConfig:
    return dataclasses.replace(configs.load(write_config()), faults=FAULTS)


@pytest.fixture
def session(config: RunConfig, small_run: RunDirectory) -> Iterator[Session]:
    notifier, progress = Notifier(config.notify, small_run), Progress()
    yield Session(config, small_run, progress, notifier)
    progress.close()
    notifier.close()


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[Heartbeat]:
    """The heartbeats of the attempt, whose ticks go on."""
    found, ticks = [BEAT], itertools.count(1)
    monkeypatch.setattr(
        local_supervisor, "read_beats", lambda *_: [dataclasses.replace(beat, tick=next(ticks)) for beat in found]
    )
    return found


def workers_of(session: Session, *processes: Process) -> Workers:
    return Workers(session, len(processes), Given(*processes))


def job_of(session: Session, **more: Any) -> Job:
    return Job(session.config, "auto", **more)


@pytest.mark.parametrize("error", [UsageError("--resume never"), ConfigError([Problem("x", "batch", "8", "16")])])
def test_a_refusal_before_the_attempt_begins_leaves_the_run_as_it_is(
    error: LauncherError, session: Session, small_run: RunDirectory
) -> None:
    number = small_run.begin_attempt({"place": "local"})
    small_run.end_attempt(number, 0, "finished", 100)
    small_run.mark_finished({"step": 100})
    before = sorted(small_run.path.rglob("*")), small_run.attempts_file.read_bytes()
    process = Process(Failed(error))
    with pytest.raises(type(error)):
        run_supervised(session, "never", Given(process))
    assert [order.mode for order in process.orders if isinstance(order, Job)] == ["never"]
    assert process.ended
    assert (sorted(small_run.path.rglob("*")), small_run.attempts_file.read_bytes()) == before


def test_a_heartbeat_that_cannot_be_read_once_is_no_hang(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(1)

    def beats(*_: object) -> list[Heartbeat]:
        tick = next(ticks)
        return [] if tick % 50 == 0 else [dataclasses.replace(BEAT, tick=tick)]

    monkeypatch.setattr(local_supervisor, "read_beats", beats)
    result = AttemptResult(5, finished=True)
    process = Process(AttemptSpec(1), *[None] * 1000, (0, result))  # longer than the timeout of a start
    assert workers_of(session, process).carry_out(job_of(session)) == (ExitCode.OK, result)


def test_a_worker_that_reports_a_hang_and_does_not_end_is_killed(session: Session, beats: list[Heartbeat]) -> None:
    beats[:] = [dataclasses.replace(BEAT, hung=True)]
    process = Process(AttemptSpec(1))
    error = workers_of(session, process).carry_out(job_of(session))
    assert isinstance(error, WorkerHung)
    assert process.signals == [9]


def test_a_start_that_takes_for_ever_is_a_hang(session: Session, beats: list[Heartbeat]) -> None:
    beats.clear()
    error = workers_of(session, Process()).carry_out(job_of(session))
    assert isinstance(error, WorkerHung)
    assert "no heartbeat for 180 s" in str(error)


def test_a_process_that_never_becomes_ready_is_the_one_that_hangs(session: Session, beats: list[Heartbeat]) -> None:
    beats.clear()
    first, second = Process(*[None] * 1000, Failed(CollectiveFault(LOST))), Process()
    second.is_ready = False
    error = workers_of(session, first, second).carry_out(job_of(session))
    assert isinstance(error, WorkerHung)
    assert error.rank == 1
    assert (first.signals, second.signals) == ([], [9])


@pytest.mark.parametrize(("max_failures", "stopped", "num_started"), [(3, False, [1]), (0, False, [0]), (3, True, [])])
def test_idle_processes_are_kept_unless_the_run_is_not_started_again(
    max_failures: int,
    stopped: bool,
    num_started: list[int],
    session: Session,
    beats: list[Heartbeat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(session.stop), "stopped", stopped)
    faults = dataclasses.replace(FAULTS, max_failures=max_failures, warm_spares=1)
    session = dataclasses.replace(session, config=dataclasses.replace(session.config, faults=faults))
    spares = Given(Process(AttemptSpec(1), *[None] * 20, (0, AttemptResult(5, finished=True))))
    Workers(session, 1, spares).carry_out(job_of(session))
    assert spares.num_started[:1] == num_started


def test_a_message_that_comes_as_the_process_ends_is_received(session: Session) -> None:
    result = AttemptResult(7, finished=False)
    process = Process(None, (75, result), ends=True)
    assert workers_of(session, process).carry_out(job_of(session)) == (ExitCode.STOPPED, result)


def test_the_result_of_the_first_worker_counts_and_all_end(session: Session, beats: list[Heartbeat]) -> None:
    first, second = AttemptResult(7, finished=True), AttemptResult(7, finished=True, measured={"time_s": 1.0})
    processes = Process(AttemptSpec(1), (0, first)), Process(None, None, (0, second))
    assert workers_of(session, *processes).carry_out(job_of(session)) == (ExitCode.OK, first)
    assert all(process.ended for process in processes)


def test_each_worker_gets_its_rank_and_all_the_same_rendezvous(session: Session, beats: list[Heartbeat]) -> None:
    processes = Process((0, AttemptResult(1, finished=True))), Process((0, AttemptResult(1, finished=True)))
    workers = workers_of(session, *processes)
    workers.carry_out(job_of(session, memory=(4, 1)))
    jobs = [process.orders[0] for process in processes]
    assert [(job.rank, job.world_size, job.memory) for job in jobs if isinstance(job, Job)] == [
        (0, 2, (4, 1)),
        (1, 2, (4, 1)),
    ]
    [path] = {job.rendezvous for job in jobs if isinstance(job, Job)}
    assert Path(path).exists()  # also after the attempt: its number may not be that of another file of this process
    workers.close()
    assert not Path(path).exists()


@pytest.mark.usefixtures("beats")
class TestSurvivors:
    """After a worker is lost, the others stay if they can."""

    def fail(self, session: Session, *processes: Process) -> tuple[Workers, Exception]:
        workers = workers_of(session, *processes)
        error = workers.carry_out(job_of(session))
        assert isinstance(error, Exception)
        return workers, error

    def test_the_furthest_state_in_memory_is_the_start(self, session: Session) -> None:
        lost = Process(AttemptSpec(1), ends=True)
        behind, ahead = (Process(None, None, None, Failed(CollectiveFault(LOST), step)) for step in (41, 42))
        workers, error = self.fail(session, lost, behind, ahead)
        assert isinstance(error, WorkerLost)
        assert error.rank == 0
        assert workers.in_memory(error) == (42, 2)
        assert [process.ended for process in (lost, behind, ahead)] == [True, False, False]
        assert any(isinstance(order, Abandon) for order in ahead.orders)

    def test_one_that_does_not_answer_is_replaced(self, session: Session) -> None:
        lost, silent = Process(AttemptSpec(1), ends=True), Process()
        workers, error = self.fail(session, lost, silent)
        assert isinstance(error, WorkerLost)
        assert error.rank == 0
        assert ANSWER_S > 0
        assert silent.ended
        assert workers.in_memory(error) is None

    @pytest.mark.parametrize(
        ("own", "is_current", "engine"),
        [
            (UsageError("of one worker"), True, "ddp"),
            (None, False, "ddp"),
            (None, True, "zero"),
        ],
        ids=["another error", "code has changed", "a partitioned state"],
    )
    def test_otherwise_all_processes_are_new(
        self, own: Exception | None, is_current: bool, engine: str, session: Session, config: RunConfig
    ) -> None:
        config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, name=engine))
        session = dataclasses.replace(session, config=config)
        first = Process(ends=True) if own is None else Process(Failed(own, 42))
        other = Process(Failed(CollectiveFault(LOST), 42, is_current=is_current))
        workers, error = self.fail(session, first, other)
        assert type(error) is (WorkerLost if own is None else type(own))
        assert workers.in_memory(error) is None
        assert first.ended
        assert other.ended

    def test_that_all_are_replaced_because_the_code_has_changed_is_shown(self, session: Session) -> None:
        shown = io.StringIO()
        session = dataclasses.replace(session, progress=Progress(shown))
        lost, other = Process(ends=True), Process(Failed(CollectiveFault(LOST), 42, is_current=False))
        given = Given(lost, other)
        workers = Workers(session, 2, given)
        error = workers.carry_out(job_of(session))
        assert isinstance(error, Exception)
        workers.in_memory(error)
        assert "the code has changed" not in shown.getvalue()  # the failure is shown first
        for _ in range(2):
            given.processes = [Process((0, AttemptResult(60, finished=True))) for _ in range(2)]
            workers.carry_out(job_of(session))
            workers.close()
        assert shown.getvalue().count("the code has changed on disk since the workers began") == 1

    def test_the_one_that_hangs_ends_and_the_others_write_their_stacks(
        self, session: Session, small_run: RunDirectory, beats: list[Heartbeat]
    ) -> None:
        small_run.logs(1).path.mkdir(parents=True)
        beats[:] = [
            dataclasses.replace(BEAT, waiting=True, age_s=99.0),
            dataclasses.replace(BEAT, rank=1, age_s=99.0),
        ]
        waits = Process(AttemptSpec(1), *[None] * 200, Failed(CollectiveFault(LOST), 4))
        hangs = Process(None)
        _, error = self.fail(session, waits, hangs)
        assert isinstance(error, WorkerHung)
        assert error.rank == 1
        assert hangs.signals == [9]
        assert small_run.logs(1).dump_request.exists()


def test_the_next_attempt_starts_from_memory_unless_a_checkpoint_is_further(
    session: Session, small_run: RunDirectory, beats: list[Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_supervisor, "wait", lambda *_: None)
    config = dataclasses.replace(
        session.config, resources=dataclasses.replace(session.config.resources, local_workers=2)
    )
    session = dataclasses.replace(session, config=config)
    number = small_run.begin_attempt({"place": "local"})
    survivor = Process(AttemptSpec(number), Failed(CollectiveFault(LOST), 42), (0, AttemptResult(60, finished=True)))
    lost, spare = Process(None, ends=True), Process((0, AttemptResult(60, finished=True)))
    given = Given(survivor, lost, spare)
    code, _ = run_supervised(session, "never", given)
    assert code is ExitCode.OK
    jobs = [order for order in survivor.orders if isinstance(order, Job)]
    assert [(job.mode, job.memory) for job in jobs] == [("never", None), ("auto", (42, 0))]
    [failed] = [attempt.end_facts for attempt in small_run.attempts()]
    assert (failed["checkpoint_step"], failed["kept_step"], failed["steps_redone"]) == (0, 42, 0)
