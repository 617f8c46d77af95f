"""One start of the main job: what its driver, its failure handler and its supervisor share."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.recovery.notify import Notifier
from launcher.run.directory import RunDirectory
from launcher.run.lease import Claim, Lease
from launcher.signals import StopSignals


@dataclass(frozen=True)
class Session:
    """A config, its run directory and lease, and where to report."""

    config: RunConfig
    run: RunDirectory
    progress: Progress
    notifier: Notifier
    lease: Lease | None = None  # None on ranks other than 0
    attended: bool = False  # whether this process belongs to the run, and may be ended if it hangs
    stop: StopSignals = field(default_factory=StopSignals)  # the signals that this process handles

    @property
    def claim(self) -> Claim | None:
        """The claim on the run directory, for other processes of the run."""
        return None if self.lease is None else self.lease.claim

    def check_lease(self) -> None:
        """Raise LeaseLost if another process has taken over the run, for example while this one was suspended."""
        if self.lease is not None:
            self.lease.check()
