"""`launcher submit slurm|kubernetes|ray CONFIG`: check a run, submit it, and print how to follow it.

A run that is submitted or running already is submitted again only with `--again`. In any case its lease allows one
process at a time.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import PlaceError
from cluster.kubernetes.names import run_name
from cluster.profile import KubernetesProfile, SlurmProfile
from launcher.arguments import Parser, config_arguments
from launcher.checks.variables import conflicts, of_profile
from launcher.commands import render, schedulers
from launcher.commands.render import in_users_lines, needed_profile
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import count
from launcher.places import kubernetes as kubernetes_jobs
from launcher.places import slurm as slurm_jobs
from launcher.places.packing import pack
from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.status import lease_state
from launcher.run.submissions import Submission


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
    place.add_argument("--context", metavar="NAME", help="kubectl's (default: its current one)")
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
    names = [variant.name for variant in job.spec.variants] or [job.config.name]
    runs = [RunDirectory(Path(job.config.storage), name) for name in names]
    if not given.dry_run:
        if not job.spec.variants and _is_done(job.config, runs[0]):
            return 0
        for run in runs:
            refuse_twice(run, again=given.again)
    try:
        slurm_jobs.check(job.script)
        _print_conflicts(job.profile)
        if given.dry_run:
            print(f"SLURM accepts {job.spec.name}; nothing was submitted")
            return 0
        for run in runs:
            run.create()
        identity = slurm_jobs.submit(job.script, None if job.spec.variants else _output(runs[0]))
    except PlaceError as error:
        raise in_users_lines(error, configs.read(given.config, given.overrides), given.profile) from None
    for number, run in enumerate(runs):
        name = f"{identity}_{number}" if job.spec.variants else identity
        submissions.record(run, submissions.now("slurm", name))
    print(f"slurm job {identity}" + (f", {count(len(runs), 'run')}" if len(runs) > 1 else ""))
    for run in runs:
        _how_to_follow(str(run.path))
    return 0


def _kubernetes(given: argparse.Namespace) -> int:
    profile = needed_profile(given)
    # A new submission id: that an earlier submission failed for good does not matter for this one.
    job = render.kubernetes(given.config, given.overrides, profile, given.working_dir, uuid.uuid4().hex[:12])
    run = RunDirectory(Path(job.config.storage), job.config.name)
    name, namespace = run_name(job.config.name), job.profile.namespace
    details = {"namespace": namespace} | ({} if given.context is None else {"context": given.context})
    submission = submissions.now("kubernetes", name, details)
    if not given.dry_run:
        if _is_done(job.config, run):
            return 0
        refuse_twice(run, again=given.again)
        _refuse_live(submission)
    kubernetes_jobs.check(job.manifests, namespace, given.context)
    _print_conflicts(job.profile)
    if given.dry_run:
        print(f"Kubernetes accepts {job.spec.name}; nothing was submitted")
        return 0
    kubernetes_jobs.submit(job.manifests, name, namespace, given.context)
    print(f"RayJob {name} in namespace {namespace}")
    if _record_where_seen(run, submission):
        _how_to_follow(str(run.path))
    else:
        _how_to_follow(" ".join([given.config, *given.overrides]), f" --profile {profile}")
    return 0


def _ray(given: argparse.Namespace) -> int:
    from launcher.ray_backend import jobs as ray_jobs

    address = ray_jobs.resolved(given.address)
    config = configs.load(given.config, given.overrides)
    if config.place == "local":
        place = configs.read(given.config, given.overrides).place("place")
        raise UsageError(f"{place}: place: found local, which does not use Ray. Allowed: ray or auto")
    run = RunDirectory(Path(config.storage), config.name)
    if not given.dry_run:
        if _is_done(config, run):
            return 0
        refuse_twice(run, again=given.again)
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        packed = pack(config, Path(folder))
        print(f"working directory: {count(len(packed.files), 'file')}, {packed.size_bytes / 2**20:.2f} MiB")
        if packed.installed:
            print(f"  installed here, and required on every node of the cluster: {', '.join(packed.installed)}")
        unsafe = ray_jobs.warning(address)
        if unsafe is not None:
            print(f"  {unsafe}")
        if not given.again and not given.dry_run:
            known = ray_jobs.find(run.path, address)
            if known is not None:
                _refuse_live(submissions.now("ray", known, {"address": address}))
        if given.dry_run:
            for file in packed.files:
                print(f"  {file}")
            print(f"nothing was submitted to {address}")
            return 0
        identity = ray_jobs.submit(packed, run.path, address)
    print(f"ray job {identity} at {address}")
    if _record_where_seen(run, submissions.now("ray", identity, {"address": address})):
        _how_to_follow(str(run.path))
    else:
        _how_to_follow(" ".join([given.config, *given.overrides]), f" --address {address}")
    return 0


def _print_conflicts(profile: SlurmProfile | KubernetesProfile) -> None:
    """Print the variables of this shell that differ from the profile's."""
    for finding in conflicts(of_profile(profile), os.environ):
        print(f"  {finding.found}: {finding.advice}")


def refuse_twice(run: RunDirectory, *, again: bool) -> None:
    """UsageError if the run is submitted or running already, unless `again`."""
    if again or not run.path.is_dir():
        return
    held = lease_state(run)
    if held.alive and held.holder is not None:
        raise UsageError(
            f"{run.path}: this run is running: process {held.holder.pid} on {held.holder.host}, since "
            f"{held.holder.since}. Allowed: `launcher cancel {run.path}`, another name=..., or --again"
        )
    submission = submissions.newest(run)
    if submission is not None:
        _refuse_live(submission)


def _refuse_live(submission: Submission) -> None:
    """UsageError if a submission is waiting or running, or may be."""
    job = schedulers.ask(submission)
    if job.state == "gone":
        return
    where = f"{submission}, submitted {submission.time} on {submission.host}"
    if job.state == "unreachable":
        raise UsageError(
            f"this run was submitted already: {where}. Its status is unknown: {job.reason}. "
            "Allowed: try again later, or --again"
        )
    reason = f" ({job.reason})" if job.reason else ""
    again = "--again" if submission.place != "kubernetes" else "another name=..."
    raise UsageError(
        f"this run is submitted already and {job.state}{reason}: {where}. Allowed: `launcher cancel`, or {again}"
    )


def _is_done(config: RunConfig, run: RunDirectory) -> bool:
    """Whether the run has finished, and print it. A longer duration continues the run."""
    summary = run.summary() or {}
    if summary.get("duration") != str(config.duration):
        return False
    print(f"run {run.path}: finished already; nothing was submitted. Another name=... trains it again")
    return True


def _record_where_seen(run: RunDirectory, submission: Submission) -> bool:
    """Record a submission if the run's storage is mounted here; a folder created here would be a different one."""
    if not run.storage.is_dir():
        print(f"  not recorded, as {run.storage} is not on this machine: use the config to find the job")
        return False
    submissions.record(run, submission)
    return True


def _output(run: RunDirectory) -> str | None:
    """The file for the output of the job, in the run directory; None if sbatch would misread its name."""
    folder = str(run.all_logs)
    return f"{folder}/slurm-%j.out" if re.fullmatch(r"[A-Za-z0-9._/ -]+", folder) else None


def _how_to_follow(target: str, more: str = "") -> None:
    print(f"  launcher status {target}{more}")
    print(f"  launcher logs   {target} --follow{more}")
    print(f"  launcher cancel {target} [--save|--now]{more}")
