"""The report as one HTML file that needs no other and no network.

Without JavaScript it has all tables and drawings. page.js adds zoom, series to switch, another axis, and images to
save. The page's policy lets the browser run only that script and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.report import charts, ranking
from launcher.report.charts import Chart, Line
from launcher.report.curves import Curves, curves
from launcher.report.facts import RunFacts, progress_text
from launcher.report.goodput import TOO_SHORT
from launcher.report.html_parts import details, listed, table, text
from launcher.report.ranking import Ranked, differing_keys, duration, shown
from launcher.report.result import interval_text, percent
from launcher.report.run_sections import badge, run_sections, trained

MAX_BYTES = 3_000_000  # of a page
_POINTS = 4000  # of a curve in all runs together
_MOST_POINTS, _FEWEST_POINTS = 1500, 20  # of a curve in one run
_INTERVAL = "The interval (95 %, Wilson) is the uncertainty that comes from the number of val images."
_NUM_ROWS = 25  # of a chart's table
_MAX_KEYS = 400  # rows of a table of differences


def page(runs: Sequence[RunFacts], rows: Sequence[Ranked], command: str, made: str) -> str:
    """The HTML text, smaller than MAX_BYTES if its curves can be made small enough.

    `rows`: the ranking of several runs; `command`: the command line that makes the page; `made`: the time.
    """
    most = min(_POINTS // len(runs), _MOST_POINTS)
    while True:
        found = _page(runs, rows, command, made, max(most, _FEWEST_POINTS))
        if len(found.encode()) <= MAX_BYTES or most <= _FEWEST_POINTS:
            return found
        most //= 2


def _page(runs: Sequence[RunFacts], rows: Sequence[Ranked], command: str, made: str, most_points: int) -> str:
    of_runs = [
        (one.run.name, curves(one.run, "train", most_points), curves(one.run, "eval", most_points)) for one in runs
    ]
    marked = [
        mark
        for number, (one, (_, train, _)) in enumerate(zip(runs, of_runs, strict=True))
        for mark in charts.marks(number, train, _ends(one))
    ]
    drawn = charts.charts(of_runs, marked)
    script, style = (_resource(name) for name in ("page.js", "page.css"))
    title = ", ".join(one.run.name for one in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    body = [
        '<a class="skip" href="#curves">Skip to the curves</a>',
        f"<header>{_header(runs, rows)}</header>",
        "<main>",
        *(trained(runs[0], 2) if len(runs) == 1 else _comparison(runs, rows)),
        *_curves(drawn, of_runs, len(runs)),
        *(part for number, one in enumerate(runs) for part in run_sections(one, number, several=len(runs) > 1)),
        "</main>",
        f"<footer>{_footer(of_runs, command, made)}</footer>",
        f'<script type="application/json" id="data">{_json(_data(drawn, of_runs))}</script>',
        f"<script>{script}</script>",
    ]
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:"
    head = [
        '<meta charset="utf-8">',
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{text(title)}: report of {'a run' if len(runs) == 1 else f'{len(runs)} runs'}</title>",
        f"<style>{style}</style>",
    ]
    lines = "\n".join(["<head>", *head, "</head>", "<body>", *body, "</body>"])
    return f'<!doctype html>\n<html lang="en">\n{lines}\n</html>\n'


def _ends(one: RunFacts) -> list[tuple[int, str]]:
    """Last step and a text of the attempts that ended before the run did."""
    return [
        (entry.last_step, f"{one.run.name}: attempt {entry.span.attempt.number} {entry.outcome}, {entry.ended}")
        for entry in one.entries
        if entry.outcome in ("failed", "stopped")
    ]


def _resource(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _json(content: object) -> str:
    """JSON that ends no script element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


# --- what came out


