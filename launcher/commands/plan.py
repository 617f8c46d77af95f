"""`launcher plan CONFIG`: what a config will reach, take and need, computed without GPU, Ray or torch."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.arguments import config_arguments
from launcher.commands import (
    plan_batch,
    plan_deadline,
    plan_recipe,
    plan_resources,
    plan_result,
    plan_scaling,
    plan_schedule,
    plan_spans,
)
from launcher.commands.plan_text import heading, paragraph
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.config.yaml_source import Document
from launcher.errors import ConfigError, Problem, UsageError
from launcher.formatting import count
from launcher.planning import calibration, cost, deadline, memory, scaling_model
from launcher.planning.forecast import Forecast
from launcher.planning.history import Earlier, as_local, earlier_run, earlier_runs
from launcher.planning.images import IMAGENET_BYTES, Images, counted
from launcher.planning.prediction import predict
from launcher.planning.scaling_model import Assumptions, ScaleEstimate, Workload
from launcher.planning.score import lines as score_lines
from launcher.planning.work import work_of
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.published import Published
from resnet_dist.recipe.references import is_reference

MAX_NODES = 100_000  # one column each: more is a typing error
_HISTORY_S = 1.0  # in which earlier runs of the storage are read, newest first
_ONLY_WITH_NODES = ("save_s", "restart_s", "storage_gb_s")


def add_parser(verbs: Any) -> None:
    """CONFIG [key=value ...] [--batch B] [--nodes N,N] [--deadline T] [--price-per-gpu-hour X] ... | --score STORAGE"""
    verb = verbs.add_parser("plan", help="what a config will reach, take and need; needs neither GPUs nor images")
    config_arguments(verb)
    verb.set_defaults(config=None)
    for action in verb._actions:
        if action.dest == "config":
            action.nargs, action.required = "?", False
    verb.add_argument("--batch", metavar="B", type=int, help="plan with the published recipe for this batch")
    verb.add_argument("--deadline", metavar="TIME", help='what is done by then: "2026-12-01 06:00" or 06:00, local')
    verb.add_argument("--price-per-gpu-hour", metavar="X", type=float, help="also the cost, in the currency of X")
    verb.add_argument("--gpu", metavar="NAME", help="the GPUs, such as H100, if they are not those of this machine")
    verb.add_argument("--images-per-s", metavar="R", type=float, help="speed of one worker, without communication")
    verb.add_argument("--mtbf-hours", metavar="H", type=float, help="mean time between failures of a node")
    verb.add_argument("--calibrate", action="store_true", help="measure the speed here first, for a minute")
    verb.add_argument("--score", metavar="STORAGE", type=Path, help="how good the forecasts of these runs would be")
    verb.add_argument("--nodes", metavar="N,N,...", help="also time, load and goodput for these numbers of nodes")
    group = verb.add_argument_group("with --nodes")
    group.add_argument("--save-s", metavar="S", type=float, help="time that a checkpoint stops the training")
    group.add_argument("--restart-s", metavar="S", type=float, help="from a failure to the next step, without reading")
    group.add_argument("--storage-gb-s", metavar="R", type=float, help="read bandwidth of the shared storage")
    verb.add_argument("--ablate", action="store_true", help="also measure the bottleneck here; needs the data")
    verb.add_argument("--steps", metavar="N", type=int, default=20, help="with --ablate: per measurement (%(default)s)")
    verb.set_defaults(run=_plan)


def _plan(given: argparse.Namespace) -> int:
    if given.score is not None:
        if given.config is not None:
            raise UsageError(f"--score {given.score}: Allowed: without CONFIG")
        print("\n".join(score_lines(given.score.expanduser())))
        return 0
    if given.config is None:
        allowed = "a YAML file, for example configs/digits_cpu.yaml; or --score STORAGE"
        raise UsageError(f"CONFIG is missing. Allowed: {allowed}")
    now = datetime.datetime.now(datetime.UTC)
    until = None if given.deadline is None else deadline.parse(given.deadline, now)
    config, overrides, found = _config(given)
    if config.place == "local":
        config = as_local(config)
    _check_options(given, config)
    nodes = [] if given.nodes is None else _nodes(given.nodes)
    if given.ablate and config.data.num_samples is None and is_reference(config.data.source):
        return _ablate(config, given.steps)  # which finds the data itself
    _check_frozen(config)
    config, images = counted(config)
    if given.calibrate:
        measured = calibration.calibrate(config, say=lambda text: print(text, flush=True))
        print(f"kept in {calibration.save(config, measured)}")
    plan = Plan(given, configs.read(given.config, overrides), config, images)
    due = None if until is None else plan_deadline.lines(plan.candidates(nodes), until, now, given.price_per_gpu_hour)
    scaling = list(_scaling(plan, nodes)) if nodes else []
    print("\n".join([*_lines(plan, found, due or ()), *scaling]))
    if found is not None:
        print(f"\n{plan_batch.command(given.config, overrides)}")
    return _ablate(config, given.steps) if given.ablate else 0


def _config(given: argparse.Namespace) -> tuple[RunConfig, list[str], Published | None]:
    """The config, its overrides, and with --batch the published recipe, whose keys are among them."""
    overrides = list(given.overrides)
    config = configs.load(given.config, overrides)
    if given.batch is None:
        return config, overrides, None
    if given.ablate:
        raise UsageError("--batch plans another recipe. Allowed: without --ablate")
    found = plan_batch.published_for(config, given.batch)
    overrides += plan_batch.overrides(found, config)
    return configs.load(given.config, overrides), overrides, found


def _check_options(given: argparse.Namespace, config: RunConfig) -> None:
    numbers = ("mtbf_hours", "images_per_s", "price_per_gpu_hour", *_ONLY_WITH_NODES)
    for name in numbers:
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: Allowed: a number above 0")
    if given.nodes is None and any(getattr(given, name) is not None for name in _ONLY_WITH_NODES):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in _ONLY_WITH_NODES)
        raise UsageError(f"--nodes is missing: {options} are used only with it")
    if config.resources.gpus_per_worker == 0:
        for name in ("price_per_gpu_hour", "gpu"):
            if getattr(given, name) is not None:
                problem = "the config uses no GPUs (resources.gpus_per_worker: 0)"
                raise UsageError(f"--{name.replace('_', '-')}: {problem}. Leave it out for a run on CPUs")


def _check_frozen(config: RunConfig) -> None:
    """Raise RecipeError if the network does not have what is to be frozen."""
    if config.model.freeze and not is_reference(config.model.name):
        from resnet_dist.models import build_model  # torch, for the few configs that name layers

        build_model(dataclasses.replace(config.model, weights=None), config.seed)


def _nodes(text: str) -> Sequence[int]:
    if re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text) is None:
        raise UsageError(f"--nodes {text}: Allowed: numbers with commas between them, for example 1,8,64,512")
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= MAX_NODES for number in numbers):
        raise UsageError(f"--nodes {text}: Allowed: numbers from 1 to {MAX_NODES:,}")
    return numbers


def _ablate(config: RunConfig, steps: int) -> int:
    from launcher.commands import ablate  # its children import torch

    for line in ablate.lines(config, steps):
        print(line, flush=True)
    return 0


class Plan:
    """A config with what is computed of it for several sections."""

    def __init__(self, given: argparse.Namespace, document: Document, config: RunConfig, images: Images) -> None:
        """`config` has the number of its images. Raises ConfigError if it is not known."""
        num_samples = config.data.num_trained()
        if num_samples is None:
            found = f"is not given, and a plan does not call {config.data.source}"
            raise ConfigError([Problem("", "data.num_samples", found, "the number of training images")])
        self.given, self.document = given, document
        self.config, self.images, self.num_samples = config, images, num_samples
        self.earlier: list[Earlier] = list(_evidence(config))
        values = {part.name: getattr(given, part.name) for part in dataclasses.fields(Assumptions)}
        self.assumed = Assumptions(**{name: value for name, value in values.items() if value is not None})
        self.forecast = self.predicted(config)
        self.estimate, self.measured = memory.estimate(config), memory.measured(config)

    def predicted(self, config: RunConfig) -> Forecast | None:
        """The forecast of this config or of another one like it."""
        return predict(
            config,
            gpu=self.given.gpu,
            assumed=self.assumed,
            earlier=self.earlier,
            num_val=self.images.num_val,
        )

    def at_scale(self, nodes: int, forecast: Forecast) -> ScaleEstimate:
        """The load and the goodput on `nodes`, for which `forecast` is. A user's model counts as empty."""
        return scaling_model.estimate(nodes, _workload(self), self.assumed, forecast)

    def candidates(self, nodes: Sequence[int], *, own_only: bool = False) -> list[deadline.Candidate]:
        """The config and the published recipes on `nodes`, or on numbers of nodes around the config's."""
        numbers = nodes or deadline.nodes_around(self.config)
        own_only = own_only or self.given.batch is not None
        return list(deadline.candidates(self.config, numbers, self.predicted, own_only=own_only))


