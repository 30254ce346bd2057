"""How results look: aligned fields and tables for people, tab-separated rows for pipes, JSON for programs.

Foreign text (names, paths, messages of other machines) is printed with every control, bidirectional and other
unprintable character escaped. rich is imported only where something is drawn on a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN_NAMES = 8
_UNITS = ("kB", "MB", "GB", "TB")


def clean(text: object) -> str:
    """The text with what a terminal might obey, or a reader might misread, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def size(count: int | None) -> str:
    """Bytes in decimal units, three digits."""
    if count is None:
        return "?"
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """Of a wait, for people: 8 s, 4 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def incomplete(model: dict[str, Any]) -> str | None:
    """What a stored model lacks, None if nothing."""
    absent, here = model.get("absent_files", 0), model["file_count"]
    if (part := (model.get("provenance") or {}).get("selection")) is not None:
        return f"selection: {here} of {here + part['left_out_files']} files of its commit"
    return f"incomplete: {here} of {here + absent} files" if absent else None


def left_out(selection: dict[str, Any] | None) -> str | None:
    """What a selection lacks of its commit: the first names, and how much it is."""
    if selection is None:
        return None
    names, count = selection["left_out"][:SHOWN_NAMES], selection["left_out_files"]
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{', '.join(names)}{more} ({size(selection['left_out_bytes'])})"


def print_json(value: object) -> None:
    """ASCII, so that it parses in every locale."""
    print(json.dumps(value, indent=2))


def fields(rows: Iterable[tuple[str, object]]) -> None:
    """Lines of ``label  value``; rows whose value is None are left out."""
    kept = [(label, clean(value)) for label, value in rows if value is not None]
    width = max((len(label) for label, _ in kept), default=0)
    for label, value in kept:
        print(f"{label:<{width}}  {value}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Into a pipe one line per row, tabs between, no header. On a terminal a table, or, where a row is wider than the
    terminal, one block of lines per row, so that a CID is never broken by a border."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(cell_len(cell) for cell in column) for column in zip(header, *cells, strict=True)]
    if sum(widths) + 2 * len(widths) > console.width:
        for row in cells:
            fields(zip(header, row, strict=True))
            print()
        return
    drawn = Table(box=None, pad_edge=False)
    for title in header:
        drawn.add_column(title)
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def note(line: str) -> None:
    """One line for the person at the terminal, beside the result."""
    print(clean(line), file=sys.stderr, flush=True)


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def receipt(done: dict[str, Any]) -> None:
    """What an `add` or `pin` did. On a terminal what each source gave is a table."""
    shares = done["sources"]
    as_table = bool(shares) and sys.stdout.isatty()
    here = done.get("bytes_here", 0)
    rate = done["bytes_fetched"] / done["seconds"] if done["seconds"] else 0
    rows: list[tuple[str, object]] = [
        ("root", done["root"]),
        ("name", done["name"]),
        ("path", done["path"]),
        ("size", size(done["bytes_total"])),
        ("is", "a selection of its commit's files: the root is not the commit's" if done.get("selection") else None),
        ("left out", left_out(done.get("selection"))),
        ("lacks", f"{done['absent_files']} files, not asked for" if done.get("absent_files") else None),
        *(("replaces", root) for root in done.get("replaced") or ()),
        ("fetched", size(done["bytes_fetched"]) if done["bytes_fetched"] else None),
        ("copied", size(done["bytes_copied"]) if done["bytes_copied"] else None),
        ("was here", size(here) if here > 0 else None),
        ("took", f"{done['seconds']:.1f} s" + (f", {size(int(rate))}/s" if rate else "")),
        *(("from", _share(share)) for share in shares if not as_table),
        *(("failed", f"{f['source']}: {f['code']}: {f['reason']}") for f in done.get("failures") or ()),
        *(("step", f"{c['step']}: {c['outcome']} {c['reason']}".strip()) for c in done.get("chain") or ()),
        ("seeded", yes_no(done["seeded"])),
        ("note", done["seed_note"]),
        ("announced", yes_no(done["announced"])),
        ("map", done.get("map_envelope")),
        ("map note", done.get("map_note")),
    ]
    fields(rows)
    if as_table:
        print()
        header = ("source", "kind", "bytes", "requests", "rejected", "seconds", "rate")
        table(header, [(s["source"], s["kind"], size(s["bytes"]), *_counts(s)) for s in shares])


def _share(share: dict[str, Any]) -> str:
    _, rejected, seconds, rate = _counts(share)
    text = f"{share['source']}: {size(share['bytes'])} in {share['requests']} requests"
    return text + (f", {rejected} rejected" if rejected else "") + (f", {seconds} s, {rate}" if rate else "")


def _counts(share: dict[str, Any]) -> tuple[object, ...]:
    """requests, rejected, seconds, rate; the last two empty where nobody measured."""
    seconds = share.get("seconds") or 0.0
    rate = f"{size(int(share['bytes'] / seconds))}/s" if seconds else ""
    return share["requests"], share["rejected"], f"{seconds:.1f}" if seconds else "", rate
