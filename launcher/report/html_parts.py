"""Parts of a page as HTML text. All that comes from files of a run goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def text(value: object) -> str:
    """A value as HTML text, also inside of an attribute.

    >>> text('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return html.escape(str(value))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str, *, first_is_head: bool = True) -> str:
    """A table that scrolls sideways where it does not fit. The first cell of a row names it."""
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table>',
        f'<caption class="unseen">{text(caption)}</caption><thead><tr>',
        *(f'<th scope="col">{text(cell)}</th>' for cell in head),
        "</tr></thead><tbody>",
    ]
    for first, *others in rows:
        name = f'<th scope="row">{text(first)}</th>' if first_is_head else f"<td>{text(first)}</td>"
        lines += ["<tr>", name, *(f"<td>{text(cell)}</td>" for cell in others), "</tr>"]
    return "".join([*lines, "</tbody></table></div>"])


def details(summary: str, content: str, *, is_open: bool = False, identity: str = "") -> str:
    """A part that a reader can unfold."""
    attributes = (f' id="{text(identity)}"' if identity else "") + (" open" if is_open else "")
    return f"<details{attributes}><summary>{text(summary)}</summary>{content}</details>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Labels with their values."""
    rows = (f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for label, value in pairs if str(value))
    return f"<dl>{''.join(rows)}</dl>"


def listed(items: Iterable[object], style: str = "") -> str:
    """A list; nothing without items."""
    rows = "".join(f"<li>{text(item)}</li>" for item in items)
    return f'<ul class="{style}">{rows}</ul>' if rows else ""
