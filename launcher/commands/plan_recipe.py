"""The recipe of a plan: each value with its source, and with the published run that has the same."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.commands.config_show import DEFAULT, source_of
from launcher.commands.plan_text import columns, paragraph
from launcher.config import yaml_text
from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig
from launcher.config.yaml_source import Document
from launcher.planning.published_recipe import Comparison, compared, least_recipe
from resnet_dist.recipe.schema import plain

# Shown also where they have their defaults.
_ALWAYS = (
    "model.name",
    "model.num_classes",
    "data.resolution",
    "duration",
    "batch.size",
    "batch_norm.span",
    "optimizer.name",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "schedule.peak_lr",
    "schedule.base_lr",
    "schedule.warmup",
    "schedule.decay",
    "regularization.label_smoothing",
    "precision",
    "seed",
)


def lines(config: RunConfig, document: Document) -> Iterator[str]:
    """A line for each important key, and for each other one that does not have its default: value and source.

    `document` is what `config` was made of.
    """
    comparison = compared(config)
    flat = flatten(plain(config.recipe()))
    given = [key for key in flat if source_of(key, document) != DEFAULT]
    defaults = flatten(plain(least_recipe(config)))
    chosen = [key for key in flat if key in _ALWAYS or (key in given and flat[key] != defaults.get(key))]
    keys = [key for key in chosen if flat[key] is not None]
    if config.optimizer.betas is not None or config.optimizer.num_states > 1:  # lamb and adamw have no momentum
        keys = [key for key in keys if key != "optimizer.momentum" or key in given]
    keys.sort(key=lambda key: _ALWAYS.index(key) if key in _ALWAYS else len(_ALWAYS))
    yield from columns([(key, yaml_text.flow(flat[key]), _source(key, document, comparison)) for key in keys])
    if comparison is not None:
        yield from paragraph(_beside(comparison))
    yield from paragraph("`launcher config show CONFIG --sources` has all keys")


def _source(key: str, document: Document, comparison: Comparison | None) -> str:
    source = source_of(key, document)
    if ":" in source and source.startswith(document.whole.rpartition(":")[0]):
        source = f"line {source.rpartition(':')[2]}"
    if comparison is None or not comparison.found.exact:
        return source
    name = comparison.found.origin.name
    return f"{source}, as {name}'s" if key in comparison.same else source


def _beside(comparison: Comparison) -> str:
    """The published runs with this batch, and whether this recipe is theirs."""
    found = comparison.found
    if not found.exact:
        return f"No run with this batch is published; --batch {found.batch} prints one {found}."
    if comparison.is_published:
        return f"This recipe is that of {found.origin.name}: {found.origin.source}."
    differing = ", ".join(sorted(comparison.other))
    return f"{found.origin.name} published runs with this batch; other than theirs: {differing}."