def _evidence(config: RunConfig) -> Iterator[Earlier]:
    """This run's own complete steps, and the finished runs of its storage."""
    storage = Path(config.storage)
    own = earlier_run(RunDirectory(storage, config.name))
    if own is not None:
        yield own
    yield from (run for run in earlier_runs(storage, seconds=_HISTORY_S) if run.name != config.name)


def _lines(plan: Plan, found: Published | None, due: Iterable[str]) -> Iterator[str]:
    """The plan in sections, in the order in which a person decides. `due`: what is done by a deadline."""
    config, forecast = plan.config, plan.forecast
    what = f"{config.model.name}, {config.model.num_classes} classes, {config.precision}"
    yield from paragraph(f"{config.name}: {what}", indent=0)
    jobs = None if forecast is None else cost.jobs(config, forecast)
    failures = None if forecast is None else cost.failures(config, forecast, plan.assumed, plan.num_samples)
    goodput = None if forecast is None else plan.at_scale(config.cluster.nodes, forecast).config_goodput
    if warnings := [*_warnings(plan), *plan_result.job_warnings(jobs)]:
        yield from heading(count(len(warnings), "warning").capitalize())
        for warning in warnings:
            yield from paragraph(f"WARNING: {warning}")
    yield from heading("Result")
    yield from plan_result.accuracy_lines(config)
    yield from plan_result.time_lines(config, forecast, plan.given.gpu, plan.given.price_per_gpu_hour)
    yield from plan_result.mlperf_lines(config, forecast, plan.given.gpu)
    yield from plan_result.job_lines(jobs, failures, goodput)
    yield from due
    yield from heading("Recipe")
    yield from plan_recipe.lines(config, plan.document) if found is None else plan_batch.lines(found, config)
    yield from heading("Schedule")
    yield from plan_schedule.lines(config, plan.num_samples)
    yield from heading("Memory and disks")
    speed = None if forecast is None else forecast.images_per_s.median
    yield from plan_resources.memory_and_disks(config, plan.images, plan.estimate, plan.measured, speed)
    yield from heading("Where and how it runs")
    yield from plan_resources.where_and_how(config)


