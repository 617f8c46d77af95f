"""`launcher study FILE`: train the runs of a study, and report."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.commands import study_slurm
from launcher.commands.render import launcher_arguments
from launcher.errors import UsageError
from launcher.exit_codes import ExitCode
from launcher.formatting import count, table
from launcher.ray_backend import environment as ray_environment
from launcher.signals import StopSignals
from launcher.study import checks, report, results, state
from launcher.study import load as files
from launcher.study.line import time_left_s
from launcher.study.plan import Plan, PlannedRun, plan
from launcher.study.pool import Pool
from launcher.study.rounds import next_round
from launcher.study.session import Outcome, Runner, carry_out, read_states
from resnet_dist.progress_line import in_time


def add_parser(verbs: Any) -> None:
    """FILE [key=value ...] [--full] [--place local|ray|slurm] [--jobs N] [--only RUNS] [--dry-run]"""
    verb = verbs.add_parser("study", help="train many runs that differ in a few keys, and compare them")
    verb.add_argument("file", metavar="FILE", help="a study, for example configs/studies/depth.yaml")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="override a key of every run")
    verb.add_argument("--full", action="store_true", help="the full version: the keys of the section `full` apply")
    verb.add_argument("--jobs", metavar="N", type=int, help="runs at a time (default: CPUs / CPUs of a run)")
    verb.add_argument("--only", metavar="RUNS", help="names or numbers of runs, for example 0-3,7")
    verb.add_argument("--dry-run", action="store_true", help="print the runs, and start none")
    verb.add_argument(
        "--place", choices=("local", "ray", "slurm"), default="local",
        help="processes on this machine, tasks on a Ray cluster, or a SLURM job array (%(default)s)",
    )  # fmt: skip
    launcher_arguments(verb)
    verb.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Train, and report; returns the exit code: 0, that of the first run that failed, or 75 or 130 after a signal.

    On SLURM, a run that failed counts until it has ended otherwise.
    """
    file = files.load(given.file, full=given.full)
    planned = plan(file, given.overrides, "auto" if given.place == "slurm" else "local")
    checks.check(planned)
    only = _only(planned, given.only)
    state.refuse_changes(planned.runs)
    if given.place == "slurm":
        return _slurm(planned, given)
    size = _jobs(planned, given)
    _check_images(planned, only, given)
    if given.dry_run:
        print("\n".join(_dry_run(planned, only, size)))
        return ExitCode.OK
    with contextlib.nullcontext(given.stop) if given.stop is not None else StopSignals("end") as stop:
        stop.answer("the runs in progress save at their next step")
        with _runner(planned, given, size, stop) as runner:
            outcome = carry_out(planned, only, runner, stop, size)
        stop.answer("the study is ending already")
        _report(planned, outcome, given)
        if stop.stopped:
            print(f"stopped; the same command goes on: {_same_command(given)}")
            return stop.exit_code
        return next((ended.code for ended in outcome.failures.values()), int(ExitCode.OK))


def _report(planned: Plan, outcome: Outcome, given: argparse.Namespace) -> None:
    found = results.collect(planned, outcome.round, outcome.states)
    print("\n".join(["", *results.lines(found), ""]))
    for line in report.write(found, _command(given)):
        print(f"  {line}")


def _command(given: argparse.Namespace) -> list[str]:
    """The command, without the options that decide where and when runs train."""
    return ["launcher", "study", given.file, *(["--full"] if given.full else []), *given.overrides]


def _same_command(given: argparse.Namespace) -> str:
    """The command line, without defaults; for --place local and ray."""
    place = ["--place", given.place] if given.place != "local" else []
    options = [f"--{key}={value}" for key in ("jobs", "only") if (value := getattr(given, key)) is not None]
    return shlex.join([*_command(given), *place, *options])