def _header(runs: Sequence[RunFacts], rows: Sequence[Ranked]) -> str:
    if len(runs) > 1:
        verdict = ranking.verdict(rows)
        lead = f"<p class='lead'>{text(verdict)}</p>" if verdict else ""
        return f"<h1>{len(runs)} runs</h1>{listed(ranking.warnings(rows), 'warnings')}{lead}"
    (one,) = runs
    own, status = one.result, one.run.status
    last, accuracy = own.last, own.accuracy
    name = f"<h1>{text(one.run.name)} {badge(status.state)}</h1>"
    tiles = []
    if last is not None:
        interval = "" if accuracy is None else interval_text(accuracy)
        tiles.append(("Top-1", "not finite" if accuracy is None else percent(accuracy.top1), interval))
        tiles.append(("Val loss", "n/a" if last.loss is None else f"{last.loss:.4g}", _top5(last.top5)))
    progress, _, more = progress_text(one.run).partition(", ")
    tiles.append(("Progress", progress, more))
    if one.goodput.scheduled_s:
        waited = one.goodput.not_scheduled_s
        not_counted = f"and {duration(waited)} not scheduled" if waited >= 1 else ""
        tiles.append(("Time", duration(one.goodput.scheduled_s), not_counted))
    if one.images_per_s is not None:
        tiles.append(("Throughput", f"{one.images_per_s:,.0f}", "images/s while training"))
    if one.goodput.useful:
        share = (f"{one.goodput.fraction:.0%}", "of the workers' time was useful")
        tiles.append(("Goodput", *(share if one.goodput.is_known else ("not known", TOO_SHORT))))
    shown_tiles = "".join(
        f'<div class="tile"><dt>{text(label)}</dt><dd><b>{text(value)}</b><span>{text(note)}</span></dd></div>'
        for label, value, note in tiles
    )
    label = f'<p class="label">Accuracy of {text(own.label)}. {_INTERVAL}</p>' if own.label else ""
    return f"{name}{listed(one.warnings, 'warnings')}<dl class='tiles'>{shown_tiles}</dl>{label}"


def _top5(top5: float | None) -> str:
    return "" if top5 is None else f"top-5 {percent(top5)}"


def _comparison(runs: Sequence[RunFacts], rows: Sequence[Ranked]) -> Iterator[str]:
    yield '<section id="results"><h2>Results</h2>'
    yield table(ranking.HEAD, map(ranking.cells, rows), "Runs by top-1 of their last evaluation", first_is_head=False)
    labels = dict.fromkeys(row.result.label for row in rows if row.result.label)
    yield "".join(f'<p class="label">Accuracy of {text(label)}.</p>' for label in labels if len(labels) == 1)
    yield f'<p class="note">{text(ranking.SAMPLING_NOTE)}.</p></section>'
    names = [one.run.name for one in runs]
    yield '<section id="differences"><h2>Differences</h2>'
    for title, flat in (
        ("config", [one.run.keys for one in runs]),
        ("environment", [one.run.environment_keys for one in runs]),
    ):
        keys = differing_keys(flat)
        if keys:
            shown_rows = [[key, *map(shown, values)] for key, values in list(keys.items())[:_MAX_KEYS]]
            yield f"<h3>{title.capitalize()}</h3>"
            yield table(["key", *names], shown_rows, f"Keys of the {title} that differ")
        else:
            yield f"<p>{title.capitalize()}: the same.</p>"
    yield "</section>"


# --- curves


def _curves(drawn: Sequence[Chart], of_runs: Sequence[tuple[str, Curves, Curves]], num_runs: int) -> Iterator[str]:
    yield '<section id="curves"><h2>Curves</h2>'
    if not drawn:
        yield "<p>No step is recorded: there are no curves.</p></section>"
        return
    yield '<div class="controls"><div id="tools" class="tools" hidden></div>'
    if num_runs > 1:
        yield _legend(((name, charts.color_of(number)) for number, (name, *_) in enumerate(of_runs)), "runs")
    yield "</div>"
    longest = max(max(train.records_per_point, evals.records_per_point) for _, train, evals in of_runs)
    if longest > 1:
        yield (
            f'<p class="note">Down-sampled: a point stands for up to {longest:,} records. The line is their mean, and '
            "the band reaches from their smallest to their largest value.</p>"
        )
    if drawn[0].marks:
        sign = '<svg class="sign" viewBox="0 0 10 9" aria-hidden="true"><path class="mark" d="M5 0l-5 9h10z"/></svg>'
        yield f'<p class="note">{sign} on the axis: an attempt ended there, by a failure or on request.</p>'
    yield '<div class="charts">'
    for chart in drawn:
        yield from _chart(chart, num_runs)
    yield "</div></section>"


def _chart(chart: Chart, num_runs: int) -> Iterator[str]:
    kind = chart.kind
    unit = f" ({kind.unit})" if kind.unit else ""
    yield f'<figure class="chart" id="chart-{kind.id}" data-chart="{kind.id}">'
    yield f"<figcaption><h3>{text(kind.title)}<small>{text(unit)}</small></h3></figcaption>"
    yield f'<div class="plot">{charts.svg(chart, f"chart-{kind.id}")}</div>'
    labels = {line.label: f"q{line.strength}" if num_runs > 1 else line.style for line in chart.lines}
    if len(labels) > 1:
        yield _legend(labels.items())
    note = f'<p class="note">{text(kind.note)}</p>' if kind.note else ""
    yield details("Numbers", f"<p>{text(charts.words(chart))}</p>{note}{_numbers(chart, num_runs)}")
    yield "</figure>"


