"""Reads a site's profile from YAML."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, overload

from cluster.kubernetes.names import is_variable
from cluster.profile import KubernetesProfile, Profile, SlurmProfile
from cluster.slurm.script import SCRATCH_VARIABLES
from launcher.config import credentials, yaml_source
from launcher.config.builder import Builder
from launcher.config.yaml_source import Document
from launcher.errors import ConfigError, Problem
from resnet_dist.recipe.requirements import LARGEST_COUNT, WEEK_S, nearest_name

Kind = Literal["slurm", "kubernetes"]
_KINDS: dict[Kind, type[Profile]] = {"slurm": SlurmProfile, "kubernetes": KubernetesProfile}
_MAX_BYTES = 100_000  # a profile has about 1,000: a larger file is not a profile
# Options of sbatch for the GPUs of a node, whose one task is the node's. --gpus counts those of the whole job.
_GPUS = r"--(gpus-per-node|gpus-per-task|gres|tres-per-node|tres-per-task)=[^\s{}]*\{count\}[^\s{}]*"
_SHELL = "variables of your login shell, which sbatch passes on, or a file with mode 600"


def shipped() -> dict[str, Path]:
    """The profiles that come with the package, by name."""
    folder = Path(str(importlib.resources.files("cluster") / "profiles"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


@overload
def load_profile(name: str | os.PathLike[str], kind: Literal["slurm"]) -> SlurmProfile: ...
@overload
def load_profile(name: str | os.PathLike[str], kind: Literal["kubernetes"]) -> KubernetesProfile: ...
def load_profile(name: str | os.PathLike[str], kind: Kind) -> Profile:
    """The shipped profile with that name, or the one in the YAML file at that path.

    Raises ConfigError if there is none, if it is of another kind, or for invalid contents.
    """
    return _build(profile_document(name), kind)


def profile_document(name: str | os.PathLike[str]) -> Document:
    """The values of the profile with that name or path, and their lines. Raises ConfigError if it cannot be read."""
    known = shipped()
    file = known.get(os.fspath(name), Path(name))
    try:
        raw = file.read_bytes()
    except OSError as error:
        allowed = f"the path of a YAML file, or one of {', '.join(known)}"
        suggestion = nearest_name(os.fspath(name), known)
        found = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(f"--profile {file}", "", found, allowed, suggestion)]) from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError([Problem(str(file), "", f"more than {_MAX_BYTES} bytes", yaml_source.FORM)])
    return yaml_source.parse(yaml_source.decode(raw, str(file)), str(file))


def _build(document: Document, kind: Kind) -> Profile:
    stated = document.data.get("kind")
    if stated != kind:
        found = "missing" if stated is None else f"found {yaml_source.describe(stated)}"
        raise ConfigError([Problem(document.place("kind"), "kind", found, f"{kind}, which this command needs")])
    builder = Builder(document, _KINDS[kind], text_as_written=True)
    profile: Profile = builder.build()
    problems = [*builder.problems, *(_problems(profile, document) if builder.fits else [])]
    if problems:
        raise ConfigError(problems)
    return profile


def _problems(profile: Profile, document: Document) -> Iterator[Problem]:
    """Mistakes beyond the types. Kubernetes' own rules are in `cluster.kubernetes.rules`."""
    for key, value in vars(profile).items():
        least, most = 1 if key == "notice_s" else 0, WEEK_S if key.endswith("_s") else LARGEST_COUNT
        if type(value) is int and not least <= value <= most:
            yield Problem(document.place(key), key, f"found {value}", f"a whole number from {least} to {most}")
    variables = {"environment": profile.environment, "network.environment": profile.network.environment}
    for section, names in variables.items():
        for name, value in names.items():
            key = f"{section}.{name}"
            place = document.place(key)
            if not is_variable(name):
                yield Problem(place, key, "not the name of a variable", "letters, digits and _, no digit first")
            elif credentials.in_variable(name, value):
                in_pods = "secrets: [{variable: ..., secret: ..., key: ...}]"
                allowed = in_pods if isinstance(profile, KubernetesProfile) else _SHELL
                yield Problem(place, key, "this looks like a secret, and rendered files are not secret", allowed)
    if isinstance(profile, SlurmProfile):
        yield from _slurm_problems(profile, document)


def _slurm_problems(profile: SlurmProfile, document: Document) -> Iterator[Problem]:
    def problem(key: str, found: str, allowed: str) -> Problem:
        return Problem(document.place(key), key, found, allowed)

    if re.fullmatch(rf"/([A-Za-z0-9._/-]|\$({'|'.join(SCRATCH_VARIABLES)})\b)+", profile.scratch) is None:
        variables = " and ".join(f"${name}" for name in SCRATCH_VARIABLES)
        allowed = f"an absolute path of letters, digits, . _ -, and of {variables}"
        yield problem("scratch", f'found "{profile.scratch}"', allowed)
    if profile.gpus is not None and re.fullmatch(_GPUS, profile.gpus) is None:
        allowed = "one option for the GPUs of a node: --gpus-per-node={count} or --gres=gpu:a100:{count}; or null"
        yield problem("gpus", f'found "{profile.gpus}"', allowed)
    for option in profile.sbatch:
        if credentials.in_text(option):
            yield problem("sbatch", "an option looks like a secret, and rendered files are not secret", _SHELL)
        elif not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", option):
            yield problem("sbatch", f'found "{option}"', "options of sbatch in their long form: --reservation=name")
    for key in ("venv", "conda"):
        folder = getattr(profile, key)
        if folder is not None and not folder.startswith("/"):
            yield problem(key, f'found "{folder}"', "an absolute path, the same on every node")
    if sum(part is not None for part in (profile.venv, profile.conda, profile.container)) > 1:
        key = "container" if profile.container is not None else "conda"
        yield problem(key, "more than one of venv, conda and container", "the one with Python and the launcher")
    for mount in () if profile.container is None else profile.container.mounts:
        if not re.fullmatch(r"/[^:,]*:/[^:,]*(:r[ow])?", mount):
            yield problem("container.mounts", f'found "{mount}"', "SOURCE:TARGET or SOURCE:TARGET:ro, absolute paths")
