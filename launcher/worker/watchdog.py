"""A thread in each worker that writes its heartbeat, and ends the process if its training thread makes no progress.

Otherwise a hang stays undetected for as long as the timeout of a collective: the process of the hanging worker answers
every health check, and the other workers wait in a collective. The folder of the attempt's logs then contains:

    stacks/rank-K.txt     stack traces of all threads; kill -USR1 PID appends them at any time
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

from launcher.exit_codes import ExitCode
from launcher.run import heartbeats
from launcher.run.directory import AttemptLogs
from launcher.run.heartbeats import Heartbeat, Monitor
from launcher.run.holder import process_start
from resnet_dist.telemetry.liveness import Liveness

log = logging.getLogger(__name__)

NUM_MONITORS = 2  # ranks that monitor the others while they wait: two, as one of them may be frozen
GRACE = 2  # heartbeat intervals for the others to write their stacks, before the first process exits
_WAITING = re.compile(r"/torch/distributed/|/resnet_dist/telemetry/step_totals\.py$")
# These read the result of a collective from the device. Innermost frame only: they also call models and loaders.
_READING = re.compile(r"/resnet_dist/(training/(evaluate|checkpointing)|checkpoint/host_copy|engines/[a-z_]+)\.py$")
# Collectives in torch's flight recorder, a ring buffer; read when the first group is created. The default with NCCL.
os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


class Watchdog:
    """Watches the thread that enters the context, until it leaves it.

    `logs` is on storage that all workers share. If `next_logs`, the folder of the next attempt, exists, this process
    has been replaced, and exits so that it cannot write a checkpoint. `monitors`: whether the first ranks watch the
    others, too, while they wait for them; not if a parent does that and needs those that can go on.
    """

    def __init__(
        self,
        liveness: Liveness,
        logs: AttemptLogs,
        rank: int,
        *,
        hang_timeout_s: float,
        next_logs: AttemptLogs | None = None,
        node_id: str | None = None,
        monitors: bool = True,
    ) -> None:
        self._liveness, self._logs, self._next_logs, self._rank = liveness, logs, next_logs, rank
        self._timeout_s = hang_timeout_s
        self._interval_s = heartbeats.interval_s(hang_timeout_s)
        self._host, self._node_id, self._started = socket.gethostname(), node_id, process_start(os.getpid())
        self._count, self._age_s, self._tick, self._last = -1, 0.0, 0, time.monotonic()
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._dumped = False
        self._monitors = monitors and rank < NUM_MONITORS
        self._monitor = Monitor(hang_timeout_s - 2 * self._interval_s)  # it is used only while this worker waits
        for folder in (logs.stacks, logs.flight, logs.heartbeats):
            folder.mkdir(parents=True, exist_ok=True)
        self._stacks = logs.stack(rank).open("w")  # stays open: faulthandler writes to its descriptor
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread_id = threading.get_ident()
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if hasattr(faulthandler, "unregister"):
            faulthandler.unregister(signal.SIGUSR1)
        self._write(ended="stopped" if kind is None else kind.__name__)
        self._stacks.close()

    def _watch(self) -> None:
        while True:
            # A thread that never releases the GIL (torch's C++ code can do that) stops this thread too. This timer
            # needs no GIL, and is restarted while this thread runs. Watchers of the heartbeats then end the process.
            faulthandler.dump_traceback_later(self._timeout_s, file=self._stacks)
            self._act_on(self._write())
            if self._over.wait(self._interval_s):
                return

    def _write(self, ended: str | None = None, hung: bool = False) -> Heartbeat:
        liveness, now = self._liveness, time.monotonic()
        # Time in which the whole process was stopped (Ctrl-Z) does not count.
        self._age_s += min(now - self._last, 2 * self._interval_s + 1)
        self._last = now
        if liveness.count != self._count:
            self._count, self._age_s = liveness.count, 0.0
        self._tick += 1
        age_s = self._age_s
        waiting = age_s > self._interval_s and (
            liveness.gradients_are_ready or waits_for_others(sys._current_frames().get(self._thread_id))
        )
        beat = Heartbeat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            node_id=self._node_id,
            started=int(self._started) if self._started.isdecimal() else 0,
            tick=self._tick,
            phase=liveness.phase,
            step=liveness.step,
            age_s=age_s,
            waiting=waiting,
            ended=ended,
            hung=hung,
        )
        try:
            heartbeats.write(self._logs, beat)
        except OSError as error:
            log.warning("cannot write the heartbeat: %s", error)
        return beat

    def _act_on(self, beat: Heartbeat) -> None:
        """Exit this process if it hangs, if it is asked to, or if a later attempt has replaced it."""
        if self._next_logs is not None and _exists(self._next_logs.path):
            log.error("a later attempt has begun: this process exits")
            os._exit(ExitCode.STOPPED)
        if beat.age_s <= self._interval_s:
            return
        if _exists(self._logs.dump_request):
            self._dump()
        if _exists(self._logs.end_request):
            try:
                self._dump()
            finally:
                os._exit(ExitCode.HARDWARE)
        hang = heartbeats.find_hang([beat], self._timeout_s - self._interval_s, {}) if not beat.waiting else None
        if hang is None and beat.waiting and self._monitors:
            hang = self._monitor.check(heartbeats.read(self._logs).values(), time.monotonic())
        if hang is None and beat.age_s < self._timeout_s * heartbeats.LONG:
            return
        if hang is not None:
            log.error("%s", hang)
        try:
            self._write(hung=not beat.waiting)
            with _logged_errors():
                self._logs.dump_request.touch()
            self._dump()
            time.sleep(GRACE * self._interval_s)
        finally:
            os._exit(ExitCode.HARDWARE)

    def _dump(self) -> None:
        """Write the stacks of all threads and the last collectives, once."""
        if self._dumped:
            return
        self._dumped = True
        with _logged_errors():
            faulthandler.dump_traceback(file=self._stacks, all_threads=True)
            self._stacks.flush()
        with _logged_errors():
            trace = flight_record()
            if trace:
                self._logs.flight_record(self._rank).write_bytes(trace)


def waits_for_others(frame: FrameType | None) -> bool:
    """Whether a thread is in a call of torch.distributed, or reads the result of a collective from the device."""
    if frame is not None and _READING.search(frame.f_code.co_filename):
        return True
    while frame is not None:
        if _WAITING.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _logged_errors() -> Iterator[None]:
    """Log errors of the storage and of torch: the watchdog must continue."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's errors are RuntimeErrors
        log.warning("watchdog: %s", error)


def _exists(file: Path) -> bool:
    """Whether `file` exists; False while the file system does not answer."""
    try:
        return file.exists()
    except OSError:
        return False


def flight_record() -> bytes:
    """The last collectives of this process as JSON; empty if torch has no record of them."""
    from torch._C import _distributed_c10d as c10d

    record = getattr(c10d, "_dump_fr_trace_json", None)
    return b"" if record is None else bytes(record())
