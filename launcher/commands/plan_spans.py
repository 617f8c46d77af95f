"""What a plan says about batch-norm spans that lie on several workers.

Workers with common spans form a team, and exchange statistics in every batch norm: one collective in the forward pass
and one in the backward pass, one after the other. The teams depend on the number of workers in a way that is easy to
overlook: 8,192 samples in spans of 64 need no exchange on 64 workers, but teams of 15 on 60 workers, and one team of
all on 63.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from launcher.config.schema import RunConfig
from launcher.formatting import count
from resnet_dist.recipe.batch_layout import LARGEST_SPAN, LEAST_SPAN, BatchLayout, allowed_spans, span_groups
from resnet_dist.recipe.network_memory import num_batch_norms
from resnet_dist.recipe.rules import settled

SHARES_SPANS = "*"  # mark in tables
_NUM_SHOWN = 3  # kinds of teams
_NUM_PARTS = 5  # numbers of workers


def warnings(config: RunConfig) -> Iterator[str]:
    """A warning if `span: auto` found no divisor, and one if workers share spans of a fixed number of samples."""
    if config.model.normalisation == "none" or config.workers.most == 1:
        return
    span = settled(config).batch_norm.fixed_span
    if config.batch_norm.span == "auto" and span == "global":
        size = BatchLayout.of(config, config.workers.most).micro_batch_size
        yield (
            f"span global: no divisor of {size:,} lies between {LEAST_SPAN} and {LARGEST_SPAN}; statistics over the"
            " whole batch are the slowest choice on a cluster"
        )
    if isinstance(span, int):
        yield from _shared(config, span)


def largest_team(layout: BatchLayout, span: int) -> int:
    """The number of workers in the largest team; 1 if nothing is exchanged.

    >>> [largest_team(BatchLayout(8192, world_size=number), 64) for number in (60, 63, 64)]
    [15, 63, 1]
    """
    return max(len(group.ranks) for group in span_groups(layout, span))


def not_in_forecasts(config: RunConfig) -> str:
    """What the mark of a table means: a config like `config` whose workers share spans."""
    return (
        f"{SHARES_SPANS} workers exchange statistics of batch-norm spans that lie on several of them. {_cost(config)}."
        " Only forecasts from runs or calibrations of the same configuration include this."
    )


def _shared(config: RunConfig, span: int) -> Iterator[str]:
    """The warning about the numbers of workers of the run with which workers share spans."""
    in_range = range(config.workers.least, config.workers.most + 1)
    teams = {number: largest_team(BatchLayout.of(config, number), span) for number in in_range}
    sharing: defaultdict[str, list[int]] = defaultdict(list)  # numbers of workers by their teams
    for number, size in sorted(teams.items(), key=lambda item: -item[1]):
        if size > 1:
            sharing["one team of all" if size == number else f"teams of up to {size}"].append(number)
    if not sharing:
        return
    shown = [f"{_workers(numbers)}: {how}" for how, numbers in list(sharing.items())[:_NUM_SHOWN]]
    if rest := sum(map(len, list(sharing.values())[_NUM_SHOWN:])):
        shown.append(f"{count(rest, 'other number')} of workers: smaller teams")
    yield (
        f"batch_norm.span {span}: spans lie on several workers, which exchange statistics ({'; '.join(shown)})."
        f" {_cost(config)}. {_instead(config, span, [number for number in in_range if teams[number] == 1])}"
    )


def _cost(config: RunConfig) -> str:
    layers, parts = num_batch_norms(config.model), config.batch.parts
    of_parts = f" and {count(parts, 'micro-batch')}" if parts > 1 else ""
    if layers is None:
        return f"A step makes 2 collectives for each batch norm{of_parts}, one after the other"
    number = count(2 * layers * parts, "collective")
    return f"A step makes {number}, one after the other: 2 for each of {count(layers, 'batch norm')}{of_parts}"


def _instead(config: RunConfig, span: int, without: list[int]) -> str:
    """The numbers of workers `without` an exchange, the nearest others, and similar spans without one."""
    layout, workers = BatchLayout.of(config, 1), config.workers

    def lies_on_one(number: int, size: int) -> bool:
        return not BatchLayout.of(config, number).spans_cross_workers(size)

    fewer = next(number for number in range(workers.least, 0, -1) if lies_on_one(number, span))
    larger = range(workers.most + 1, layout.micro_batch_size // span + 1)  # each worker has a span
    more = next((number for number in larger if lies_on_one(number, span)), fewer)
    numbers = _workers([fewer, *without, more], descending=True)
    similar = [size for size in allowed_spans(layout.micro_batch_size) if span <= 2 * size <= 4 * span]
    in_range = range(workers.least, workers.most + 1)
    spans = [str(size) for size in similar if all(lies_on_one(number, size) for number in in_range)]
    or_span = f", or with a span of {_either(spans)}" if spans else ""
    return f"Without an exchange: {numbers}{or_span}"


def _workers(numbers: list[int], *, descending: bool = False) -> str:
    """Numbers of workers for a person, with three or more in a row as a range, and at most five parts.

    >>> _workers([1]), _workers([32, 64], descending=True), _workers([5, 6, 8, 9, 10])
    ('1 worker', '64 or 32 workers', '5, 6 or 8 to 10 workers')
    >>> _workers([1, 3, 5, 7, 9, 11, 12, 13])
    '1, 3, 5, 7, 9 or 3 other numbers of workers'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [part for run in runs for part in ([run] if len(run) > 2 else [[number] for number in run])]
    parts = parts[::-1] if descending else parts
    texts = [f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    if rest := sum(map(len, parts[_NUM_PARTS:])):
        return f"{_either([*texts[:_NUM_PARTS], count(rest, 'other number')])} of workers"
    return f"{_either(texts)} {'worker' if texts == ['1'] else 'workers'}"


def _either(texts: list[str]) -> str:
    """Texts with commas between them, and `or` before the last one."""
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
