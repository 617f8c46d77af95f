"""The table of what other numbers of nodes require: one column for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from launcher.commands.plan_text import paragraph, width
from launcher.formatting import count
from launcher.planning.scaling_model import NODE_MTBF_HOURS, STORE_REQUESTS_PER_S, Assumptions, ScaleEstimate

_ROWS: Mapping[str, Callable[[ScaleEstimate], str]] = {
    "workers": lambda one: f"{one.workers:,}",
    "images per worker and step": lambda one: f"{one.per_worker_batch:,}",
    "step": lambda one: _time(one.step_s),
    "rendezvous, requests": lambda one: f"{one.rendezvous_requests:,}",
    "rendezvous, one store": lambda one: _time(one.rendezvous_requests / STORE_REQUESTS_PER_S),
    "control messages /s": lambda one: _rate(one.control_per_s),
    "heartbeat files /s": lambda one: _rate(one.heartbeats_per_s),
    "images read /s": lambda one: _rate(one.images_per_s),
    "  from the disks /s": lambda one: _bytes(one.image_bytes_per_s),
    "checkpoints written /s": lambda one: _bytes(one.checkpoint_bytes_per_s),
    "read at a restart": lambda one: _bytes(one.restart_bytes),
    "failures per day": lambda one: f"{one.failures_per_day:.3g}",
    "checkpoint every, config": lambda one: _time(one.config_interval_s),
    "  goodput": lambda one: f"{one.config_goodput:.2%}",
    "checkpoint every, best": lambda one: _time(one.best_interval_s),
    "  goodput, best": lambda one: f"{one.best_goodput:.2%}",
}
_INDENT = 4
_LABEL = 26


def lines(estimates: Mapping[int, ScaleEstimate | None], assumed: Assumptions) -> Iterator[str]:
    """A table with one column for each number of nodes, in groups that fit the terminal, and its assumptions."""
    yield from paragraph("model by number of nodes (launcher/planning/scaling_model.py has the formulas)")
    rows = {"nodes": [f"{nodes:,}" for nodes in estimates]}
    for name, text in _ROWS.items():
        rows[name] = ["-" if one is None else text(one) for one in estimates.values()]
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for number, (first, end) in enumerate(_groups(widths, width() - _INDENT - _LABEL)):
        if number:
            yield ""
        for name, row in rows.items():
            cells = (text.rjust(size) for text, size in zip(row[first:end], widths[first:end], strict=True))
            line = f"{'':{_INDENT}}{name:<{_LABEL}}{'  '.join(cells)}"
            if len(line) <= width():
                yield line
            else:  # narrower than a label and a number
                yield f"{'':{_INDENT}}{name}"
                yield line[_LABEL + _INDENT :].rjust(width())
    for nodes, one in estimates.items():
        if one is None:
            yield from paragraph(f"{count(nodes, 'node')}: more workers than a micro-batch has images", _INDENT)
    source = "Llama 3's" if assumed.mtbf_hours == NODE_MTBF_HOURS else "given"
    yield from paragraph(
        f"assumed: a node fails every {assumed.mtbf_hours:,.0f} h ({source}: --mtbf-hours), a restart takes"
        f" {assumed.restart_s:,.0f} s (--restart-s) and reads at {assumed.storage_gb_s:g} GB/s (--storage-gb-s); steps,"
        " evaluations and saves as predicted (medians)",
        _INDENT,
    )


def _groups(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Consecutive columns that fit into `room` with two spaces between them, as first and end; at least one each.

    >>> list(_groups([3, 5, 4, 9], 10)), list(_groups([12], 10))
    ([(0, 2), (2, 3), (3, 4)], [(0, 1)])
    """
    first = 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or sum(widths[first : end + 1]) + 2 * (end - first) > room:
            yield first, end
            first = end


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
