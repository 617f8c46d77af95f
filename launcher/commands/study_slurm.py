"""`launcher study FILE --place slurm`: the runs of a study that come next, as one SLURM job array."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from cluster.errors import PlaceError
from cluster.profile import SlurmProfile
from cluster.slurm import script as slurm_text
from cluster.slurm.script import Launcher
from cluster.spec import Variant
from launcher.commands import render
from launcher.commands.submit import interruption, nothing_submitted, refuse_twice
from launcher.config import load as configs
from launcher.config.profiles import load_profile
from launcher.errors import ConfigError, Problem, UsageError
from launcher.formatting import count
from launcher.places import slurm as slurm_jobs
from launcher.places.spec import spec_of
from launcher.run import submissions
from launcher.study.plan import Plan, PlannedRun, fixed
from resnet_dist.recipe.schema import plain

_SAME = ("least_workers", "most_workers", "nodes", "gpus_per_worker", "cpus_per_worker", "walltime_s")


def submit(plan: Plan, runs: Sequence[PlannedRun], given: argparse.Namespace) -> int:
    """Submit those of `runs` that no job waits for or trains; returns how many.

    Task i of the array trains run i of them, as `launcher submit slurm` would. Raises ConfigError for a study that
    cannot be an array, PlaceError and ClusterUnavailable as `launcher submit slurm` does.
    """
    file = plan.file
    if file.study.halving is not None:
        found, allowed = "given, and a job array cannot pause its runs", "--place local or ray; or no halving"
        raise ConfigError([Problem(file.place("halving"), "halving", found, allowed)])
    runs = [run for run in runs if not _is_submitted(run)]
    if not runs:
        return 0
    site = load_profile(given.profile, "slurm")
    try:
        script = array(plan, runs, site, given.launcher, given.overrides)
        with nothing_submitted():
            slurm_jobs.check(script)
        if given.dry_run:
            print(script, end="")
            return 0
        for run in runs:
            run.directory.create()
        name = file.study.name
        with interruption(f"the job may have been submitted, see: squeue --me --name={name}"):
            identity = slurm_jobs.submit(script, name, None)
    except PlaceError as error:
        raise render.in_users_lines(error, file.document, given.profile) from None
    for number, run in enumerate(runs):
        submissions.record(run.directory, submissions.now("slurm", f"{identity}_{number}"))
    print(f"slurm job {identity}, {count(len(runs), 'run')}; the same command shows the results, and goes on")
    return len(runs)


def array(
    plan: Plan, runs: Sequence[PlannedRun], site: SlurmProfile, launcher: Launcher, overrides: Sequence[str]
) -> str:
    """The script of a job array whose task i trains `runs[i]`. Raises ConfigError, PlaceError."""
    values, places = fixed(plan.file, overrides)
    storage = {"storage": runs[0].config.storage, "name": plan.file.study.name, "place": "auto"}
    base = configs.load(plan.file.base, {**values, **storage}, places=places)
    variants = []
    for run in runs:
        keys = {**run.point.overrides, "seed": run.seed, "name": run.name}
        texts = tuple(f"{key}={json.dumps(plain(value))}" for key, value in keys.items())
        variants.append(Variant(name=run.name, overrides=texts))
    spec = spec_of(base, variants)
    for run in runs:
        own = spec_of(run.config)
        for name in _SAME:
            if getattr(own, name) != getattr(spec, name):
                found = f"{run.name} needs other resources of SLURM than the base config ({name})"
                raise ConfigError([Problem(plan.file.document.whole, "", found, "the same for all tasks of an array")])
    return slurm_text.render(dataclasses.replace(spec, variants=tuple(variants)), site, launcher)


def _is_submitted(run: PlannedRun) -> bool:
    try:
        refuse_twice(run.directory, again=False)
    except UsageError:
        return True
    return False
