"""Find the run that a command line names, by its directory or its config, on this machine or through its scheduler."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cluster.profile import KubernetesProfile
from launcher.commands import schedulers
from launcher.config.profiles import load_profile
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, UsageError
from launcher.places import kubernetes as kubernetes_jobs
from launcher.places.programs import Lines
from launcher.places.spec import spec_of
from launcher.ray_backend import jobs as ray_jobs
from launcher.run import submissions
from launcher.run.directory import RunDirectory
from launcher.run.named import no_run, run_of
from launcher.run.status import exists
from launcher.run.submissions import JobStatus, Submission


@dataclass(frozen=True)
class Target:
    """The run that a command line names."""

    run: RunDirectory
    is_here: bool  # its run directory is on this machine
    submission: Submission | None
    config: RunConfig | None = None  # if one was given
    profile: KubernetesProfile | None = None
    context: str | None = None
    address: str | None = None  # of a Ray cluster, as the user gave it

    def job_status(self) -> JobStatus | None:
        """The status of its job, from its scheduler; None if it was not submitted."""
        return None if self.submission is None else schedulers.ask(self.submission, self.address)

    def read(self, arguments: list[str], *, live: bool = False) -> str | None:
        """The output of `launcher ARGUMENTS` in a pod with the volume; None without a Kubernetes profile."""
        if self.profile is None or self.config is None:
            return None
        return kubernetes_jobs.read(spec_of(self.config), self.profile, arguments, self.context, live=live)

    def lines(self, arguments: list[str]) -> Lines:
        """The lines that `launcher ARGUMENTS` prints where the run directory is, as they come.

        In a pod with the volume, or as a job of the Ray cluster. Raises ClusterUnavailable.
        """
        if self.profile is not None and self.config is not None:
            return kubernetes_jobs.lines(spec_of(self.config), self.profile, arguments, self.context)
        assert self.address is not None  # how else a run is found that is not here
        return ray_jobs.lines(arguments, ray_jobs.resolved(self.address))


def add_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """RUN|CONFIG [key=value ...] [--profile P] [--context C] [--address URL]; `several`: more runs beside key=value."""
    parser.add_argument("target", metavar="RUN|CONFIG", help="a run directory, STORAGE/NAME, or the run's config")
    more, what = ("RUN|key=value", "more runs, or: ") if several else ("key=value", "")
    parser.add_argument("overrides", metavar=more, nargs="*", help=f"{what}of a config, as it was submitted")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """[--profile P] [--context C] [--address URL]"""
    parser.add_argument("--profile", metavar="FILE|NAME", help="of Kubernetes, if the volume is not mounted here")
    parser.add_argument("--context", metavar="NAME", help="kubectl context, with --profile")
    parser.add_argument("--address", metavar="URL", help="of a Ray cluster, if its storage is not mounted here")


def add_place_says(parser: argparse.ArgumentParser) -> None:
    """[--place-says pending|running|gone]"""
    parser.add_argument(
        "--place-says",
        choices=("pending", "running", "gone"),
        help="the job's state in its scheduler, if the scheduler cannot be reached from here (inside a pod)",
    )


def find(given: argparse.Namespace, *, may_begin_later: bool = False) -> Target:
    """The run that the command line names. Raises UsageError if there is none, ConfigError for a wrong config.

    `may_begin_later`: a config without a run is one, too.
    """
    run, config = run_of(given.target, given.overrides)
    if exists(run):
        return Target(run, True, submissions.newest(run), config, address=given.address)
    if given.profile is not None and config is not None:
        try:
            profile = load_profile(given.profile, "kubernetes")
        except ConfigError as error:
            raise UsageError(str(error)) from None
        submission = schedulers.rayjob(config.name, profile.namespace, given.context)
        return Target(run, False, submission, config, profile, given.context)
    if given.address is not None and config is not None:
        address = ray_jobs.resolved(given.address)
        job = ray_jobs.find(run.path, address)
        if job is None:
            raise UsageError(f"{address}: has no job of {run.path}. Allowed: the cluster it was submitted to")
        return Target(run, False, submissions.now("ray", job, {"address": address}), config, address=given.address)
    if may_begin_later and config is not None:
        return Target(run, True, None, config)
    raise no_run(run, "; if its storage is not mounted here, a config with --profile (Kubernetes) or --address (Ray)")
