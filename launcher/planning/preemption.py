"""Whether a preemption notice is long enough for a save, by the run's own metrics."""

from __future__ import annotations

from launcher.errors import ConfigError, Problem
from launcher.run.directory import RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics

STEPS_TO_STOP = 2  # a worker stops at the second step boundary after a request, at the latest


def preemption_notice(notice_s: float | None, run: RunDirectory) -> str | None:
    """What is known of `preemption.notice_s`; None if it is not given. Raises ConfigError if a save takes longer."""
    if notice_s is None:
        return None
    needed_s = stop_s(run)
    if needed_s is None:
        return f"{notice_s:g} s of notice; not checked, as this run has saved no checkpoint yet"
    if notice_s < needed_s:
        found = f"found {notice_s:g}, and stopping with a checkpoint has taken {needed_s:.1f} s in this run"
        allowed = f"{needed_s:.1f} or more; leave notice_s out if a kill may cost a checkpoint interval"
        raise ConfigError([Problem("", "preemption.notice_s", found, allowed)])
    return f"{notice_s:g} s of notice; stopping with a checkpoint has taken {needed_s:.1f} s"


def stop_s(run: RunDirectory) -> float | None:
    """The longest time from a preemption notice to a complete checkpoint; None before the run's first save."""
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    saves = [record["detail"] for record in records if record.get("event") == "checkpoint"]
    pairs = [(detail.get("stalled_s"), detail.get("write_s")) for detail in saves]
    times: list[float] = [stalled_s + write_s for stalled_s, write_s in pairs if None not in (stalled_s, write_s)]
    steps: list[float] = [s for record in records if (s := record.get("step_time_s")) is not None]
    return max(times) + STEPS_TO_STOP * max(steps) if times and steps else None
