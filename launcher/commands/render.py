"""`launcher render slurm|kubernetes CONFIG`: print what would be submitted to a scheduler.

A RunConfig becomes a `cluster.spec.RunSpec`, from which `cluster` makes text. Values that a scheduler cannot accept are
reported with the line of the user's config or profile.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import PlaceError
from cluster.kubernetes import access as kubernetes_access
from cluster.kubernetes import manifests as kuberay
from cluster.kubernetes import rules
from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile, SlurmProfile
from cluster.slurm import script as slurm_text
from cluster.slurm.script import Launcher
from cluster.spec import RunSpec, Variant
from launcher.arguments import Parser, config_arguments
from launcher.config import load as configs
from launcher.config.profiles import load_profile, profile_document, shipped
from launcher.config.schema import RunConfig
from launcher.config.yaml_source import Document
from launcher.errors import ConfigError, Problem, UsageError
from launcher.places.spec import spec_of

SWEEP_ENDS = "warning: --sweep ends with the next release; `launcher study FILE --place slurm` submits such an array"


@dataclass(frozen=True)
class SlurmJob:
    """A run as an sbatch script."""

    config: RunConfig
    spec: RunSpec
    profile: SlurmProfile
    script: str
    doubts: tuple[Problem, ...]  # valid, but probably a mistake


@dataclass(frozen=True)
class KubernetesJob:
    """A run as Kubernetes manifests."""

    config: RunConfig
    spec: RunSpec
    profile: KubernetesProfile
    manifests: tuple[Manifest, ...]
    placeholders: tuple[Problem, ...]  # have to be replaced before the manifests are submitted
    doubts: tuple[Problem, ...]  # valid, but probably a mistake


def slurm(
    path: str, overrides: Sequence[str], profile: str = "slurm", launcher: Launcher = "ray", sweep: Sequence[str] = ()
) -> SlurmJob:
    """The sbatch script of the config at `path`. Raises UsageError and ConfigError."""
    document, config = configs.read(path, overrides), configs.load(path, overrides)
    other = {"ray": "local", "torchrun": "ray"}[launcher]
    if config.place == other:
        allowed = f"auto with --launcher {launcher}, or --launcher {'torchrun' if other == 'local' else 'ray'}"
        raise ConfigError([Problem(document.place("place"), "place", f"found {other}", allowed)])
    if sweep:
        print(SWEEP_ENDS, file=sys.stderr)
    spec = spec_of(config, variants(path, overrides, config, sweep))
    try:
        site = load_profile(profile, "slurm")
        script = slurm_text.render(spec, site, launcher)
    except PlaceError as error:
        raise in_users_lines(error, document, profile) from None
    return SlurmJob(
        config, spec, site, script, _with_places(slurm_text.doubts(spec, site, launcher), document, profile)
    )


def kubernetes(
    path: str,
    overrides: Sequence[str],
    profile: str,
    working_dir: str | None = None,
    submission: str | None = None,
) -> KubernetesJob:
    """The manifests of the config at `path`; see `manifests.manifests`. Raises UsageError and ConfigError."""
    document, config = configs.read(path, overrides), configs.load(path, overrides)
    if config.place == "local":
        allowed = "ray or auto: on Kubernetes the driver runs in a pod without a worker"
        raise ConfigError([Problem(document.place("place"), "place", "found local", allowed)])
    spec = spec_of(config)
    try:
        site = load_profile(profile, "kubernetes")
        made = kuberay.manifests(spec, site, working_dir=working_dir, submission=submission)
    except PlaceError as error:
        raise in_users_lines(error, document, profile) from None
    placeholders = _with_places(rules.placeholders(site), document, profile)
    return KubernetesJob(
        config, spec, site, tuple(made), placeholders, _with_places(rules.doubts(spec, site), document, profile)
    )


def in_users_lines(error: PlaceError, document: Document, profile: str) -> ConfigError:
    """The problems of `error`, with the lines of the user's config or else profile."""
    return ConfigError(_with_places(error.problems, document, profile))


def _with_places(problems: Iterable[Problem], document: Document, profile: str) -> tuple[Problem, ...]:
    own = {part.name for part in dataclasses.fields(RunConfig)}

    def place_of(problem: Problem) -> str:
        if problem.key.startswith("--"):
            return "command line"
        first = problem.key.partition(".")[0]
        if problem.place != rules.PROFILE and (not first or first in own):
            return document.place(problem.key)
        return profile_document(profile).place(problem.key)

    return tuple(dataclasses.replace(problem, place=place_of(problem)) for problem in problems)


def warn(doubts: Iterable[Problem]) -> None:
    """Show doubts to a person."""
    for problem in doubts:
        print(f"warning: {problem}", file=sys.stderr)


