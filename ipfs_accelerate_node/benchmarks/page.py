"""A model's results as one HTML file: the plots, and under them the figures that they were drawn from.

Nothing is loaded from anywhere and nothing runs: the page's own policy forbids both. Every text is escaped; most of
them come from strangers.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.benchmarks.charts import plain

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_SHORT = 32  # characters of a cell that stay on one line
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222;
       background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
.wide > svg { width: 100%; min-width: 44rem; height: auto; display: block; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid #ccc; vertical-align: top;
         white-space: nowrap; }
td > span { display: block; width: 16rem; white-space: normal; overflow-wrap: anywhere; }
th { background: #f3f3f3; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
p, li { max-width: 60rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A table under its title. numeric: columns that are figures, by their place."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


def page(title: str, svg: bytes, parts: Iterable[Part], *, notes: Sequence[str] = (), rule: str = "") -> bytes:
    """svg: as `benchmarks.plots` draws it. notes: lines of text. rule: by which figures are flagged."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_escaped(title)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{_escaped(title)}</h1>",
        f'<div class="wide">{_inline(svg, title)}</div>',
    ]
    for part in parts:
        lines += _table(part)
    if rule:
        lines += ["<h2>When figures are flagged as unlike</h2>", f"<p>{_escaped(rule)}</p>"]
    if notes:
        lines += ["<h2>Notes</h2>", "<ul>", *(f"<li>{_escaped(note)}</li>" for note in notes), "</ul>"]
    lines.append("</body></html>")
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _inline(svg: bytes, title: str) -> str:
    """Without what only a file of its own has."""
    text = svg.decode()
    label = _escaped(f"Plots: {title}")
    return f'<svg role="img" aria-label="{label}" ' + text[text.index("<svg ") + len("<svg ") :].strip()


def _table(part: Part) -> list[str]:
    def numeric(index: int) -> str:
        return ' class="n"' if index in part.numeric else ""

    def cell(index: int, text: str) -> str:
        inner = _escaped(text)
        return f"<td{numeric(index)}>{inner if len(text) <= _SHORT else f'<span>{inner}</span>'}</td>"

    return [
        f"<h2>{_escaped(part.title)}</h2>",
        '<div class="wide"><table><thead><tr>',
        *(f'<th scope="col"{numeric(index)}>{_escaped(name)}</th>' for index, name in enumerate(part.header)),
        "</tr></thead><tbody>",
        *(f"<tr>{''.join(cell(index, text) for index, text in enumerate(row))}</tr>" for row in part.rows),
        "</tbody></table></div>",
    ]


def _escaped(text: str) -> str:
    return html.escape(plain(text), quote=True)
