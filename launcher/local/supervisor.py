"""A run in child processes, started again after a failure by the same retry policy as under Ray.

The parent does not import torch, so it starts fast and torch cannot crash it. It passes signals on to its workers; exit
codes and errors are theirs. If the parent is killed, they end too.

After a failure there are two kinds of restart. If a worker was lost or hangs, the others stay in their processes, an
idle process replaces it (`launcher.local.spares`), and the next attempt starts from the furthest step that one of them
has in memory, or else from the newest checkpoint. After any other failure, all processes are new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import wait as wait_for_any

from launcher.console import Progress
from launcher.errors import ConfigError, UsageError, WorkerHung, WorkerLost
from launcher.exit_codes import ExitCode
from launcher.local.messages import Abandon, End, Failed, Job, Message
from launcher.local.spares import EXIT_S, Spares, WorkerProcess, num_spares
from launcher.local.to_parent import ProgressCall
from launcher.recovery.attempt import AttemptResult, AttemptSpec, ResumeMode
from launcher.recovery.faults import select_root_cause
from launcher.recovery.handler import FailureHandler, wait
from launcher.recovery.history import retry_policy
from launcher.recovery.session import Session
from launcher.run import heartbeats
from launcher.run.heartbeats import Heartbeat
from launcher.run.lease import LeaseLost
from launcher.run.progress import completed_steps, newest_step, read_beats

# For the other workers to answer after a failure. They fail as soon as a connection is closed; then they complete the
# checkpoint that is being written, and wait 5 s for its mirror. Who needs longer waits for something that never comes.
ANSWER_S = 15.0
DUMP_S = 2.0  # for workers that wait for a hanging one to write their stacks: they look for the request every interval


def run_supervised(session: Session, mode: ResumeMode, spares: Spares | None = None) -> tuple[ExitCode, AttemptResult]:
    """Train in child processes, and again after failures; returns the exit code and the result, or raises.

    `spares`: processes that were started before, while the config was checked. They end with this call.
    """
    run, host, stop, num = session.run, socket.gethostname(), session.stop, session.config.resources.local_workers
    spares = Spares(session.progress, same_path=not session.attended) if spares is None else spares
    workers = Workers(session, num, spares)
    memory: tuple[int, int] | None = None
    with contextlib.closing(workers), stop.listen(on_stop=workers.signal, on_end=workers.kill):
        if stop.received is None:
            spares.start(num)
        policy = dataclasses.replace(retry_policy(session.config), min_workers=num, max_workers=num)
        handler = FailureHandler(session, policy)
        trained = False
        while True:
            began = time.time()
            session.check_lease()
            if session.stop.stopped:  # before the first attempt, or between two
                return stop.exit_code, AttemptResult(newest_step(run), finished=False, trained=trained)
            job = Job(session.config, mode, session.claim, handler.num_micro_batches, memory=memory)
            ended, trained = workers.carry_out(job), True
            if isinstance(ended, tuple):
                code, result = ended
                return stop.exit_code if stop.stopped and code is not ExitCode.OK else code, result
            if isinstance(ended, LeaseLost):
                raise ended  # the run belongs to another process now: nothing is recorded
            attempt = workers.attempt
            if attempt is None:
                if stop.stopped:  # it ended before it could train
                    return stop.exit_code, AttemptResult(newest_step(run), finished=False, trained=False)
                if isinstance(ended, UsageError | ConfigError):
                    raise ended  # refused before it began: nothing is recorded
                number, first_step = run.begin_attempt({"place": "local", "workers": num}), 0
                if memory is not None:
                    first_step = memory[0]
                attempt = AttemptSpec(number, first_step, memory=memory)
            attempt = dataclasses.replace(attempt, began=began)
            memory = workers.in_memory(ended)
            kept_step = None if memory is None else memory[0]
            decision = handler.handle(ended, attempt, {host: num}, stopping=stop.stopped, kept_step=kept_step)
            if kept_step is not None and kept_step < decision.history.saved_step:
                memory = None  # a checkpoint is further
            mode = "auto"
            wait(decision.wait_s, stop)


class Workers:
    """The worker processes of a run, by rank. A process stays for the next attempt unless it has to be replaced."""

    def __init__(self, session: Session, num: int, spares: Spares) -> None:
        self.attempt: AttemptSpec | None = None  # of the job that is carried out, once it has begun
        self._session, self._num, self._spares = session, num, spares
        self._progress: Progress = session.progress
        self._processes: dict[int, WorkerProcess] = {}
        self._ends: dict[int, End | Exception] = {}  # by rank: what it has sent, or how it ended without a word
        self._files = contextlib.ExitStack()  # of the rendezvous of each attempt
        self._num_spares: int | None = None  # to keep; None: not decided yet
        self._note = ""  # shown as the next attempt starts

    def signal(self, number: int) -> None:
        """Send a signal to all workers."""
        for process in list(self._processes.values()):
            process.signal(number)

    def kill(self) -> None:
        """End all processes at once, from a signal handler."""
        self.signal(signal.SIGKILL)
        self._spares.kill()

    def close(self) -> None:
        """End all processes at once."""
        for process in self._processes.values():
            process.end()
        self._processes = {}
        self._spares.close()
        self._files.close()

    def in_memory(self, error: Exception) -> tuple[int, int] | None:
        """The furthest step that a worker has in memory after `error`, and its rank.

        Workers that cannot go on in their processes end here: all of them, unless another worker was lost or hangs.
        """
        failed = {rank: end for rank, end in self._ends.items() if isinstance(end, Failed)}
        survive = isinstance(error, WorkerLost | WorkerHung) and self._session.config.engine.name == "ddp"
        if survive and not all(end.is_current for end in failed.values()):
            survive = False  # a process that replaces another one would have other code
            self._note = "the code has changed on disk since the workers began: all of them are replaced"
        for rank, process in list(self._processes.items()):
            if not survive or rank not in failed or not process.runs:
                process.end()
                del self._processes[rank]
        steps = {rank: end.kept_step for rank, end in failed.items() if rank in self._processes}
        kept = [(step, rank) for rank, step in steps.items() if step is not None]
        return max(kept, key=lambda one: (one[0], -one[1]), default=None)

    def carry_out(self, job: Job) -> tuple[ExitCode, AttemptResult] | Exception:
        """Let all workers carry out `job`; returns the exit code and the result of rank 0, or the error."""
        session, self.attempt, self._ends = self._session, None, {}
        missing = [rank for rank in range(self._num) if rank not in self._processes]
        for rank in missing:
            self._processes[rank] = self._spares.take()
        if self._note:
            self._progress.print(self._note)
            self._note = ""
        if num := sum(not process.is_ready for process in self._processes.values()):
            self._progress.stage(f"starting {'a process' if num == 1 else f'{num} processes'} and importing PyTorch")
        # Kept until all processes have ended: a process may write to its path as late as when it frees its memory.
        path = self._files.enter_context(_rendezvous(self._num))
        for rank, process in self._processes.items():
            process.send(dataclasses.replace(job, rank=rank, world_size=self._num, rendezvous=path))
        if session.stop.stopped:  # just now
            self.signal(session.stop.received or signal.SIGTERM)
        monitor = heartbeats.Monitor(session.config.faults.hang_timeout_s)
        self._watch(monitor)
        self._wait_for_others()
        end = self._ends.get(0)
        if isinstance(end, tuple):
            for process in self._processes.values():
                process.finish(EXIT_S)
            return ExitCode(end[0]), end[1]
        return self._cause(monitor)

    def _cause(self, monitor: heartbeats.Monitor) -> Exception:
        """The error that ended the attempt."""
        ends = {rank: end.error if isinstance(end, Failed) else end for rank, end in self._ends.items()}
        _, cause = select_root_cause({rank: error for rank, error in ends.items() if isinstance(error, Exception)})
        assert isinstance(cause, Exception)
        if isinstance(cause, WorkerLost) and self.attempt is not None:
            beats = read_beats(self._session.run, self.attempt.number)
            lost = [beat for beat in beats if isinstance(ends.get(beat.rank), WorkerLost)]
            return monitor.check(lost, time.monotonic()) or cause  # its own watchdog may have ended it
        return cause

    def _watch(self, monitor: heartbeats.Monitor) -> None:
        """Receive messages until rank 0 has a result, or a worker has failed, hangs or has ended."""
        session, faults = self._session, self._session.config.faults
        poll_s = heartbeats.interval_s(faults.hang_timeout_s)
        begin_s = max(faults.start_timeout_s, heartbeats.LONG * faults.hang_timeout_s)
        begin_by, end_by, next_look = time.monotonic() + begin_s, float("inf"), 0.0
        beats: list[Heartbeat] = []
        while not self._is_over():
            self._receive(max(min(poll_s, next_look - time.monotonic()), 0.0))
            if (now := time.monotonic()) < next_look or self._is_over():
                continue
            next_look = now + poll_s
            # A heartbeat that cannot be read counts as an unchanged one.
            beats = beats if self.attempt is None else read_beats(session.run, self.attempt.number) or beats
            if not beats:
                if now >= begin_by:
                    rank = next((rank for rank, process in self._processes.items() if not process.is_ready), 0)
                    self._give_up(WorkerHung(socket.gethostname(), rank, "start", 0, f"no heartbeat for {begin_s:g} s"))
                continue
            session.notifier.see_step(beats[0].step)
            self._progress.see(completed_steps(beats[0]), beats[0].phase)
            hang = monitor.check(beats, now)
            if hang is None:
                self._keep_spares(beats)
                continue
            if any(beat.hung for beat in beats):  # the process can still act, and ends itself
                end_by = min(end_by, now + EXIT_S + heartbeats.LONG * poll_s)
                if now < end_by:
                    continue
            self._let_others_dump(hang, poll_s)
            self._give_up(hang)

    def _keep_spares(self, beats: list[Heartbeat]) -> None:
        """Keep idle processes once the first step is done: then the memory that is left is known.

        After a request to stop none is started: Ctrl-C in a terminal has ended the idle ones, too.
        """
        if self._session.stop.stopped or all(beat.phase == "start" for beat in beats):
            return
        faults = self._session.config.faults
        if self._num_spares is None:
            self._num_spares, why_none = num_spares(faults) if faults.max_failures else (0, "")
            if why_none:
                self._progress.print(why_none)
        self._spares.start(self._num_spares)

    def _let_others_dump(self, hang: WorkerHung, poll_s: float) -> None:
        """Ask the workers that wait for the hanging one for their stacks, and give them the time to write them."""
        if self._num == 1 or hang.rank is None or self.attempt is None:
            return
        with contextlib.suppress(OSError):
            self._session.run.logs(self.attempt.number).dump_request.touch()
        end = time.monotonic() + min(DUMP_S, 2 * poll_s)
        while (left := end - time.monotonic()) > 0 and not self._session.stop.stopped:
            time.sleep(min(left, 0.1))

    def _give_up(self, hang: WorkerHung) -> None:
        """End the worker that hangs, or all of them if each of them waits."""
        for rank, process in self._processes.items():
            if rank not in self._ends and hang.rank in (rank, None):
                process.signal(signal.SIGKILL)
                self._ends[rank] = hang

    def _is_over(self) -> bool:
        return 0 in self._ends or any(not isinstance(end, tuple) for end in self._ends.values())

    def _wait_for_others(self) -> None:
        """Wait until all workers have ended the attempt; end those that do not answer."""
        if any(not isinstance(end, tuple) for end in self._ends.values()):
            for rank, process in self._processes.items():
                if rank not in self._ends:
                    process.send(Abandon())
        end = time.monotonic() + ANSWER_S
        while len(self._ends) < self._num and (left := end - time.monotonic()) > 0:
            self._receive(left)
        for rank, process in self._processes.items():
            if rank not in self._ends:
                self._progress.print(
                    f"worker {rank} did not end the attempt within {ANSWER_S:g} s: its process is replaced"
                )
                process.end()

    def _receive(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for a message or the end of a process, and take all there are."""
        running = {rank: process for rank, process in self._processes.items() if rank not in self._ends}
        ends = [process.end_descriptor for process in running.values() if process.end_descriptor is not None]
        wait_for_any([*(process.link for process in running.values()), *ends], timeout_s)
        for rank, process in running.items():
            runs = process.runs  # before its messages are read: the last one may come in between
            messages, more = process.receive()
            for message in messages:
                self._take(rank, message)
            if not (runs and more) and rank not in self._ends:
                self._ends[rank] = process.how_it_ended(rank)

    def _take(self, rank: int, message: Message) -> None:
        if isinstance(message, ProgressCall):
            getattr(self._progress, message.method)(message.content)
        elif isinstance(message, AttemptSpec):
            self.attempt = message
        elif isinstance(message, Failed | tuple):
            self._ends[rank] = message


@contextlib.contextmanager
def _rendezvous(num_workers: int) -> Iterator[str]:
    """The path of an empty file through which the workers find each other; empty for a single one.

    On Linux it is in memory and has no name in any folder, so it ends with this process however that ends.
    """
    if num_workers == 1:
        yield ""
    elif hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rendezvous")
        try:
            yield f"/proc/{os.getpid()}/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
            yield f"{folder}/rendezvous"