def variants(path: str, overrides: Sequence[str], config: RunConfig, sweep: Sequence[str]) -> list[Variant]:
    """All combinations of `key=first,second,...`, each a run with its own name, checked as a config.

    Raises UsageError for an invalid sweep or equal names, ConfigError for an invalid value.
    """
    axes: list[list[tuple[str, str]]] = []
    for text in sweep:
        key, equals, values = text.partition("=")
        if not equals or not key or not all(value.strip() for value in values.split(",")):
            raise UsageError(f"--sweep {text}: not a sweep. Allowed: key=first,second, for example seed=0,1,2")
        if key == "name":
            raise UsageError("--sweep name=...: each run gets its own name. Allowed: any other key")
        axes.append([(key, value.strip()) for value in values.split(",")])
    made: list[Variant] = []
    for combination in itertools.product(*axes) if axes else ():
        parts = [f"{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9.]+', '_', value)}" for key, value in combination]
        name = "-".join([config.name, *parts])
        given = (*(f"{key}={value}" for key, value in combination), f"name={name}")
        configs.load(path, [*overrides, *given])
        if any(variant.name == name for variant in made):
            raise UsageError(f"--sweep: two runs would have the name {name}. Allowed: values with different letters")
        made.append(Variant(name=name, overrides=given))
    return made


def add_parser(verbs: Any) -> None:
    """slurm|kubernetes CONFIG [key=value ...] [--profile FILE|NAME] ..."""
    verb = verbs.add_parser("render", help="print the sbatch script or the Kubernetes manifests of a run")
    places = verb.add_subparsers(title="place", metavar="slurm|kubernetes", required=True, parser_class=Parser)
    place = places.add_parser("slurm", help="an sbatch script")
    config_arguments(place)
    slurm_arguments(place)
    place.set_defaults(run=_slurm)
    place = places.add_parser("kubernetes", help="a RayJob of KubeRay and its other objects")
    place.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file; not needed with --rbac")
    place.add_argument("overrides", metavar="key=value", nargs="*", help="override a key, e.g. batch.size=256")
    kubernetes_arguments(place)
    place.add_argument("--rbac", action="store_true", help="print only the rights that each verb needs")
    place.set_defaults(run=_kubernetes)


def slurm_arguments(parser: argparse.ArgumentParser) -> None:
    """[--profile FILE|NAME] [--launcher ray|torchrun] [--sweep key=A,B]"""
    launcher_arguments(parser)
    parser.add_argument(
        "--sweep",
        metavar="key=A,B",
        action="append",
        default=[],
        help="deprecated, see `launcher study`: a job array with one run per value, or per combination if repeated",
    )


def launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """[--profile FILE|NAME] [--launcher ray|torchrun]"""
    names = ", ".join(name for name in shipped() if name.startswith("slurm"))
    parser.add_argument(
        "--profile", metavar="FILE|NAME", default="slurm", help=f"of the site: a YAML file, or {names} (%(default)s)"
    )
    parser.add_argument(
        "--launcher",
        choices=("ray", "torchrun"),
        default="ray",
        help="ray: continues after the loss of a node, uses spare nodes; torchrun: starts faster (%(default)s)",
    )


def kubernetes_arguments(parser: argparse.ArgumentParser) -> None:
    """[--profile FILE|NAME] [--working-dir ADDRESS]"""
    names = ", ".join(name for name in shipped() if name.startswith("kubernetes"))
    parser.add_argument("--profile", metavar="FILE|NAME", help=f"of the cluster: a YAML file, or {names}")
    parser.add_argument("--working-dir", metavar="ADDRESS", help="of a .zip with your own code: https, s3, gs, file")


def needed_profile(given: argparse.Namespace) -> str:
    """The profile that was given; UsageError if there is none."""
    if given.profile is None:
        names = ", ".join(name for name in shipped() if name.startswith("kubernetes"))
        raise UsageError(
            "--profile is missing: it names the image, which has no default. Allowed: a YAML file of your own, "
            f"based on one of the shipped ones: {names}"
        )
    return str(given.profile)


def _slurm(given: argparse.Namespace) -> int:
    job = slurm(given.config, given.overrides, given.profile, given.launcher, given.sweep)
    warn(job.doubts)
    print(job.script, end="")
    return 0


def _kubernetes(given: argparse.Namespace) -> int:
    if given.rbac:
        profile = load_profile(given.profile or "kubernetes-cpu", "kubernetes")
        print(kuberay.to_yaml(kubernetes_access.roles(profile)), end="")
        return 0
    if given.config is None:
        raise UsageError("CONFIG is missing. Allowed: a YAML file, for example configs/rn50_8node.yaml; or --rbac")
    job = kubernetes(given.config, given.overrides, needed_profile(given), given.working_dir)
    command = ["launcher", "render", "kubernetes", given.config, *given.overrides, "--profile", given.profile]
    command += ["--working-dir", given.working_dir] if given.working_dir else []
    warn((*job.placeholders, *job.doubts))
    print(kuberay.to_yaml(job.manifests, heading=[shlex.join(command)]), end="")
    return 0
