"""The report of a study: one HTML file that needs no other."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.study import figures
from launcher.study.results import Results, comparison_rows, result_rows, unit, value_text
from launcher.study.schema import Figure

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; text-align: left }
.table { overflow-x: auto }
th { border-bottom: 2px solid #888 }
td { font-variant-numeric: tabular-nums; white-space: nowrap }
tr:nth-child(odd) td { background: #f5f5f5 }
blockquote { margin: 1rem 0; padding: .5rem 1rem; background: #eef4fa; border-left: 4px solid #0072B2 }
figure { margin: 1.5rem 0 }
figure svg { max-width: 100%; height: auto }
figcaption, .small { color: #666; font-size: .9rem }
.larger, .smaller { font-weight: bold }
.inconclusive, .no-data { color: #888; font-style: italic }
.failed { color: #b00020 }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
"""


def page(results: Results, drawn: Sequence[tuple[Figure, str]], facts: Mapping[str, Any]) -> str:
    """The HTML text. `drawn`: figures with their SVG; `facts`: the command and the environment."""
    study = results.plan.file.study
    title = f"{study.name}{', full version' if results.plan.file.is_full else ''}"
    finished = sum(one.state.status == "finished" for one in results.runs)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="small">{finished} of {len(results.runs)} runs finished; they took {results.seconds:,.0f} s as the'
        " sum over runs, also if several ran at a time</p>",
    ]
    if study.hypothesis:
        parts.append(f"<p>Hypothesis, written down before:</p><blockquote>{_text(study.hypothesis)}</blockquote>")
    parts += _failures(results)
    if results.rows:
        parts += ["<h2>Results</h2>", _table(result_rows(results))]
        if any(row.num_runs > 1 for row in results.rows):
            parts.append('<p class="small">Mean ± half of the 95 % interval of the mean, by Student\'s t (standard '
                         "deviation) over the seeds. n: number of seeds.</p>")  # fmt: skip
    if results.comparisons:
        parts += ["<h2>Against the baseline</h2>", _table(comparison_rows(results), verdicts=True)]
        parts.append('<p class="small">Differences are paired by seed. Inconclusive: the interval includes 0, or there '
                     "is only one seed.</p>")  # fmt: skip
    for figure, svg in drawn:
        caption = figures.note(figure, results)
        parts.append(f"<h2>{_text(figures.title(figure, results.plan.axes))}</h2>")
        parts.append(f"<figure>{svg[svg.index('<svg') :]}<figcaption>{_text(caption)}</figcaption></figure>")
    parts += ["<h2>Runs</h2>", _runs(results), "<h2>How it was made</h2>", _how(facts)]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_CSS}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(parts)}\n</body></html>\n'


def _failures(results: Results) -> list[str]:
    return [
        f'<p class="failed">{_text(one.run.name)} failed with exit code {one.state.code}: {_text(one.state.reason)}</p>'
        for one in results.failed
    ]


def _table(rows: Sequence[Sequence[str]], *, verdicts: bool = False) -> str:
    head, *others = rows
    lines = ['<div class="table"><table><tr>', *(f"<th>{_text(cell)}</th>" for cell in head), "</tr>"]
    for row in others:
        cells = [f"<td>{_text(cell)}</td>" for cell in row]
        if verdicts:
            cells[-1] = f'<td class="{row[-1].replace(" ", "-")}">{_text(row[-1])}</td>'
        lines += ["<tr>", *cells, "</tr>"]
    return "".join([*lines, "</table></div>"])


def _runs(results: Results) -> str:
    rows = [["run", "status", *(f"{name}{unit(name)}" for name in results.metrics), "seconds"]]
    for one in results.runs:
        status = one.state.status if one.counts else f"{one.state.status}, not in the table"
        values = [value_text(name, one.values.get(name)) for name in results.metrics]
        rows.append([one.run.name, status, *values, f"{one.state.seconds:.1f}"])
    return f"<details><summary>All {len(results.runs)} runs</summary>{_table(rows)}</details>"


def _how(facts: Mapping[str, Any]) -> str:
    found = facts["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    git = found["git"]
    commit = "" if git is None else f"commit {git['commit']}{' with changes' if git['changed'] else ''}"
    lines = [f"Python {found['python']}, {packages}", f"{found['system']}, {found['num_cpus']} CPUs", commit]
    lines.append(f"made {found['time']}")
    return (
        f'<pre>{_text(facts["command"])}</pre><p class="small">{"<br>".join(_text(line) for line in lines if line)}</p>'
    )


def _text(text: str) -> str:
    return html.escape(text)
