"""Whether the notice before a preemption is long enough for a save, by what this run's own saves have taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem
from launcher.run.directory import RunDirectory
from resnet_dist.telemetry.metrics_file import read_metrics

BOUNDARIES = 2  # a request to stop is obeyed at the second step boundary after it, at the latest


def needed_s(run: RunDirectory) -> float | None:
    """Seconds from a notice to a checkpoint on the disk, at worst; None where the run has saved nothing yet."""
    if not run.metrics.exists():
        return None
    records = read_metrics(run.metrics)
    saves = [record["detail"] for record in records if record.get("event") == "checkpoint"]
    pairs = [(detail.get("stalled_s"), detail.get("write_s")) for detail in saves]
    times: list[float] = [stalled_s + write_s for stalled_s, write_s in pairs if None not in (stalled_s, write_s)]
    steps: list[float] = [s for record in records if (s := record.get("step_time_s")) is not None]
    if not times or not steps:
        return None
    return max(times) + BOUNDARIES * max(steps)


def lines(config: RunConfig) -> Iterator[str]:
    """A line of the plan, where `preemption.notice_s` is given. Raises ConfigError for a notice that is too short."""
    notice_s = config.preemption.notice_s
    if notice_s is None:
        return
    needed = needed_s(RunDirectory(Path(config.storage), config.name))
    if needed is None:
        yield f"  notice        {notice_s:g} s before a preemption; this run has not saved yet, so it is not compared"
        return
    if notice_s < needed:
        problem = f"found {notice_s:g}, and stopping with a checkpoint has taken {needed:.1f} s in this run"
        allowed = (
            f"a notice of {needed:.1f} s or more; leave notice_s out where a kill may cost a checkpoint's interval"
        )
        raise ConfigError([Problem("plan", "preemption.notice_s", problem, allowed)])
    yield f"  notice        {notice_s:g} s before a preemption; stopping with a checkpoint has taken {needed:.1f} s"
