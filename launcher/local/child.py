"""A worker process of `launcher.local.supervisor`: it imports everything, then carries out one attempt after the other.

Jobs and messages go through a socket to the parent. A process whose attempt fails because another worker was lost stays
and keeps the state of its last completed step in memory: the next attempt may start from it.
"""

from __future__ import annotations

import atexit
import gc
import os

if __name__ == "__main__":  # before other imports: what is registered first is called last
    gc.disable()  # until everything is imported: looking for garbage takes a sixth of that time
    _SERVED: list[object] = []
    # If the parent knows the result, this process ends at once: Python needs seconds to take PyTorch's modules apart.
    atexit.register(lambda: os._exit(0) if _SERVED else None)

import contextlib
import ctypes
import importlib
import queue
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import streams
from launcher.exit_codes import ExitCode
from launcher.local.messages import Abandon, Failed, Job, Order, Ready
from launcher.local.to_parent import ToParent
from launcher.recovery.attempt import AttemptResult, AttemptSpec
from launcher.recovery.portable import portable
from launcher.run.directory import RunDirectory
from launcher.run.lease import LeaseLost
from launcher.signals import StopSignals

if TYPE_CHECKING:
    from resnet_dist.checkpoint.content import CheckpointContent

_BEGAN = time.time()
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(descriptor: int, parent: int, served: list[object]) -> None:
    """Serve the parent at the other end of the socket `descriptor`; each end of an attempt is appended to `served`."""
    streams.protect()
    die_with(parent)
    # The parent handles a second Ctrl-C: the first one may reach this process twice, from the terminal and from it.
    stop = StopSignals("ignore", announce=False).install()
    with Connection(descriptor) as link:
        server = _Server(link, stop)
        server.serve(served)
    stop.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    served.append(None)


class _Server:
    """Takes jobs from the parent, and sends what they lead to."""

    def __init__(self, link: Connection, stop: StopSignals) -> None:
        self._link, self._stop = link, stop
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._abandoned = threading.Event()  # the attempt that is under way has failed on another worker
        self._kept: CheckpointContent | None = None  # the state after the last completed step of a failed attempt
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def serve(self, served: list[object]) -> None:
        """Carry out jobs until there are no more."""
        with self._ends_at_a_signal(idle=True):
            try:
                importlib.import_module("launcher.local.run")  # torch and the project: seconds, before the first job
                importlib.import_module("torch._dynamo")  # torch's optimizers import it in their first step
            except Exception as error:
                self._send(Failed(portable(error)))
                return
            gc.freeze()  # what was imported stays: no collection has to look at it
            gc.enable()
            self._send(Ready())
        while (job := self._next(idle=not served)) is not None:
            try:
                code, result = self._carry_out(job)
            except BaseException as error:  # the user's code may raise SystemExit, too
                kept_step = None if self._kept is None else self._kept.step
                failed = Failed(portable(error), kept_step, _has_current_code())
                del error  # its frames hold the model
                self._send(failed)
                if isinstance(failed.error, LeaseLost):  # no job follows, and the parent may be suspended
                    return
                _free_memory()
            else:
                self._kept = None
                self._send((code, result))
                served.append(result)

    def _next(self, *, idle: bool) -> Job | None:
        with self._ends_at_a_signal(idle=idle):
            return self._jobs.get()

    @contextlib.contextmanager
    def _ends_at_a_signal(self, *, idle: bool) -> Iterator[None]:
        """An idle process has nothing to save: it ends at a signal, or is one that the parent replaces."""
        with self._stop.listen(on_stop=lambda _: os._exit(ExitCode.STOPPED) if idle else None):
            if idle and self._stop.stopped:  # before there was a listener
                os._exit(ExitCode.STOPPED)
            yield

    def _carry_out(self, job: Job) -> tuple[int, AttemptResult]:
        from launcher.config.schema import Ranks
        from launcher.local.run import Parent, run_local
        from resnet_dist.training.survivor import MemoryState

        run = RunDirectory(Path(job.config.storage), job.config.name)

        def on_begin(spec: AttemptSpec) -> None:
            if job.rank > 0:  # the terminal belongs to rank 0
                _write_output_to(run.logs(spec.number).log(job.rank))
            self._send(spec)

        def keep(content: CheckpointContent) -> None:
            self._kept = content

        memory = None
        if job.memory is not None:
            step, rank = job.memory
            memory = MemoryState(step, rank, self._kept if rank == job.rank else None)
        parent = Parent(
            num_micro_batches=job.num_micro_batches,
            on_begin=on_begin,
            ranks=Ranks(job.rank, job.world_size, job.rank, job.world_size),
            rendezvous=job.rendezvous,
            memory=memory,
            keep=keep,
            abandoned=self._abandoned.is_set,
        )
        progress = ToParent(self._link)
        code, result = run_local(
            job.config, run, job.mode, progress, self._stop, watched=True, claim=job.claim, parent=parent
        )
        return int(code), result

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # the parent has ended: so will this process
            self._link.send(message)

    def _read(self) -> None:
        """Receive orders, also while an attempt runs."""
        order: Order
        while True:
            try:
                order = self._link.recv()
            except (EOFError, OSError):
                order = None
            if isinstance(order, Abandon):
                self._abandoned.set()
                _abort_collectives()
            else:
                self._abandoned.clear()  # that was the job before
                self._jobs.put(order)
            if order is None:
                return


def _abort_collectives() -> None:
    """End NCCL's collectives of this process, which wait for ever for a worker that is lost. Not run on a GPU so far.

    With gloo there is nothing to do: its collectives fail as soon as a connection is closed.
    """
    if sys.modules.get("torch") is None:  # the process has failed to import it
        return
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def _has_current_code() -> bool:
    """Whether no file of a module of this process, the user's included, was changed since the process began.

    A process that is started now would have other code. Installed packages are left out.
    """
    installed = tuple({sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not file.startswith(installed):
            with contextlib.suppress(OSError):
                if Path(file).stat().st_mtime > _BEGAN:
                    return False
    return True


def _free_memory() -> None:
    """Free what the failed attempt has left, on a GPU, too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _write_output_to(file: Path) -> None:
    """Let what this process prints from now on be appended to `file`; a file that cannot be opened changes nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for output in (sys.stdout, sys.stderr):
            output.flush()
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.close(descriptor)


def die_with(parent: int) -> None:
    """End this process when its parent ends, since nothing would restart or stop it then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), _SERVED)
