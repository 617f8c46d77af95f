"""`launcher submit slurm|kubernetes|ray CONFIG`: check a run, submit it, and print how to follow it.

A run that is submitted or running already is submitted again only with `--again`. In any case its lease allows one
process at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.errors import PlaceError
from cluster.profile import KubernetesProfile, SlurmProfile
from launcher.arguments import Parser, config_arguments
from launcher.checks.variables import conflicts, of_profile
from launcher.commands import render, schedulers
from launcher.commands.render import in_users_lines, needed_profile
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.console import Progress
from launcher.errors import ConfigError, UsageError
from launcher.formatting import count, in_bytes, listed
from launcher.places import kubernetes as kubernetes_jobs
from launcher.places import slurm as slurm_jobs
from launcher.places.packing import pack
from launcher.places.programs import PlaceUnavailable, dropped
from launcher.ray_backend import jobs as ray_jobs
from launcher.recovery import preconditions
from launcher.run import recorded, submissions
from launcher.run.directory import RunDirectory
from launcher.run.status import lease_state
from launcher.run.submissions import JobStatus, Submission


def add_parser(verbs: Any) -> None:
    """slurm|kubernetes|ray CONFIG [key=value ...] [--again] [--dry-run] ..."""
    verb = verbs.add_parser("submit", help="submit a run to SLURM, Kubernetes or a Ray cluster")
    places = verb.add_subparsers(title="place", metavar="slurm|kubernetes|ray", required=True, parser_class=Parser)
    place = places.add_parser("slurm", help="sbatch --test-only, then sbatch")
    config_arguments(place)
    render.slurm_arguments(place)
    _common(place, _slurm)
    place = places.add_parser("kubernetes", help="kubectl apply: a RayJob of KubeRay")
    config_arguments(place)
    render.kubernetes_arguments(place)
    place.add_argument("--context", metavar="NAME", help="kubectl context (default: its current one)")
    _common(place, _kubernetes)
    place = places.add_parser("ray", help="a job on a running Ray cluster")
    config_arguments(place)
    place.add_argument(
        "--address", metavar="URL", help="of its dashboard (default: RAY_ADDRESS, http://127.0.0.1:8265)"
    )
    _common(place, _ray)


def _common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check everything, but do not submit")
    parser.add_argument("--again", action="store_true", help="even if the run is submitted or running already")
    parser.set_defaults(run=run)


def _slurm(given: argparse.Namespace) -> int:
    job = render.slurm(given.config, given.overrides, given.profile, given.launcher, given.sweep)
    render.warn(job.doubts)
    preconditions.check_sizes(job.config)
    names = [variant.name for variant in job.spec.variants] or [job.config.name]
    runs = [RunDirectory(Path(job.config.storage), name) for name in names]
    if not given.dry_run:
        if not job.spec.variants and _is_done(job.config, runs[0]):
            return 0
        for run in runs:
            refuse_twice(run, again=given.again)
    try:
        with nothing_submitted():
            slurm_jobs.check(job.script)
        _print_shell(job.profile, "sbatch")
        if given.dry_run:
            print(f"SLURM accepts {job.spec.name}; nothing was submitted")
            return 0
        for run in runs:
            run.create()
        with interruption(f"the job may have been submitted, see: squeue --me --name={job.spec.name}"):
            identity = slurm_jobs.submit(job.script, job.spec.name, None if job.spec.variants else _output(runs[0]))
    except PlaceError as error:
        raise in_users_lines(error, configs.read(given.config, given.overrides), given.profile) from None
    _announce(f"slurm job {identity}" + (f", {count(len(runs), 'run')}" if len(runs) > 1 else ""))
    for number, run in enumerate(runs):
        name = f"{identity}_{number}" if job.spec.variants else identity
        submissions.record(run, submissions.now("slurm", name))
    for run in runs:
        _how_to_follow(str(run.path))
    return 0


def _kubernetes(given: argparse.Namespace) -> int:
    profile = needed_profile(given)
    # A new submission id: that an earlier submission failed for good does not matter for this one.
    job = render.kubernetes(given.config, given.overrides, profile, given.working_dir, uuid.uuid4().hex[:12])
    preconditions.check_sizes(job.config)
    if job.placeholders:
        raise ConfigError(job.placeholders)
    render.warn(job.doubts)
    run = RunDirectory(Path(job.config.storage), job.config.name)
    submission = schedulers.rayjob(job.config.name, job.profile.namespace, given.context)
    name, namespace = submission.id, job.profile.namespace
    if not given.dry_run:
        if _is_done(job.config, run):
            return 0
        refuse_twice(run, again=given.again)
    with nothing_submitted():
        if not given.dry_run:
            job_status = kubernetes_jobs.ask(name, namespace, given.context)
            _refuse_live(submission, job_status, f"{submission} in namespace {namespace}")
        kubernetes_jobs.check(job.manifests, namespace, given.context)
    _print_shell(job.profile, "kubectl")
    if given.dry_run:
        print(f"Kubernetes accepts {job.spec.name}; nothing was submitted")
        return 0
    with interruption(f"the RayJob may have been created, see: kubectl get rayjob --namespace={namespace} {name}"):
        kubernetes_jobs.submit(job.manifests, name, namespace, given.context)
    _announce(f"RayJob {name} in namespace {namespace}")
    _record(run, submission, given, f" --profile {profile}")
    return 0


def _ray(given: argparse.Namespace) -> int:
    address = ray_jobs.resolved(given.address)
    config = configs.load(given.config, given.overrides)
    if config.place == "local":
        place = configs.read(given.config, given.overrides).place("place")
        raise UsageError(f"{place}: place: found local, which does not use Ray. Allowed: ray or auto")
    preconditions.check_sizes(config)
    run = RunDirectory(Path(config.storage), config.name)
    if not given.dry_run:
        if _is_done(config, run):
            return 0
        refuse_twice(run, again=given.again, address=given.address)
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        packed = pack(config, Path(folder))
        print(f"working directory: {count(len(packed.files), 'file')}, {in_bytes(packed.size_bytes)}")
        if packed.installed:
            print(f"  installed here, and required on every node of the cluster: {', '.join(packed.installed)}")
        unsafe = ray_jobs.warning(address)
        if unsafe is not None:
            print(f"  {unsafe}")
        if given.dry_run:
            for file in packed.files:
                print(f"  {file}")
            print(f"nothing was submitted to {address}")
            return 0
        with nothing_submitted():
            known = None if given.again else ray_jobs.find(run.path, address)
            if known is not None:
                live = submissions.now("ray", known, {"address": address})
                _refuse_live(live, ray_jobs.ask(known, None, address), f"{live} at {address}")
        with interruption(f"the job may have been submitted, see: ray job list --address={address}"):
            identity = ray_jobs.submit(packed, run.path, address)
    _announce(f"ray job {identity} at {address}")
    _record(run, submissions.now("ray", identity, {"address": address}), given, f" --address {address}")
    return 0


def _announce(job: str) -> None:
    """Print the job before it is recorded, as that may fail; without a reader, it is recorded all the same."""
    Progress().print(job)


def _print_shell(profile: SlurmProfile | KubernetesProfile, program: str) -> None:
    """Print the variables of this shell that differ from the profile's, and those that `program` does not get."""
    for finding in conflicts(of_profile(profile), os.environ):
        print(f"  {finding.found}: {finding.advice}")
    if names := dropped(program):
        print(
            f"  variables of this shell that {program} does not get: {listed(names)}. Allowed: options in the profile"
        )


