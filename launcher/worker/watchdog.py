"""A thread in each worker that writes its heartbeat, and ends a process whose training thread makes no progress.

Nothing else notices such a worker: its process answers every health check, and the others wait in a collective for as
long as the collective's own timeout. What is left behind for whoever is paged, in the attempt's folder of logs:

    stacks/rank-K.txt     what every thread was doing; kill -USR1 PID adds to it at any time
    flight/rank-K.json    the last collectives (torch's flight recorder)
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.run.heartbeats import Beat, Monitor
from resnet_dist.telemetry.liveness import Pulse

log = logging.getLogger(__name__)

NUM_JUDGES = 2  # ranks that look at the others while they wait: two, as one may be the frozen one
GRACE = 2  # heartbeats that the others get to leave their stacks, before the first of them ends
_WAITING = re.compile(r"/torch/distributed/|/resnet_dist/telemetry/step_totals\.py$")
# Where a collective's result is read from the device. As the innermost frame only: these call models and loaders, too.
_READING = re.compile(r"/resnet_dist/(training/(evaluate|checkpointing)|checkpoint/host_copy|engines/[a-z_]+)\.py$")
FLIGHT_RECORDER = "TORCH_FR_BUFFER_SIZE"  # collectives that torch remembers, a ring
os.environ.setdefault(FLIGHT_RECORDER, "2000")  # torch's own default for NCCL; read when the first group is made


class Watchdog:
    """Watches the thread that enters it, until it is left.

    `logs` is the attempt's folder, on storage that all workers share. `next_logs` is where a later attempt would have
    its own: once that is there, this process has been given up and ends, so that it can write no checkpoint.
    """

    def __init__(
        self,
        pulse: Pulse,
        logs: AttemptLogs,
        rank: int,
        *,
        hang_timeout_s: float,
        next_logs: AttemptLogs | None = None,
        node_id: str | None = None,
    ) -> None:
        self._pulse, self._logs, self._next_logs, self._rank = pulse, logs, next_logs, rank
        self._timeout_s = hang_timeout_s
        self._interval_s = heartbeats.interval_s(hang_timeout_s)
        self._about = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "node_id": node_id}
        self._about["started"] = process_start(os.getpid())
        self._count, self._age_s, self._tick, self._looked = -1, 0.0, 0, time.monotonic()
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._dumped = False
        self._monitor = Monitor(hang_timeout_s - 2 * self._interval_s)  # it starts to look when it waits itself
        self._stacks: Any = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread_id = threading.get_ident()
        for folder in (self._logs.stacks, self._logs.flight, self._logs.heartbeats):
            folder.mkdir(parents=True, exist_ok=True)
        self._stacks = (self._logs.stacks / f"rank-{self._rank}.txt").open("w")  # faulthandler keeps it
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.end("stopped" if kind is None else kind.__name__)

    def end(self, how: str) -> None:
        """Stop watching; the heartbeat says how the training function ended. The first call counts."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if hasattr(faulthandler, "unregister"):
            faulthandler.unregister(signal.SIGUSR1)
        self._write(ended=how)
        self._stacks.close()

    def _watch(self) -> None:
        while True:
            # A thread that holds the interpreter's lock for ever would stop this one too: torch's C++ code can.
            # This timer needs no lock; it is set anew while this thread runs. Whoever reads the heartbeats ends the
            # process.
            faulthandler.dump_traceback_later(self._timeout_s, file=self._stacks)
            beat = self._write()
            self._obey(beat)
            if self._over.wait(self._interval_s):
                return

    def _write(self, ended: str | None = None, hung: bool = False) -> Beat:
        pulse, now = self._pulse, time.monotonic()
        # What passes while the whole process is stopped (Ctrl-Z) does not count: it is no hang.
        self._age_s += min(now - self._looked, 2 * self._interval_s + 1)
        self._looked = now
        if pulse.count != self._count:
            self._count, self._age_s = pulse.count, 0.0
        self._tick += 1
        age_s = self._age_s
        waiting = age_s > self._interval_s and (pulse.gradients_are_ready or self._in_a_collective())
        beat = Beat(
            **self._about,  # type: ignore[arg-type]
            tick=self._tick,
            phase=pulse.phase,
            step=pulse.step,
            age_s=age_s,
            waiting=waiting,
            ended=ended,
            hung=hung,
        )
        try:
            heartbeats.write(self._logs, beat)
        except OSError as error:
            log.warning("the heartbeat cannot be written: %s", error)
        return beat

    def _obey(self, beat: Beat) -> None:
        """End this process if it hangs, if it is asked to, or if another attempt has taken its place."""
        if self._next_logs is not None and _is_there(self._next_logs.path):
            log.error("a later attempt has begun: this one ends")
            os._exit(ExitCode.STOPPED)
        if beat.age_s <= self._interval_s:
            return
        if _is_there(self._logs.dump_request):
            self._dump()
        if _is_there(self._logs.end_request):
            try:
                self._dump()
            finally:
                os._exit(ExitCode.HARDWARE)
        verdict = heartbeats.judge([beat], self._timeout_s - self._interval_s, {}) if not beat.waiting else None
        if verdict is None and beat.waiting and self._rank < NUM_JUDGES:
            verdict = self._monitor.look(heartbeats.read(self._logs).values(), time.monotonic())
        if verdict is None and beat.age_s < self._timeout_s * heartbeats.LONG:
            return
        if verdict is not None:
            log.error("worker %s, %s step %d: %s", verdict.rank, verdict.phase, verdict.step, verdict.problem)
        try:
            self._write(hung=not beat.waiting)
            with _as_far_as_possible():
                ask_for_stacks(self._logs)
            self._dump()
            time.sleep(GRACE * self._interval_s)
        finally:
            os._exit(ExitCode.HARDWARE)

    def _in_a_collective(self) -> bool:
        """Whether the training thread is in a call of torch.distributed, or reads what one has left on the device."""
        frame: FrameType | None = sys._current_frames().get(self._thread_id)
        if frame is not None and _READING.search(frame.f_code.co_filename):
            return True
        while frame is not None:
            if _WAITING.search(frame.f_code.co_filename):
                return True
            frame = frame.f_back
        return False

    def _dump(self) -> None:
        """Leave the stacks of all threads and the last collectives; once."""
        if self._dumped:
            return
        self._dumped = True
        with _as_far_as_possible():
            faulthandler.dump_traceback(file=self._stacks, all_threads=True)
            self._stacks.flush()
        with _as_far_as_possible():
            trace = flight_record()
            if trace:
                (self._logs.flight / f"rank-{self._rank}.json").write_bytes(trace)


@contextlib.contextmanager
def _as_far_as_possible() -> Iterator[None]:
    """Go on where the storage or torch fails: a watchdog that ends with it watches nobody."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's errors are RuntimeErrors
        log.warning("the watchdog could not do all: %s", error)


def _is_there(file: Path) -> bool:
    """Whether `file` exists; not, as long as the file system does not say."""
    try:
        return file.exists()
    except OSError:
        return False


def ask_for_stacks(logs: AttemptLogs) -> None:
    """Ask every worker of the attempt whose threads have stalled to leave their stacks."""
    logs.dump_request.touch()


def flight_record() -> bytes:
    """The last collectives of this process as JSON; empty where torch keeps no record of them."""
    from torch._C import _distributed_c10d as c10d

    record = getattr(c10d, "_dump_fr_trace_json", None)
    return b"" if record is None else bytes(record())


def process_start(pid: int) -> int:
    """When the process started, in the kernel's ticks since boot; 0 where that is not known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