def _warnings(plan: Plan) -> Iterator[str]:
    config = plan.config
    yield from plan.images.warnings
    if config.batch.size > plan.num_samples:
        yield f"the batch has more than the {plan.num_samples:,} images: a step repeats some"
    if plan_schedule.ends_only_at_the_end(config, plan.num_samples):
        yield "the only evaluation is after the last step: the run cannot end earlier"
    yield from plan_spans.warnings(config)
    yield from plan_resources.ema_warnings(config, plan.num_samples)
    yield from plan_resources.experimental_warnings(config)
    yield from plan_resources.memory_warnings(plan.estimate, plan.measured)


def _scaling(plan: Plan, nodes: Sequence[int]) -> Iterator[str]:
    """The time, and the model of load and failures, by number of nodes. Raises ConfigError, UsageError."""
    config = plan.config
    if plan.estimate is None:
        found = f"found {config.model.name}, your own model, whose size is unknown"
        raise ConfigError([Problem("", "model.name", f"{found}, which --nodes needs", "a built-in model")])
    if plan.forecast is None:
        raise UsageError("--images-per-s is missing: nothing is known of the speed of a worker, which --nodes needs")
    candidates = plan.candidates(nodes, own_only=True)
    known = {one.config.cluster.nodes: one.forecast for one in candidates if one.forecast is not None}
    yield from heading("By number of nodes")
    yield from plan_deadline.by_nodes(candidates, plan.given.price_per_gpu_hour)
    estimates = {number: plan.at_scale(number, known[number]) if number in known else None for number in nodes}
    yield from plan_scaling.lines(estimates, plan.assumed)


def _workload(plan: Plan) -> Workload:
    config = plan.config
    copies = 2 + config.optimizer.num_states  # in a step; a checkpoint has no gradients
    return Workload(
        workers_per_node=config.workers.most // config.cluster.nodes,
        batch_size=config.batch.size,
        micro_batch_size=config.batch.size // config.batch.parts,
        checkpoint_bytes=0 if plan.estimate is None else plan.estimate.static // copies * (copies - 1),
        saves=work_of(config, plan.num_samples).saves,
        heartbeat_s=heartbeats.interval_s(config.faults.hang_timeout_s),
        uses_gpus=config.resources.gpus_per_worker > 0,
        image_bytes=plan.images.mean_bytes or IMAGENET_BYTES,
    )