def _check_images(planned: Plan, only: Sequence[PlannedRun], given: argparse.Namespace) -> None:
    """Raise DataError if the images of runs to train are missing; a warning if nothing starts on this machine."""
    if checks.missing_images(only) is None:
        return
    states = read_states(planned)
    to_train = {job.run.name for job in next_round(planned, states).jobs}
    missing = checks.missing_images(
        [one for one in only if one.name in to_train or states[one.name].status == "failed"]
    )
    is_elsewhere = given.place == "slurm" or (given.place == "ray" and bool(os.environ.get("RAY_ADDRESS")))
    if missing is not None and not is_elsewhere and not given.dry_run:
        raise missing
    if missing is not None:
        print(f"warning: {'on this machine: ' if is_elsewhere else ''}{missing}", file=sys.stderr, flush=True)


def _slurm(planned: Plan, given: argparse.Namespace) -> int:
    if given.only is not None or given.jobs is not None:
        raise UsageError("--place slurm: SLURM decides when tasks run. Allowed: without --only and --jobs")
    _check_images(planned, planned.runs, given)
    states = read_states(planned)
    now = next_round(planned, states)
    failed = [one for one in planned.runs if states[one.name].status == "failed"]
    study_slurm.submit(planned, [*failed, *(job.run for job in now.jobs)], given)
    if given.dry_run:
        return ExitCode.OK
    _report(planned, Outcome(now, states), given)
    return next((code for one in failed if (code := states[one.name].code)), int(ExitCode.OK))


@contextlib.contextmanager
def _runner(planned: Plan, given: argparse.Namespace, size: int, stop: StopSignals) -> Iterator[Runner]:
    if given.place == "local":
        with Pool(size, stop) as pool:
            yield pool
        return
    ray_environment.set_up()
    from launcher.ray_backend.tasks import Tasks
    from launcher.study.ray_pool import RayPool, in_a_task

    tasks = Tasks(in_a_task, planned.runs[0].config, stop)
    try:
        yield RayPool(tasks, stop)
    finally:
        tasks.close()


def _dry_run(planned: Plan, only: Sequence[PlannedRun], size: int) -> Iterator[str]:
    states = read_states(planned)
    rows = [["", "RUN", "LENGTH", "STATE"]]
    rows += [[str(one.number), one.name, str(one.config.duration), states[one.name].status] for one in only]
    yield from table(rows)
    yield ""
    study, names = planned.file.study, {one.name for one in only}
    if study.tune is not None:
        candidates = len(planned.points) * len(study.tune.seeds)
        yield f"{count(candidates, 'candidate')} first; of each combination, the best one then runs on all seeds"
    if study.halving is not None:
        yield "bad combinations are stopped early"
    now = next_round(planned, states)
    left = time_left_s(planned, [job for job in now.jobs if job.run.name in names], states, {}, size)
    clock = "unknown until the first run is done" if left is None else in_time(left)
    if left is not None and not now.is_last:
        clock += " for this round"
    at_most = " at most" if study.tune is not None or study.halving is not None else ""
    yield f"{count(planned.num_runs, 'run')}{at_most}, {size} at a time; time left: {clock}"
    yield f"results in {planned.file.folder}"


def _jobs(planned: Plan, given: argparse.Namespace) -> int:
    """The number of runs at a time. Raises UsageError."""
    if given.jobs is not None:
        if given.jobs < 1 or given.place == "ray":
            allowed = (
                "a whole number from 1" if given.place == "local" else "--place local; a cluster has its own limit"
            )
            raise UsageError(f"--jobs {given.jobs}: Allowed: {allowed}")
        return int(given.jobs)
    configs = [one.config for one in planned.runs]
    if any(config.resources.gpus_per_worker for config in configs):
        return 1
    threads = max(config.resources.cpus_per_worker * config.workers.most for config in configs)
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, num_cpus // threads)


def _only(planned: Plan, given: str | None) -> list[PlannedRun]:
    """The runs that `--only` names. Raises UsageError for a name or number that no run has."""
    if given is None:
        return list(planned.runs)
    numbers = {one.name: one.number for one in planned.runs}
    chosen: set[int] = set()
    for part in map(str.strip, given.split(",")):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if part in numbers:
            chosen.add(numbers[part])
        elif first <= last < len(numbers):
            chosen |= set(range(first, last + 1))
        else:
            allowed = f"0 to {len(numbers) - 1}, or names; --dry-run lists them"
            raise UsageError(f"--only {part}: there is no such run. Allowed: {allowed}")
    return [one for one in planned.runs if one.number in chosen]
