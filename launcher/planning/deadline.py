"""Which numbers of nodes, batches and recipes are done by a deadline."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, UsageError
from launcher.planning.forecast import Forecast, Interval
from launcher.planning.published_recipe import compared, recipe_overrides, trains_published_network
from resnet_dist.recipe.published import Published, origins
from resnet_dist.recipe.schema import plain

OWN = "the config's"  # name of its recipe

Verdict = Literal["in time", "perhaps", "too late"]

_FACTORS = (0.5, 1, 2, 4)  # of the config's nodes, without --nodes
_LONGEST_S = 100 * 365.25 * 86400  # later dates are treated alike
_FORM = (
    'a date and a time in the future, such as "2026-12-01 06:00", or with a time zone "2026-12-01T06:00+01:00"; '
    'or the next such time of the day, such as "06:00"'
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A config with another number of nodes, or a published recipe. None as forecast: there is no evidence."""

    config: RunConfig
    recipe: str  # whose
    forecast: Forecast | None


def parse(text: str, now: datetime.datetime) -> datetime.datetime:
    """The deadline in `text`: ISO 8601, or HH:MM for the next such time; without a time zone it is local time.

    Raises UsageError for another text, and for a deadline in the past.
    """
    clock = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text.strip())
    if clock is not None:
        return _next(datetime.time(int(clock[1]), int(clock[2])), now)
    try:
        deadline = datetime.datetime.fromisoformat(text.strip())
        if _is_date(text.strip()):
            raise UsageError(f"--deadline {text}: has no time of the day. Allowed: {_FORM}")
        if deadline.tzinfo is None:
            deadline = deadline.astimezone()
        left = deadline - now
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--deadline {text}: is not a date and time. Allowed: {_FORM}") from None
    if left <= timedelta(0):
        raise UsageError(
            f"--deadline {text}: is in the past: it is {now.astimezone():%Y-%m-%d %H:%M %Z}. Allowed: {_FORM}"
        )
    return deadline


def _next(clock: datetime.time, now: datetime.datetime) -> datetime.datetime:
    """The first time after `now` at which a local clock shows `clock`."""
    today = now.astimezone().date()
    times = (datetime.datetime.combine(today + timedelta(days=days), clock).astimezone() for days in (0, 1))
    return next(time for time in times if time > now)


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def nodes_around(config: RunConfig) -> list[int]:
    """Half of the config's nodes, as many, twice and four times as many; only as many for `place: local`."""
    if config.place == "local":
        return [config.cluster.nodes]
    numbers = [config.cluster.nodes * factor for factor in _FACTORS]
    return [int(number) for number in numbers if number == int(number)]


def candidates(
    config: RunConfig, nodes: Sequence[int], forecast: Callable[[RunConfig], Forecast | None], *, own_only: bool
) -> Iterator[Candidate]:
    """The config, and all published recipes if it trains their network on their images, on each number of nodes.

    `own_only`: only the config's own recipe. Combinations that the config's rules refuse are left out, such as a
    micro-batch with fewer images than there are workers.
    """
    for recipe, one in _recipes(config, own_only=own_only):
        for number in nodes:
            workers = config.workers.most // config.cluster.nodes * number
            try:
                changed = _changed(one, {"workers": workers, "cluster.nodes": number})
            except ConfigError:
                continue
            yield Candidate(config=changed, recipe=recipe, forecast=forecast(changed))


def _recipes(config: RunConfig, *, own_only: bool) -> Iterator[tuple[str, RunConfig]]:
    comparison = compared(config)
    yield OWN, config
    if own_only or not trains_published_network(config):
        return
    for origin in origins():
        for run in origin.runs:
            found = Published(origin, run.batch, (run,))
            if comparison is not None and comparison.is_published and comparison.found == found:
                continue  # it is the config's
            overrides = {**recipe_overrides(found, config), "name": config.name, "workers": 1, "cluster.nodes": 1}
            try:
                yield origin.name, _changed(config, overrides)
            except ConfigError:  # another key of the config does not fit it
                continue


def _changed(config: RunConfig, overrides: dict[str, object]) -> RunConfig:
    return configs.from_mapping(plain(config), config.storage, overrides)


def verdict(wall_s: Interval, left_s: float) -> Verdict:
    """Whether a run that starts now is done within `left_s`: with its upper bound, only with its lower one, or not."""
    if wall_s.high <= left_s:
        return "in time"
    return "perhaps" if wall_s.low <= left_s else "too late"


def finish(now: datetime.datetime, wall_s: float) -> datetime.datetime:
    """The local time at which a run that starts now ends."""
    return (now + timedelta(seconds=min(wall_s, _LONGEST_S))).astimezone()