def _legend(items: Iterable[tuple[str, str]], identity: str = "") -> str:
    """A list of names with the line that each of them has; `items`: name and classes."""
    line = '<svg viewBox="0 0 28 10" aria-hidden="true"><path class="line" d="M1 5H27"/></svg>'
    keys = (f'<li><span class="key {style}">{line}{text(name)}</span></li>' for name, style in items)
    return f'<ul class="legend"{f" id={identity}" if identity else ""}>{"".join(keys)}</ul>'


def _line_name(line: Line, num_runs: int) -> str:
    return f"{line.run_name}: {line.label}" if num_runs > 1 else line.label


def _numbers(chart: Chart, num_runs: int) -> str:
    """Tables with the values of a chart: of each set of positions one."""
    made = []
    for of in dict.fromkeys(id(line.curves) for line in chart.lines):
        lines = [line for line in chart.lines if id(line.curves) == of]
        found = lines[0].curves
        epochs: Sequence[float | None] = found.epoch or [None] * len(found.step)
        rows = [
            [
                f"{found.step[position]:,}",
                "" if (epoch := epochs[position]) is None else f"{epoch:.2f}",
                *(charts.shown(chart.kind, line.curves.points[line.quantity].mean[position]) for line in lines),
            ]
            for position in _chosen(len(found.step))
        ]
        head = ["step", "epoch", *(_line_name(line, num_runs) for line in lines)]
        made.append(table(head, rows, f"{chart.kind.title}: {', '.join(head[2:])}"))
        if len(rows) < len(found.step):
            made.append(f'<p class="note">{len(rows)} of {len(found.step):,} points.</p>')
    return "".join(made)


def _chosen(count: int) -> list[int]:
    """Up to _NUM_ROWS positions of `count`, spread evenly, with the first and the last."""
    if count <= _NUM_ROWS:
        return list(range(count))
    return [round(number * (count - 1) / (_NUM_ROWS - 1)) for number in range(_NUM_ROWS)]


def _data(drawn: Sequence[Chart], of_runs: Sequence[tuple[str, Curves, Curves]]) -> Mapping[str, Any]:
    """What page.js draws from."""
    found = [curves for _, *kinds in of_runs for curves in kinds]
    numbers = {id(curves): number for number, curves in enumerate(found)}
    return {
        "runs": [name for name, _, _ in of_runs],
        "positions": [{"step": one.step, "epoch": one.epoch, "time": one.time_s} for one in found],
        "byEpoch": all(chart.by_epoch for chart in drawn),
        "marks": [
            {"run": mark.run, "positions": numbers[id(mark.curves)], "at": mark.position, "text": mark.text}
            for mark in (drawn[0].marks if drawn else ())
        ],
        "charts": [
            {
                "id": chart.kind.id,
                "title": chart.kind.title,
                "unit": chart.kind.unit,
                "factor": chart.kind.factor,
                "log": chart.log,
                "zero": chart.kind.zero,
                "lines": [_line_data(line, numbers[id(line.curves)], len(of_runs)) for line in chart.lines],
            }
            for chart in drawn
        ],
    }


def _line_data(line: Line, positions: int, num_runs: int) -> Mapping[str, Any]:
    points = line.curves.points[line.quantity]
    band = {} if points.low is points.mean else {"low": points.low, "high": points.high}
    return {
        "name": _line_name(line, num_runs),
        "label": line.label,
        "run": line.run,
        "style": line.style,
        "strength": line.strength,
        "markers": line.has_markers,
        "positions": positions,
        "mean": points.mean,
        "bars": line.intervals(),
        **band,
    }


def _footer(of_runs: Sequence[tuple[str, Curves, Curves]], command: str, made: str) -> str:
    num_records = sum(train.num_records + evals.num_records for _, train, evals in of_runs)
    return (
        f"<p>Made {text(made)} from {num_records:,} records of metrics.jsonl with</p><pre>{text(command)}</pre>"
        "<p>Steps that were repeated after a failure are shown once, as they were done last. The time axis counts "
        "steps and evaluations, without starts, saves and restarts.</p>"
    )