@contextlib.contextmanager
def interruption(outcome: str) -> Iterator[None]:
    """Say what Ctrl-C in the block means for the submission."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {outcome}", file=sys.stderr)
        raise


@contextlib.contextmanager
def nothing_submitted() -> Iterator[None]:
    """Say that nothing was submitted, if the scheduler cannot be asked, or after Ctrl-C."""
    try:
        with interruption("nothing was submitted"):
            yield
    except PlaceUnavailable as error:
        raise error.but("nothing was submitted") from None


def refuse_twice(run: RunDirectory, *, again: bool, address: str | None = None) -> None:
    """UsageError if the run is submitted or running already, unless `again`. Raises ClusterUnavailable if it may be."""
    if again or not run.path.is_dir():
        return
    held = lease_state(run)
    if held.alive:
        raise UsageError(
            f"{run.path}: this run is running: {held.holder}. Allowed: `launcher cancel {run.path}`, another name=..., "
            "or --again"
        )
    submission = submissions.newest(run)
    if submission is not None:
        where = f"{submission}, submitted {submission.time} on {submission.host}"
        _refuse_live(submission, schedulers.ask(submission, address), where)


def _refuse_live(submission: Submission, job: JobStatus, where: str) -> None:
    """UsageError if a submission is waiting or running; ClusterUnavailable if that is unknown."""
    if job.state == "gone":
        return
    if job.state == "unreachable":
        raise PlaceUnavailable(
            f"it is unknown whether {where}, waits or runs; nothing was submitted",
            job.reason,
            "another try later, or --again",
        )
    reason = f" ({job.reason})" if job.reason else ""
    again = "--again" if submission.place != "kubernetes" else "another name=..."
    raise UsageError(
        f"this run is submitted already and {job.state}{reason}: {where}. Allowed: `launcher cancel`, or {again}"
    )


def _is_done(config: RunConfig, run: RunDirectory) -> bool:
    """Whether the run has finished, and print it. A longer duration continues the run."""
    if not recorded.is_done(config, run):
        return False
    print(f"run {run.path}: finished already; nothing was submitted. Another name=... trains it again")
    return True


def _record(run: RunDirectory, submission: Submission, given: argparse.Namespace, where: str) -> None:
    """Record a submission, and print how to follow it.

    Without the run's storage on this machine, nothing is recorded: a folder created here would be a different one. The
    job is then found by its config, and the option `where`.
    """
    if run.storage.is_dir():
        submissions.record(run, submission)
        _how_to_follow(str(run.path))
    else:
        print(f"  not recorded, as {run.storage} is not on this machine: use the config to find the job")
        _how_to_follow(" ".join([given.config, *given.overrides]), where)


def _output(run: RunDirectory) -> str | None:
    """The file for the output of the job, in the run directory; None if sbatch would misread its name."""
    folder = str(run.all_logs)
    return f"{folder}/slurm-%j.out" if re.fullmatch(r"[A-Za-z0-9._/ -]+", folder) else None


def _how_to_follow(target: str, more: str = "") -> None:
    print(f"  launcher status {target}{more}")
    print(f"  launcher logs   {target} --follow{more}")
    print(f"  launcher cancel {target} [--save|--now]{more}")
